"""A client for gRPC, in HTTP/2 by hand, that opens calls and takes nothing of their answers."""

from __future__ import annotations

import socket
import struct

_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0, 1, 4, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW_SIZE = 4


class GreedyClient:
    """Allows the server to send no byte of an answer, unless it is told to.

    Args:
        host: The server's host.
        port: Its port for gRPC.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=60)
        no_window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        settings = _frame(_SETTINGS, 0, 0, no_window) + _frame(_SETTINGS, _ACK, 0, b"")
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        self._next_stream = 1

    def call(self, method: str, *messages: bytes) -> None:
        """Open a call, such as ``/inference.GRPCInferenceService/ServerMetadata``, and send all its messages.

        Raises:
            OSError: The server has ended the connection.
        """
        headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "a", "te": "trailers"}
        headers["content-type"] = "application/grpc"
        # HPACK without a table and without Huffman's code: a byte before each name and value says how long it is.
        block = b"".join(
            b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        body = b"".join(b"\0" + struct.pack(">I", len(message)) + message for message in messages)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        head = _frame(_HEADERS, _END_HEADERS, stream, block)
        self._socket.sendall(head + _frame(_DATA, _END_STREAM, stream, body))

    def take(self, size: int) -> None:
        """Allow the server to send so many bytes more of the last call's answer."""
        update = struct.pack(">I", size)
        self._socket.sendall(_frame(_WINDOW_UPDATE, 0, self._next_stream - 2, update))

    def is_closed(self) -> bool:
        """Whether the server has ended the connection. What it sent is thrown away."""
        self._socket.settimeout(0.01)
        try:
            while self._socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + body
