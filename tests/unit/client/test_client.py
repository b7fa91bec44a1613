"""The client against a fake Triton: what is sent, what comes back, and what happens when things go wrong."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time

import grpc
import pytest

from onetrunk.client import Client, DeadlineExceeded, NotReady, OneTrunkError, ServerError, UnknownTask
from onetrunk.client.readers import reader_of
from onetrunk.protocol.ensemble_info import TaskInfo
from tests.fixtures.fake_triton import EMBEDDING, TASKS
from tests.fixtures.ports import free_port

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "Server is stopping")
DEAD_STUB = (grpc.StatusCode.INTERNAL, "in ensemble 'multitask', Stub process 'head_sst2_0_0' is not healthy.")


def test_answers_carry_label_score_and_all_scores(fake, make_client):
    with make_client(fake.url) as client:
        (answer,) = client.predict("abc", tasks=["sst2"])
    prediction = answer["sst2"]
    assert prediction.label == "positive"
    assert prediction.score == pytest.approx(0.75)
    assert list(prediction.scores) == ["positive", "negative"]
    assert prediction.scores["negative"] == pytest.approx(0.25)
    assert not answer.truncated
    assert answer.ms > 0


def test_an_answer_is_a_mapping(fake, make_client):
    with make_client(fake.url) as client:
        (answer,) = client.predict("abc", tasks=["sst2"])
    assert "sst2" in answer
    assert "mood" not in answer
    assert list(answer) == ["sst2"]
    assert len(answer) == 1
    assert dict(answer) == answer.predictions
    assert answer == dict(answer) == answer
    assert answer != {}
    assert answer == dataclasses.replace(answer, ms=0.0)
    assert answer != dataclasses.replace(answer, truncated=True)
    assert answer.get("mood") is None


def test_no_proxy_of_the_environment_is_asked(fake, make_client, monkeypatch):
    for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with make_client(fake.url) as client:
        (answer,) = client.predict("abc", tasks=["sst2"])
    assert answer["sst2"].label == "positive"


def test_regression_gives_its_number(fake, make_client):
    with make_client(fake.url) as client:
        (answer,) = client.predict("abcd", "x", tasks=["stsb"])
    assert (answer["stsb"].label, answer["stsb"].score, answer["stsb"].scores) == (None, 4.0, {})
    assert answer["stsb"].lines(1) == [("", "4.00")]


@pytest.mark.parametrize(("bounds", "shown"), [((0, 1e-6), "0.00000042"), ((-1, 1), "0.00"), (None, "0.00")])
def test_a_number_is_shown_as_exactly_as_its_range_asks(bounds, shown):
    task = TaskInfo(name="n", kind="regression", form="single", range=bounds, metric="m", tap=1, layers=1, version=1)
    assert reader_of(task).read(task, [4.2e-7]).lines(1) == [("", shown)]


def test_each_row_asks_the_tasks_of_its_form(fake, make_client):
    with make_client(fake.url) as client:
        answers = client.predict(["one", "two", "three"], [None, "pair", None])
    assert [set(answer.predictions) for answer in answers] == [{"sst2", "cola"}, {"mnli", "stsb"}, {"sst2", "cola"}]
    by_outputs = {frozenset(request.outputs): request.rows for request in fake.requests}
    assert by_outputs == {
        frozenset({"sst2", "cola", "truncated"}): [("one", None), ("three", None)],
        frozenset({"mnli", "stsb", "truncated"}): [("two", b"pair")],
    }


def test_only_the_tasks_named_are_asked_for(fake, make_client):
    with make_client(fake.url) as client:
        client.predict(["one"], tasks=["cola"])
    assert fake.requests[0].outputs == ["cola", "truncated"]


def test_an_embedding_is_asked_only_by_its_name(fake, make_client):
    fake.tasks["embedding"] = dict(EMBEDDING)
    with make_client(fake.url) as client:
        assert set(client.predict(["abc"])[0].predictions) == {"sst2", "cola"}
        assert set(client.predict_tokens([[1, 2]])[0].predictions) == set(TASKS)
        (answer,) = client.predict(["abc"], tasks=["embedding"])
        (by_ids,) = client.predict_tokens([[1, 2]], tasks=["embedding"])
    assert answer["embedding"].embedding == (0.25, 0.5, 3.0)
    assert (answer["embedding"].label, answer["embedding"].scores) == (None, {})
    assert answer["embedding"].record(1) == {"embedding": [0.25, 0.5, 3.0]}
    assert answer["embedding"].lines(1) == [("[0.250, 0.500, 3.000, ...]", "")]
    assert by_ids["embedding"].embedding == (0.25, 0.5, 2.0)


def test_a_vector_of_another_size_is_no_answer(fake, make_client):
    fake.tasks["embedding"] = {**EMBEDDING, "width": 2}
    with make_client(fake.url, retries=0) as client:
        client.tasks()
        fake.tasks["embedding"]["width"] = 3
        fake.config_faults.extend([UNAVAILABLE] * 3)
        with pytest.raises(OneTrunkError):
            client.predict(["abc"], tasks=["embedding"])


@pytest.mark.parametrize("width", [None, 0, -1, "3"])
def test_an_embedding_without_its_width_is_refused_at_once(fake, make_client, width):
    fake.tasks["embedding"] = {**EMBEDDING, "width": width}
    with make_client(fake.url) as client, pytest.raises(ServerError, match="width"):
        client.tasks()


def test_tokens_are_counted_if_the_server_counts_them(fake, make_client):
    with make_client(fake.url) as client:
        assert client.predict("a b c")[0].tokens is None
    fake.counts_tokens = True
    with make_client(fake.url) as client:
        assert [answer.tokens for answer in client.predict(["a b c", "d"])] == [5, 3]
        assert client.predict_tokens([[1, 2]])[0].tokens is None


def test_a_count_for_each_row_is_demanded(fake, make_client):
    fake.counts_tokens = True
    fake.spoil = lambda response: response.outputs.remove(response.outputs[0]) or response.raw_output_contents.pop(0)
    with make_client(fake.url) as client, pytest.raises(ServerError, match="how many tokens"):
        client.predict("abc", tasks=["sst2"])


def test_long_lists_are_batched_and_keep_their_order(fake, make_client):
    texts = ["x" * (1 + (7 * n) % 53) for n in range(100)]
    with make_client(fake.url) as client:
        answers = client.predict(texts, tasks=["sst2"])
    assert [answer["sst2"].scores["negative"] for answer in answers] == pytest.approx(
        [1 / (1 + len(text)) for text in texts]
    )
    assert max(len(request.rows) for request in fake.requests) == fake.max_batch_size
    assert len(fake.requests) == 13


def test_truncated_is_said_for_the_right_row(fake, make_client):
    with make_client(fake.url) as client:
        answers = client.predict(["short", "x" * 101, "short too"])
    assert [answer.truncated for answer in answers] == [False, True, False]


def test_tokens_are_padded_and_masked(fake, make_client):
    rows = [[1, 2, 3], [4], [5, 6]]
    with make_client(fake.url) as client:
        answers = client.predict_tokens(rows, tasks=["stsb"])
    assert [answer["stsb"].score for answer in answers] == [3.0, 1.0, 2.0]
    assert sorted(fake.requests[0].rows) == sorted(rows)
    assert fake.requests[0].outputs == ["stsb"]


def test_no_texts_give_no_answers(fake, make_client):
    with make_client(fake.url) as client:
        assert client.predict([]) == []
    assert fake.requests == []


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_in_flight_are_bounded(fake, make_client, limit):
    fake.delay_s = 0.02
    with make_client(fake.url, max_in_flight=limit) as client:
        client.predict(["text"] * 100)
    assert fake.most_at_once == limit


def test_threads_share_one_client(fake):
    fake.delay_s = 0.005
    wrong = []

    def ask(length: int) -> None:
        for _ in range(10):
            (answer,) = client.predict("x" * length, tasks=["sst2"])
            if answer["sst2"].scores["negative"] != pytest.approx(1 / (1 + length)):
                wrong.append(length)

    with Client(fake.url) as client:
        threads = [threading.Thread(target=ask, args=(length,)) for length in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(fake.requests) == 80


@pytest.mark.parametrize("fault", [UNAVAILABLE, DEAD_STUB], ids=["unavailable", "dead stub"])
def test_what_may_pass_is_sent_again(fake, make_client, fault):
    fake.faults.extend([fault, None, fault, fault])
    with make_client(fake.url, retries=3) as client:
        answers = client.predict(["x" * n for n in range(1, 21)], tasks=["stsb"], pairs=["y"] * 20)
    assert [answer["stsb"].score for answer in answers] == [float(n) for n in range(1, 21)]
    assert len(fake.requests) == 3 + 3


def test_retries_end(fake, make_client):
    fake.faults.extend([DEAD_STUB] * 10)
    with make_client(fake.url, retries=2) as client, pytest.raises(NotReady, match="head_sst2_0_0"):
        client.predict("text")
    assert len(fake.requests) == 3


def test_what_will_not_pass_is_not_sent_again(fake, make_client):
    fake.faults.append((grpc.StatusCode.INTERNAL, "onnxruntime: out of memory"))
    with make_client(fake.url) as client, pytest.raises(ServerError, match="out of memory") as raised:
        client.predict("text")
    assert raised.value.status == "INTERNAL"
    assert len(fake.requests) == 1


def test_the_catalogue_is_asked_for_again_too(fake, make_client):
    fake.config_faults.extend([UNAVAILABLE, UNAVAILABLE])
    with make_client(fake.url) as client:
        assert list(client.tasks()) == ["sst2", "cola", "mnli", "stsb"]
    assert fake.config_requests == 3


def test_the_deadline_holds_for_the_whole_call(fake, make_client):
    fake.delay_s = 0.15
    with make_client(fake.url, max_in_flight=1) as client:
        client.predict("warm")
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"0\.4 s"):
            client.predict(["text"] * 80, timeout_s=0.4)
        assert time.monotonic() - began >= 0.4
    assert len(fake.requests) < 1 + 80 / fake.max_batch_size, "what was left was not asked"


def test_retries_stay_within_the_deadline(fake, make_client):
    fake.faults.extend([UNAVAILABLE] * 50)
    # The second, where the time is up while a try is on its way.
    late = (NotReady, DeadlineExceeded)
    with make_client(fake.url, retries=50, timeout_s=0.5) as client, pytest.raises(late):
        client.predict("text")
    assert fake.faults, "it did not try 50 times"


def test_a_call_that_ends_early_cancels_nothing(fake, make_client):
    """Triton 24.10 may crash on a cancelled request, so the client lets them land."""
    fake.delay_s = 0.3
    with make_client(fake.url) as client:
        client.tasks()
        with pytest.raises(DeadlineExceeded):
            client.predict(["text"] * 30, timeout_s=0.1)
    assert len(fake.requests) == 4
    assert not any(request.cancelled for request in fake.requests)


def test_a_task_added_to_the_running_server_is_found(fake, make_client):
    with make_client(fake.url) as client:
        client.predict("text")
        fake.tasks["new"] = dict(fake.tasks["sst2"])
        (answer,) = client.predict("text", tasks=["new"])
    assert answer["new"].label == "positive"


def test_a_task_taken_from_the_running_server_is_left_out(fake, make_client):
    with make_client(fake.url) as client:
        client.predict("text")
        del fake.tasks["cola"]
        (answer,) = client.predict("text")
        assert set(answer.predictions) == {"sst2"}
        with pytest.raises(UnknownTask, match="'cola'"):
            client.predict("text", tasks=["cola"])


def test_changed_labels_and_limits_are_noticed(fake, make_client):
    with make_client(fake.url) as client:
        client.predict("text")
        fake.tasks["sst2"]["labels"] = ["negative", "neutral", "positive"]
        fake.max_batch_size = 2
        answers = client.predict(["text"] * 5, tasks=["sst2"])
    assert [len(answer["sst2"].scores) for answer in answers] == [3] * 5


def _drop_output(response):
    del response.outputs[-1], response.raw_output_contents[-1]


def _not_a_number(response):
    for at, output in enumerate(response.outputs):
        if output.name == "sst2":
            response.raw_output_contents[at] = b"\xff" * len(response.raw_output_contents[at])


def _cut_content(response):
    response.raw_output_contents[0] = response.raw_output_contents[0][:-1]


def _no_content(response):
    del response.raw_output_contents[:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_output, "lacks task 'sst2'"),
        (_not_a_number, "not finite"),
        (_cut_content, "truncated"),
        (_no_content, "2 outputs came with 0 contents"),
    ],
)
def test_answers_that_cannot_be_read(fake, make_client, spoil, message):
    fake.spoil = spoil
    with make_client(fake.url) as client, pytest.raises(ServerError, match=message):
        client.predict("text", tasks=["sst2"])


def test_a_repository_of_somebody_else(fake, make_client):
    fake.max_batch_size = 0
    with make_client(fake.url) as client, pytest.raises(ServerError, match="max_batch_size 0"):
        client.tasks()


def test_no_server(make_client):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with make_client(url, retries=1) as client, pytest.raises(NotReady, match=url):
            client.predict("text")


def test_a_client_finds_a_server_that_comes_later(start_fake, make_client):
    port = free_port()
    later = threading.Timer(0.6, start_fake, args=(port,))
    later.start()
    try:
        with make_client(f"127.0.0.1:{port}", retries=20, timeout_s=60) as client:
            assert client.predict("text", tasks=["sst2"])[0]["sst2"].label == "positive"
    finally:
        later.join()


def test_calls_that_time_out_do_not_pile_up_requests(fake, make_client):
    fake.delay_s = 0.5
    with make_client(fake.url, max_in_flight=2) as client:
        client.tasks()
        for _ in range(8):
            with pytest.raises(DeadlineExceeded):
                client.predict(["text"] * 50, timeout_s=0.05)
        assert len(fake.requests) == 2
        fake.delay_s = 0.0
        assert len(client.predict(["text"] * 50)) == 50  # goes on when they have landed


def test_a_closed_client_says_so(fake, make_client):
    with make_client(fake.url) as client:
        client.tasks()
        client.close()
        with pytest.raises(OneTrunkError, match="was closed"):
            client.predict("text")


def test_closing_ends_a_call_that_waits_and_cancels_nothing(fake):
    fake.delay_s = 0.2
    client = Client(fake.url)
    client.tasks()
    threading.Timer(0.1, client.close).start()
    with pytest.raises(OneTrunkError, match="was closed"):
        client.predict(["text"] * 100)
    client.close()
    assert not any(request.cancelled for request in fake.requests)


def test_large_texts_pass(fake, make_client):
    """Above gRPC's default of 4 MiB a message."""
    fake.max_batch_size = 32
    with make_client(fake.url) as client:
        answers = client.predict(["x" * 700_000] * 10, tasks=["stsb"], pairs=["y"] * 10)
    assert {answer["stsb"].score for answer in answers} == {700_000.0}
