"""Bad requests of every kind that is known: over gRPC, over HTTP, and what is neither."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import grpc
from tritonclient.grpc import service_pb2

from onetrunk.protocol.names import ADMIN_GRPC_HEADER, ADMIN_HEADER, MULTITASK, MULTITASK_TOKENS

SERVICE = "/inference.GRPCInferenceService/"
INFER = f"/v2/models/{MULTITASK}/infer"
MIB = 1 << 20
# A bad request that is neither answered nor cut off in this time hangs.
HANGS_S = 45.0
# A client that sends slowly gives up by itself after this time.
SLOW_S = 2.0


@dataclass
class BadTally:
    """What became of bad requests."""

    outcomes: dict = field(default_factory=lambda: defaultdict(Counter))  # kind -> outcome -> times
    longest_s: dict = field(default_factory=lambda: defaultdict(float))

    def add(self, other: BadTally) -> None:
        """Add another client's counts."""
        for kind, outcomes in other.outcomes.items():
            self.outcomes[kind].update(outcomes)
            self.longest_s[kind] = max(self.longest_s[kind], other.longest_s[kind])

    def record(self) -> dict:
        """The counts, for a report: kind -> outcomes and the longest time."""
        return {
            kind: {**dict(sorted(outcomes.items())), "longest_s": round(self.longest_s[kind], 2)}
            for kind, outcomes in sorted(self.outcomes.items())
        }


class BadClient:
    """Sends bad requests and says what became of each: a status, `closed`, `answered` or `hung`."""

    def __init__(self, ready: dict) -> None:
        self._channel = grpc.insecure_channel(ready["grpc"], options=[("grpc.max_send_message_length", -1)])
        self._grpc_address = ready["grpc"]
        self._http_address = ready["http"]
        self.tally = BadTally()

    def step(self, kind: str) -> None:
        """Send one bad request of a kind."""
        began = time.monotonic()
        try:
            outcome = KINDS[kind](self)
        except grpc.RpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() - began >= HANGS_S - 1
            outcome = "hung" if late else error.code().name
        except TimeoutError:
            outcome = "hung"
        except OSError:
            outcome = "closed"
        self.tally.outcomes[kind][outcome] += 1
        self.tally.longest_s[kind] = max(self.tally.longest_s[kind], time.monotonic() - began)

    def call(self, message: bytes, method: str = "ModelInfer", metadata: tuple = ()) -> str:
        """Send bytes as a gRPC message."""
        self._channel.unary_unary(SERVICE + method)(message, timeout=HANGS_S, metadata=metadata)
        return "answered"

    def raw(self, *parts: bytes, grpc_port: bool = False, pause_s: float = 0.0, answer: bool = True) -> str:
        """Send bytes to a port, with pauses between the parts; return the status of what comes back."""
        host, _, port = (self._grpc_address if grpc_port else self._http_address).partition(":")
        with socket.create_connection((host, int(port)), timeout=HANGS_S) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            if not answer:
                return "gave up"
            found = connection.recv(4096)
        if found.startswith(b"HTTP/1.1 "):
            status = found[9:12].decode()
            return "answered" if status == "200" else status
        return "closed" if not found else "other bytes"

    def post(
        self, body: bytes, *headers: str, path: str = f"/v2/models/{MULTITASK}/infer", method: str = "POST"
    ) -> str:
        """Send an HTTP request."""
        head = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
        if not any(header.lower().startswith("content-length") for header in headers):
            head.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join([*head, "", ""]).encode("latin-1"), body)


def message(
    values: list[bytes] | None = None,
    *,
    name: str = "text",
    shape: tuple = (),
    datatype: str = "BYTES",
    raw: bytes | None = None,
    outputs: tuple = ("sst2",),
    **fields: str,
) -> service_pb2.ModelInferRequest:
    """An inference request. What is not said is right."""
    values = [b"A film."] if values is None else values
    request = service_pb2.ModelInferRequest(**{"model_name": MULTITASK, **fields})
    request.inputs.add(name=name, datatype=datatype, shape=shape or (len(values), 1))
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(v)) + v for v in values) if raw is None else raw)
    for output in outputs:
        request.outputs.add(name=output)
    return request


