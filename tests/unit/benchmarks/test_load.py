"""The closed loop: what it sends, reads and counts, against a server of the standard library."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.compare.load import ask, run_load
from benchmarks.peers.peer import HttpRequest
from onetrunk.protocol.errors import ServerError


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, body))
        answer = json.dumps({"path": self.path, "length": len(body)}).encode()
        self.send_response(500 if self.path == "/fails" else 200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (answer[:5], answer[5:]):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/plain", "/chunked"])
def test_answers_are_read_whatever_their_form(server, path):
    requests = [HttpRequest(path, b'{"text": "a film"}'), HttpRequest(path, b"{}")]
    bodies = [json.loads(body) for body in ask(*server.server_address, requests)]
    assert bodies == [{"path": path, "length": 18}, {"path": path, "length": 2}]


def test_every_text_is_sent_and_a_text_counts_once_however_many_requests_it_takes(server):
    texts = [[HttpRequest("/one", b"1" * number), HttpRequest("/two", b"2")] for number in range(1, 4)]
    load = run_load(*server.server_address, texts, concurrency=2, seconds=0.4)
    assert load.texts * 2 == len(server.seen)
    assert {len(body) for path, body in server.seen if path == "/one"} == {1, 2, 3}
    assert 0 < load.p50_ms <= load.p99_ms
    assert load.throughput == pytest.approx(load.texts / 0.4, rel=0.5)


def test_a_status_that_is_no_success_ends_the_run_with_the_servers_words(server):
    with pytest.raises(ServerError, match=r"status 500.*fails"):
        run_load(*server.server_address, [[HttpRequest("/fails", b"{}")]], concurrency=2, seconds=5)


def test_a_server_that_hangs_up_is_told(server):
    address = server.server_address
    server.RequestHandlerClass = type(
        "Mute", (Handler,), {"do_POST": lambda self: setattr(self, "close_connection", 1)}
    )
    with pytest.raises(ServerError, match="closed the connection"):
        ask(*address, [HttpRequest("/", b"{}")])
