"""Input that a real Triton must refuse or make sense of, alone and beside good input."""

from __future__ import annotations

import threading
from collections import Counter

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from onetrunk.client import BadInput, Client, DeadlineExceeded, ServerError
from onetrunk.client.core import CHANNEL_OPTIONS
from onetrunk.client.retry import classify_error
from onetrunk.client.wire import Tensor, bytes_tensor, request_message
from onetrunk.protocol.names import MULTITASK, MULTITASK_TOKENS


@pytest.mark.parametrize(
    "text",
    [
        "NUL \0 within",
        "emoji \U0001f468‍\U0001f469‍\U0001f467 \U0001f1e6\U0001f1f9",
        "مرحبا بالعالم",
        "שלום עולם",
        "汉字",
        "\u200eleft",
        "a" * 5000,
        "[CLS] [SEP] [PAD]",
        "#" * 300,
    ],
    ids=["nul", "emoji", "arabic", "hebrew", "chinese", "mark", "one long word", "special", "signs"],
)
def test_strange_texts_get_a_sane_answer(client, any_task, text):
    task, pair = any_task
    (answer,) = client.predict(text, pair, [task])
    assert np.isfinite(answer[task].score)


def test_ten_megabytes_are_refused_by_name_and_harm_no_other(client, any_task):
    task, pair = any_task
    with pytest.raises(BadInput) as raised:
        client.predict(["fine", "word " * 2_000_000, "fine too"], [pair] * 3, [task])
    assert [problem.row for problem in raised.value.problems] == [1]
    assert client.predict("fine", pair, [task])[0].truncated is False


def bad_requests(catalogue):
    """Name -> (model, inputs) of requests that must be refused."""
    ids = np.full((1, 4), 1, np.int64)
    many = catalogue.max_batch_size + 1
    return {
        "blank": (MULTITASK, {"text": column(b" \t\n")}),
        "empty": (MULTITASK, {"text": column(b"")}),
        "control characters": (MULTITASK, {"text": column(b"\x01\x02")}),
        "not UTF-8": (MULTITASK, {"text": column(b"\xff\xfe")}),
        "pair not UTF-8": (MULTITASK, {"text": column(b"a"), "text_pair": column(b"\xc3\x28")}),
        "too many rows": (MULTITASK, {"text": column(*[b"a"] * many)}),
        "no text": (MULTITASK, {"text_pair": column(b"a")}),
        "wrong type": (MULTITASK_TOKENS, {"input_ids": ids.astype(np.int32)}),
        "id too high": (MULTITASK_TOKENS, {"input_ids": ids * 10**9}),
        "id negative": (MULTITASK_TOKENS, {"input_ids": -ids}),
        "no tokens": (MULTITASK_TOKENS, {"input_ids": ids[:, :0]}),
        "too many tokens": (MULTITASK_TOKENS, {"input_ids": np.ones((1, catalogue.max_length + 1), np.int64)}),
        "mask with a hole": (MULTITASK_TOKENS, {"input_ids": ids, "attention_mask": np.array([[1, 0, 1, 1]])}),
        "type 2": (MULTITASK_TOKENS, {"input_ids": ids, "token_type_ids": ids * 2}),
        "unknown output": (MULTITASK, {"text": column(b"a")}),
    }


def column(*texts):
    """Texts as the server reads them, which need not be UTF-8. *Shape:* (texts, 1)"""
    return np.array([[text] for text in texts], dtype=np.object_)


def tensor(name, values):
    """An input as the client puts it on the wire, also of a type that the client never sends."""
    if values.dtype == np.object_:
        return bytes_tensor(name, [row[0] for row in values])
    return Tensor(name, values.dtype.name.upper(), values.shape, values.tobytes())


@pytest.fixture(scope="module")
def send(served):
    """Sends what the client would refuse over the client's own wire, and raises the error that the client would."""
    with grpc.insecure_channel(served.grpc_url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def send(model, inputs, outputs):
            request = request_message(model, [tensor(name, values) for name, values in inputs.items()], outputs)
            try:
                stub.ModelInfer(request, timeout=60)
            except grpc.RpcError as error:
                rows = range(max(map(len, inputs.values())))
                raise classify_error(error, url=served.grpc_url, timeout_s=60, rows=rows).error from None

        yield send


def test_bad_requests_are_refused_and_harm_none_beside_them(client, send, any_task, equal):
    """Good and bad ones together under load, all counted."""
    task, pair = any_task
    texts = [f"a {word} text of {'many ' * n}words" for n, word in enumerate(("good", "bad", "short", "long"))]
    expected = client.predict(texts, [pair] * len(texts), [task])
    refused: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    good = 0
    rounds, askers = 3, 3
    finished = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        nonlocal good
        try:
            while not finished.is_set():
                equal(client.predict(texts, [pair] * len(texts), [task]), expected, [task])
                good += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(askers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(rounds):
            for name, (model, inputs) in bad_requests(client.catalogue()).items():
                try:
                    send(model, inputs, ["no_such_task"] if name == "unknown output" else [task])
                    answered[name] += 1
                except BadInput:
                    refused[name] += 1
                except ServerError as error:  # of a request that the client itself never makes
                    refused[name if error.status == "INVALID_ARGUMENT" else f"{name}: {error}"] += 1
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert good >= rounds * askers
    assert not answered
    assert refused == dict.fromkeys(bad_requests(client.catalogue()), rounds)


def test_the_server_names_the_row_that_is_wrong(send, any_task):
    task, _ = any_task
    with pytest.raises(BadInput) as raised:
        send(MULTITASK, {"text": column(b"a", b"b", b"\xff", b"c")}, [task])
    assert [problem.row for problem in raised.value.problems] == [2]


def test_calls_that_time_out_do_no_harm(served, client, any_task):
    """Triton 24.10 may crash on a cancelled request; the client's deadline must not cause one."""
    task, pair = any_task
    ended = 0
    with Client(served.grpc_url, max_in_flight=4) as hasty:
        hasty.tasks()
        for n in range(30):
            try:
                hasty.predict(["a text"] * 3000, [pair] * 3000, timeout_s=0.03 + 0.003 * n)
            except DeadlineExceeded:
                ended += 1
    assert ended >= 15
    assert client.predict("a text", pair, [task])[0][task].score is not None