def grpc_kind(*arguments, **changes) -> Callable[[BadClient], str]:
    """A kind of bad request that is a changed `message`."""
    return lambda client: client.call(message(*arguments, **changes).SerializeToString())


def ids(*numbers: int) -> Callable[[BadClient], str]:
    """A kind of bad request for token ids."""
    raw = struct.pack(f"<{len(numbers)}q", *numbers)
    shape = (1, len(numbers))
    return grpc_kind(name="input_ids", datatype="INT64", shape=shape, raw=raw, model_name=MULTITASK_TOKENS)


def classified(task: str, count: int) -> Callable[[BadClient], str]:
    """A request for the labels of a task."""

    def send(client: BadClient) -> str:
        request = message(outputs=())
        request.outputs.add(name=task).parameters["classification"].int64_param = count
        return client.call(request.SerializeToString())

    return send


def shared_memory(client: BadClient) -> str:
    """A request whose input lies in memory that nobody registered."""
    request = message(raw=b"")
    del request.raw_input_contents[:]
    request.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 64
    return client.call(request.SerializeToString())


def load_model(client: BadClient, metadata: tuple = ()) -> str:
    """A model of the client's own, without the key or with a wrong one."""
    request = service_pb2.RepositoryModelLoadRequest(model_name="mine")
    request.parameters["config"].string_param = '{"backend": "python"}'
    request.parameters["file:1/model.py"].bytes_param = b"print('run')"
    return client.call(request.SerializeToString(), "RepositoryModelLoad", metadata)


def json_body(text: object = "A film.", **changes: object) -> bytes:
    """A request in JSON. What is not said is right."""
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text], **changes}
    return json.dumps({"inputs": [tensor], "outputs": [{"name": "sst2"}]}).encode()


