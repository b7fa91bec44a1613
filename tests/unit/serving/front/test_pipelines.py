"""`pipeline` against a front: the shapes of transformers' pipelines of the same names, and errors."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from onetrunk.client import BadInput, DeadlineExceeded, NotReady, ServerError, Tls, TlsError, UnknownTask, pipeline
from onetrunk.serving.front.settings import ServerTls
from tests.unit.serving.front.conftest import Served

POSITIVE, NEGATIVE = {"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}


@pytest.fixture(autouse=True)
def slots(served: Served) -> None:
    served.triton.tasks["slots"] = {
        **{"kind": "tagging", "form": "single", "labels": ["name"], "scheme": "BIO", "metric": "f1"},
        **{"tap": 1, "layers": 1, "version": 1},
    }


def test_no_proxy_of_the_environment_is_asked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert pipeline("text-classification", served.url, model="sst2")("abc") == [POSITIVE]


def test_labels_in_the_shapes_of_transformers(served: Served) -> None:
    classify = pipeline("text-classification", served.url, model="sst2")
    assert classify("abc") == [POSITIVE]
    assert classify(["abc", "abc"]) == [POSITIVE, POSITIVE]
    assert classify("abc", top_k=1) == [POSITIVE]
    assert classify("abc", top_k=None) == [POSITIVE, NEGATIVE]
    assert classify(["abc"], top_k=2) == [[POSITIVE, NEGATIVE]]
    assert classify([]) == []
    assert classify({"text": "abc"}) == POSITIVE


def test_pairs_and_numbers(served: Served) -> None:
    similar = pipeline("text-classification", served.url, model="stsb")
    pair = {"text": "abcd", "text_pair": "e"}
    assert similar(pair) == {"label": "LABEL_0", "score": 4.0}
    assert similar([pair, pair]) == [{"label": "LABEL_0", "score": 4.0}] * 2
    assert similar(pair, top_k=None) == [{"label": "LABEL_0", "score": 4.0}]


def test_spans_and_words(served: Served) -> None:
    tag = pipeline("token-classification", served.url)
    found = {"score": 0.5, "word": "Ann", "start": 5, "end": 8}
    assert tag("call Ann now") == [{"entity_group": "name", **found}]
    assert tag("call Ann now", aggregation_strategy="none") == [{"entity": "B-name", "index": 2, **found}]
    assert tag(["call Ann now", "call"]) == [[{"entity_group": "name", **found}], []]


def test_long_lists_are_several_requests(served: Served) -> None:
    texts = ["x" * (1 + at % 7) for at in range(600)]
    answers = pipeline("sentiment-analysis", served.url, model="sst2")(texts, top_k=None)
    assert [answer[-1]["score"] for answer in answers] == [
        pytest.approx(min(1 / (1 + len(text)), 1 - 1 / (1 + len(text))), abs=1e-5) for text in texts
    ]


def test_wrong_input(served: Served) -> None:
    with pytest.raises(BadInput, match="no pipeline 'fill-mask': there are text-classification"):
        pipeline("fill-mask", served.url)
    with pytest.raises(BadInput, match="name the task as `model`: sst2, cola, mnli, stsb can answer"):
        pipeline("text-classification", served.url)
    with pytest.raises(UnknownTask, match="no task 'slots' that can answer text-classification"):
        pipeline("text-classification", served.url, model="slots")
    with pytest.raises(BadInput, match="give the front's address for HTTP"):
        pipeline("text-classification", "127.0.0.1:8001", model="sst2")
    classify = pipeline("text-classification", served.url, model="sst2")
    with pytest.raises(BadInput, match="an input is"):
        classify([["a", "b"]])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="row 0"):
        classify("")
    with pytest.raises(BadInput, match="give 'simple' or 'none'"):
        pipeline("ner", served.url)("a", aggregation_strategy="max")


def test_servers_that_do_not_answer(served: Served) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.2 s"):
            pipeline("ner", url, timeout_s=0.2)
    with pytest.raises(NotReady, match="no server answers"):
        pipeline("ner", url, timeout_s=5)
    with pytest.raises(ServerError, match="this is no OneTrunk front"):
        pipeline("ner", f"{served.url}/elsewhere")


def test_a_task_that_was_removed(served: Served) -> None:
    classify = pipeline("text-classification", served.url, model="sst2")
    served.triton.tasks = {"cola": served.triton.tasks["cola"]}
    with pytest.raises(UnknownTask, match="unknown task 'sst2'"):
        classify("abc")


def test_tls(make_served: Callable[..., Served], tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    for name, authority in (("ours", ours), ("theirs", theirs)):
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    for name, made in (("server", ours.issue_cert("front.example")), ("client", ours.issue_cert("client"))):
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    certificate = ServerTls.read(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ours.pem")
    url = make_served(tls=certificate).url.replace("http:", "https:")
    client = {"certificate": tmp_path / "client.pem", "key": tmp_path / "client.key"}

    def ask(tls: Tls | None) -> object:
        return pipeline("text-classification", url, model="sst2", tls=tls)("abc")

    assert ask(Tls(ca=tmp_path / "ours.pem", server_name="front.example", **client)) == [POSITIVE]  # type: ignore[arg-type]
    with pytest.raises(TlsError, match="is not accepted"):
        ask(Tls(ca=tmp_path / "theirs.pem", server_name="front.example", **client))  # type: ignore[arg-type]
    with pytest.raises(TlsError, match="is not accepted"):
        ask(Tls(ca=tmp_path / "ours.pem", **client))  # type: ignore[arg-type]
    with pytest.raises(TlsError, match="is not accepted"):
        ask(None)
    with pytest.raises((TlsError, NotReady), match="certificate"):
        ask(Tls(ca=tmp_path / "ours.pem", server_name="front.example"))
    with pytest.raises(TlsError, match="without its key"):
        ask(Tls(certificate=tmp_path / "client.pem"))
    with pytest.raises(BadInput, match="give an address that begins with https"):
        pipeline("text-classification", url.replace("https:", "http:"), model="sst2", tls=Tls())
    with pytest.raises(BadInput, match="api_key: the API key has a blank"):
        pipeline("text-classification", url, model="sst2", api_key="two words")


@contextlib.contextmanager
def answering(content: bytes, hangs_s: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that sends this to whoever asks, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        asked.append(connection.recv(2**16))
                        connection.sendall(content)
                        time.sleep(hangs_s)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked


def test_a_key_is_sent_nowhere_else() -> None:
    with answering(b"") as (elsewhere, stolen):
        redirect = f"HTTP/1.1 302 Found\r\nlocation: {elsewhere}/\r\ncontent-length: 0\r\n\r\n"
        with answering(redirect.encode()) as (url, asked):
            with pytest.raises(ServerError, match="status 302, which sends to another address"):
                pipeline("text-classification", url, api_key="secret-secret-secret")
            assert b"secret-secret-secret" in asked[0]
        assert stolen == []


def of(status: str, body: str, length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {length or len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("content", "hangs_s", "error", "message"),
    [
        (of("500 x", "abc", 100), 0.0, ServerError, "the server answered with the status 500"),
        (of("500 x", "abc", 100), 3.0, DeadlineExceeded, "did not answer within 1 s"),
        (of("200 OK", "[]"), 0.0, ServerError, "answers otherwise than a OneTrunk front"),
        (of("200 OK", "{}"), 0.0, ServerError, "answers otherwise than a OneTrunk front"),
        (of("200 OK", '{"tasks": {"sst2": []}}'), 0.0, ServerError, "answers otherwise than a OneTrunk front"),
        (of("200 OK", "what"), 0.0, ServerError, "does not answer in JSON"),
        (of("504 x", '{"error": "too late"}'), 0.0, DeadlineExceeded, "too late"),
        (of("400 x", '{"error": "no text"}'), 0.0, BadInput, "no text"),
    ],
)
def test_what_no_front_would_answer_is_one_of_the_errors(
    content: bytes, hangs_s: float, error: type[Exception], message: str
) -> None:
    with answering(content, hangs_s) as (url, _), pytest.raises(error, match=message):
        pipeline("text-classification", url, timeout_s=1.0)


@pytest.mark.parametrize(
    ("url", "timeout_s"),
    [("http://127.0.0.1:abc", 1.0), ("http://[::1", 1.0), ("http://127.0.0.1:9", -1), ("http://127.0.0.1:9", "5")],
)
def test_wrong_arguments(url: str, timeout_s: float) -> None:
    with pytest.raises(BadInput, match=r"url is|timeout_s is"):
        pipeline("text-classification", url, timeout_s=timeout_s)