@cache
def bomb(size_mib: int, encoding: str) -> bytes:
    """A request with one text of so many MiB, compressed a thousandfold."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS if encoding == "gzip" else zlib.MAX_WBITS)
    head, _, tail = json_body("@").partition(b"@")
    parts = [squeeze.compress(head), *(squeeze.compress(b"a" * MIB) for _ in range(size_mib))]
    return b"".join([*parts, squeeze.compress(tail), squeeze.flush()])


def bombed(client: BadClient, size_mib: int, encoding: str) -> str:
    """A compressed request that is far larger than it looks."""
    return client.post(bomb(size_mib, encoding), f"Content-Encoding: {encoding}")


def http_kind(body: bytes, *headers: str, **changes: str) -> Callable[[BadClient], str]:
    """A kind of bad request over HTTP."""
    return lambda client: client.post(body, *headers, **changes)


NO_INPUT = service_pb2.ModelInferRequest(model_name=MULTITASK).SerializeToString()
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n"
DEEP = b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

KINDS: dict[str, Callable[[BadClient], str]] = {
    # Tensors
    "grpc: shape of other rank": grpc_kind(shape=(1,)),
    "grpc: more rows than values": grpc_kind(shape=(3, 1)),
    "grpc: negative shape": grpc_kind(shape=(-1, 1)),
    "grpc: enormous shape": grpc_kind(shape=(1 << 40, 1 << 20)),
    "grpc: another datatype": grpc_kind(datatype="FP32", raw=b"\0\0\0\0"),
    "grpc: unknown datatype": grpc_kind(datatype="TEXT"),
    "grpc: lengths beyond the message": grpc_kind(raw=struct.pack("<I", 1 << 31) + b"abc"),
    "grpc: no rows": grpc_kind([], shape=(0, 1)),
    "grpc: too many rows": grpc_kind([b"a"] * 33),
    "grpc: thousands of rows": grpc_kind([b"a"] * 5000),
    "grpc: unknown input": grpc_kind(name="texts"),
    "grpc: text_pair alone": grpc_kind(name="text_pair"),
    "grpc: no input": lambda client: client.call(
        service_pb2.ModelInferRequest(model_name=MULTITASK).SerializeToString()
    ),
    # Texts
    "grpc: broken UTF-8": grpc_kind([b"\xff\xfe\xfd"]),
    "grpc: empty text": grpc_kind([b""]),
    "grpc: blank text": grpc_kind([b" \t\n\0"]),
    "grpc: huge text": grpc_kind([b"a " * (3 * MIB // 2)]),
    "grpc: many huge texts": grpc_kind([b"a " * MIB] * 16),
    # Token ids
    "grpc: token id beyond the vocabulary": ids(101, 1 << 40, 102),
    "grpc: negative token id": ids(101, -1, 102),
    "grpc: too many token ids": ids(*[101] * 4096),
    # Names and parameters
    "grpc: unknown output": grpc_kind(outputs=("sst3",)),
    "grpc: unknown model": grpc_kind(model_name="nobody"),
    "grpc: unknown version": grpc_kind(model_version="99"),
    "grpc: labels of slots": classified("slots", 3),
    "grpc: negative number of labels": classified("sst2", -1),
    "grpc: shared memory of nobody": shared_memory,
    "grpc: load without a key": load_model,
    "grpc: load with a wrong key": partial(load_model, metadata=((ADMIN_GRPC_HEADER, "wrong"),)),
    "grpc: no protobuf": lambda client: client.call(b"\xff" * 200),
    "grpc: unknown method": lambda client: client.call(b"", "Nothing"),
    # HTTP
    "http: no JSON": http_kind(b"{"),
    "http: another JSON": http_kind(b"[1, 2, 3]"),
    "http: deep JSON": http_kind(DEEP),
    "http: surrogate in the text": http_kind(json_body("\ud800")),
    "http: number as text": http_kind(json_body(7)),
    "http: negative shape": http_kind(json_body(shape=[-1, 1])),
    "http: NaN": http_kind(b'{"inputs": [{"name": "text", "shape": [NaN, 1], "datatype": "BYTES", "data": ["a"]}]}'),
    "http: GET of infer": http_kind(b"", method="GET"),
    "http: DELETE": http_kind(b"", method="DELETE"),
    "http: unknown path": http_kind(json_body(), path="/v3/models"),
    "http: path out of the repository": http_kind(json_body(), path="/v2/models/../../etc/passwd/infer"),
    "http: load with a wrong key": http_kind(
        b"{}", f"{ADMIN_HEADER}: wrong", path=f"/v2/repository/models/{MULTITASK}/load"
    ),
    "http: gzip bomb": partial(bombed, size_mib=100, encoding="gzip"),
    "http: deflate bomb": partial(bombed, size_mib=100, encoding="deflate"),
    "http: broken gzip": http_kind(b"\x1f\x8b" + b"\0" * 50, "Content-Encoding: gzip"),
    "http: gzip that ends too early": http_kind(gzip.compress(json_body())[:-12], "Content-Encoding: gzip"),
    "http: unknown encoding": http_kind(json_body(), "Content-Encoding: zstd-of-my-own"),
    "http: JSON shorter than announced": http_kind(json_body(), "Inference-Header-Content-Length: 99999999"),
    "http: negative length of the JSON": http_kind(json_body(), "Inference-Header-Content-Length: -1"),
    "http: negative Content-Length": http_kind(json_body(), "Content-Length: -5"),
    "http: enormous Content-Length": http_kind(b"", "Content-Length: 99999999999"),
    "http: enormous header": http_kind(json_body(), f"X: {'a' * MIB}"),
    "http: cut body": lambda client: client.raw(f"{HEAD}Content-Length: 5000\r\n\r\n{{".encode(), answer=False),
    "http: slow body": lambda client: client.raw(
        f"{HEAD}Content-Length: 5000\r\n\r\n".encode(), *[b"{"] * 4, pause_s=SLOW_S / 5, answer=False
    ),
    "http: slow head": lambda client: client.raw(*[b"P", b"O", b"S", b"T"], pause_s=SLOW_S / 4, answer=False),
    "http: broken chunks": lambda client: client.raw(f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode()),
    # Neither
    "noise on the HTTP port": lambda client: client.raw(b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 300),
    "noise on the gRPC port": lambda client: client.raw(b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 300, grpc_port=True),
    "HTTP/1.1 on the gRPC port": lambda client: client.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", grpc_port=True),
}
"""Kind -> sends one such request and returns what became of it."""
