"""Drift: counts, the index by hand, the bounds of the window, several workers, and what the front's doors tell."""

import asyncio
import errno
import json
import math
import os
import subprocess
from collections import Counter

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.client.answer import Answer, TokenizedText
from onetrunk.client.readers import reader_of
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.names import CHECK_ID
from onetrunk.serving.front.drift import DriftMonitor
from onetrunk.serving.front.drift.comparison import MIN_ANSWERS, compare, index
from onetrunk.serving.front.drift.counts import Counts, count_predictions, count_scores
from onetrunk.serving.front.drift.window import MAX_AGE_S, MOST_ANSWERS, PART, Window
from onetrunk.serving.front.gateway import Gateway
from onetrunk.serving.front.questions import Question, read_message
from onetrunk.serving.front.settings import Limits
from onetrunk.tasks.kinds import get_kind
from tests.fixtures.fake_triton import TASKS
from tests.fixtures.stand_ins import stand_in

NAMED = Question("multitask", (), (), ("mood",))
EVEN = [0, 0, 0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2]


def task(kind="classification", labels=("bad", "good"), **more):
    return TaskInfo.model_validate(
        {"name": "mood", "kind": kind, "form": "single", "labels": labels, "metric": "m", "tap": 1, "layers": 1,
         "version": 1, **more}
    )  # fmt: skip


MOOD = task(reference={"rows": 100, "labels": [0.5, 0.5], "none_of_these": 0.0, "confidence": EVEN, "entropy": 0.6})


def sure(count, good, confidence=0.75):
    """Scores of which so many say good."""
    rows = [[1 - confidence, confidence]] * good + [[confidence, 1 - confidence]] * (count - good)
    return np.array(rows, dtype=np.float32)


def answers(scores, of=MOOD):
    reader = reader_of(of)
    return [Answer({of.name: reader.read(of, row)}, False) for row in scores.tolist()]


def test_the_index_by_hand_and_without_smoothing_of_what_is_equal():
    e, f = (np.array(one) / 1.003 for one in ([0.501, 0.301, 0.201], [0.251, 0.501, 0.251]))
    assert index([0.5, 0.3, 0.2], [25, 50, 25]) == pytest.approx(float(((f - e) * np.log(f / e)).sum()))
    assert index([0.5, 0.3, 0.2], [50, 30, 20]) == pytest.approx(0, abs=1e-12)
    assert index([1, 0], [0, 7]) == pytest.approx(2 * (1.001 - 0.001) / 1.002 * math.log(1001))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("classification", {"options": {"none_below": 0.5}}),
        ("multilabel", {"fitted": {"thresholds": [0.3, 0.5, 0.7]}}),
    ],
)
def test_counts_are_those_of_the_builder(kind, config):
    """What the front counts of an answer is what the builder counted on the dev data."""
    draw, labels = np.random.default_rng(1), ("a", "b", "c")
    scores = draw.dirichlet([1, 1, 1], size=300).astype(np.float32)

    class Config:
        range = None
        options = config.get("options", {})
        fitted = config.get("fitted", {})

    Config.labels = labels
    reference = get_kind(kind).answers.reference(scores, Config())
    served = task(kind, labels, reference=reference, none_below=0.5, thresholds=[0.3, 0.5, 0.7])
    by_scores = count_scores(served, scores)
    by_reading = count_predictions(served, [reader_of(served).read(served, row) for row in scores.tolist()])
    assert (by_scores.labels, by_scores.bins) == (by_reading.labels, by_reading.bins)
    assert by_scores.entropy == pytest.approx(by_reading.entropy)
    found = compare(served, by_scores)
    assert found.psi == pytest.approx({"labels": 0, "confidence": 0}, abs=1e-5)
    assert found.none_of_these == pytest.approx(reference.none_of_these, abs=1e-5)
    assert found.entropy == pytest.approx(reference.entropy, abs=1e-4)


def test_counts_of_tags_and_numbers_are_those_of_the_builder():
    draw, types = np.random.default_rng(2), ("x", "y")
    tags = draw.integers(0, 5, size=(300, 7)) * (draw.random((300, 7)) < 0.4)
    scores = np.stack([tags, np.full(tags.shape, 0.9)], axis=-1).astype(np.float32)

    class Config:
        labels, options, fitted, range = types, {}, {}, (0.0, 4.0)

    reference = get_kind("tagging").answers.reference(scores, Config())
    served = task("tagging", types, scheme="BIO", reference=reference)
    found = compare(served, count_scores(served, scores))
    assert found.psi == pytest.approx({"labels": 0}, abs=1e-5)
    assert found.spans == pytest.approx(reference.spans, abs=1e-3)
    numbers = draw.uniform(-1, 5, size=(400, 1)).astype(np.float32)
    reference = get_kind("regression").answers.reference(numbers, Config())
    served = task("regression", None, range=(0, 4), reference=reference)
    assert compare(served, count_scores(served, numbers)).psi == pytest.approx({"numbers": 0}, abs=1e-5)
    assert compare(served, count_scores(served, numbers / 3)).psi["numbers"] > 0.25


def test_spans_count_as_in_the_reference_whoever_asks():
    """Those of tokens, though a client reads whole words, of which each is in one span."""
    served = task("tagging", ("x", "y"), scheme="BIO", reference={"rows": 9, "labels": [0.5, 0.5], "spans": 1.0})
    # "un" and "##well" begin two spans in one word, of two types or of one.
    tags = [[0, 1, 3, 0, 0, 0], [0, 1, 1, 0, 0, -1], [0, 0, 0, 0, -1, -1]]
    scores = np.stack([np.array(tags), np.full((3, 6), 0.9)], axis=-1).astype(np.float32)
    words = np.array([[-1, -1, -1], [0, 0, 2], [0, 2, 6], [1, 7, 10], [-1, -1, -1], [-1, -1, -1]])
    text = TokenizedText("unwell fox", False, words)
    read = [reader_of(served).read(served, row.tolist(), text) for row in scores]
    assert [len(one.spans) for one in read] == [1, 1, 0], "a word is in one span at most"
    # Shorter batches are padded less.
    read[2] = reader_of(served).read(served, scores[2, :4].tolist(), TokenizedText("unwell fox", False, words[:4]))
    counted = count_predictions(served, read)
    assert counted == count_scores(served, scores)
    assert (counted.spans, counted.labels) == (4, {0: 2, 1: 1, 2: 1})


def test_rare_labels_are_compared_together():
    """Of 51 labels, 50 are rare: three categories, whatever the mix of the rare ones."""
    labels = tuple(f"l{number}" for number in range(51))
    served = task(labels=labels, reference={"rows": 1000, "labels": [0.5] + [0.01] * 50, "none_of_these": 0.0})
    counts = Counts(200)
    counts.labels.update({0: 100, 7: 100})
    assert compare(served, counts).psi["labels"] == pytest.approx(0, abs=1e-6)
    counts.labels.update({0: -100, 7: 100})
    assert compare(served, counts).psi["labels"] > 1


def test_few_answers_are_not_compared():
    few, enough = (Counts(answers, bins=Counter({7: answers})) for answers in (MIN_ANSWERS - 1, 200))
    for counts in (few, enough):
        counts.labels[0] = counts.answers
    assert compare(MOOD, few).psi == {}
    assert compare(MOOD, few).answers == MIN_ANSWERS - 1
    assert set(compare(MOOD, enough).psi) == {"labels", "confidence"}
    assert compare(task(), enough) is None, "a bundle without a reference says nothing"


def test_the_window_keeps_the_last_answers_of_a_day():
    window = Window()
    for number in range(100):
        part = Counts(PART, entropy=PART * 0.5)
        part.labels[number % 2] = PART
        window.add(part, float(number))
        assert window.counts(float(number)).answers <= MOST_ANSWERS
    counts = window.counts(99.0)
    assert counts.answers == MOST_ANSWERS == sum(counts.labels.values())
    assert counts.entropy == pytest.approx(MOST_ANSWERS * 0.5)
    assert len(window._parts) == MOST_ANSWERS // PART
    assert window.counts(98.5 + MAX_AGE_S).answers == PART, "all but the last are too old"
    assert window.counts(99.5 + MAX_AGE_S).answers == 0


def test_another_version_begins_a_new_window():
    monitor = DriftMonitor()
    monitor.note(answers(sure(300, 150)))
    assert monitor.drifts({"mood": MOOD})["mood"].answers == 300
    later = MOOD.model_copy(update={"version": 2})
    assert monitor.drifts({"mood": later})["mood"].answers == 0
    monitor.note(answers(sure(120, 120)))
    assert monitor.drifts({"mood": later})["mood"].answers == 120
    assert monitor.drifts({}) == {}


def test_answers_wait_until_the_tasks_are_known():
    """A worker of the front answers before it has read the tasks."""
    monitor = DriftMonitor()
    monitor.note(answers(sure(100, 50)))
    monitor.note_response(response(sure(50, 25)).SerializeToString(), NAMED)
    monitor.count({})
    assert monitor.drifts({"mood": MOOD})["mood"].answers == 150


def test_what_waits_to_be_counted_is_bounded():
    monitor = DriftMonitor()
    for _ in range(30):
        monitor.note(answers(sure(200, 100)))
        monitor.note_response(bytes(2 << 20), NAMED)
    assert len(monitor._answers) == 2000
    assert monitor._response_bytes <= 8 << 20
    assert monitor.drifts({"mood": MOOD})["mood"].answers == 2000


def asking(texts, pairs=None, outputs=(), raw=True):
    """A question about texts, or about pairs, as the door for gRPC reads it."""
    message = service_pb2.ModelInferRequest(model_name="multitask")
    for name in outputs:
        message.outputs.add(name=name)
    for name, column in (("text", texts), ("text_pair", pairs)):
        if column is not None:
            tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(column), 1])
            if raw:
                content = b"".join(len(text).to_bytes(4, "little") + text for text in column)
                message.raw_input_contents.append(content)
            else:
                tensor.contents.bytes_contents.extend(column)
    return read_message(message, Limits(max_texts=100))


def response(scores, request_id="", name="mood"):
    message = service_pb2.ModelInferResponse(model_name="multitask", id=request_id)
    message.outputs.add(name=name, datatype="FP32", shape=scores.shape)
    message.raw_output_contents.append(scores.astype(np.float32).tobytes())
    return message


def test_answers_that_are_passed_on_count_and_checks_do_not():
    monitor = DriftMonitor()
    monitor.note_response(response(sure(150, 75)).SerializeToString(), NAMED)
    monitor.note_response(response(sure(900, 75), CHECK_ID).SerializeToString(), NAMED)
    lying = response(sure(10, 5))
    lying.outputs[0].shape[0] = 900
    shared = response(sure(10, 5))
    shared.outputs.add(name="other", datatype="FP32", shape=[10, 2])
    for wrong in (lying.SerializeToString(), shared.SerializeToString(), b"\xff\xff", b""):
        monitor.note_response(wrong, NAMED)
    monitor.note_response(response(np.full((10, 2), np.nan)).SerializeToString(), NAMED)
    monitor.note_response(response(np.ones((10, 3))).SerializeToString(), NAMED)
    assert monitor.drifts({"mood": MOOD})["mood"].answers == 150


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("outputs", [(), ("mood", "both")])
def test_answers_count_only_if_the_texts_have_the_tasks_form(raw, outputs):
    """Without names of outputs, Triton answers each task about each row."""
    both = MOOD.model_copy(update={"name": "both", "form": "pair"})
    tasks = {"mood": MOOD, "both": both}
    monitor = DriftMonitor()

    def note(question, rows):
        answered = response(sure(rows, rows // 2))
        answered.MergeFrom(response(sure(rows, rows // 2), name="both"))
        monitor.note_response(answered.SerializeToString(), question)

    def counted():
        return {name: drift.answers for name, drift in monitor.drifts(tasks).items()}

    note(asking([b"a text"] * 10, outputs=outputs, raw=raw), 10)
    assert counted() == {"mood": 10, "both": 0}
    note(asking([b"a text"] * 20, [b"another"] * 20, outputs, raw), 20)
    assert counted() == {"mood": 10, "both": 20}
    note(asking([b"a text"] * 5, [b"", b"", b"another", b"", b""], outputs, raw), 5)
    assert counted() == {"mood": 14, "both": 21}
    note(asking([b"a text"] * 5, [b"another"] * 4, outputs, raw), 5)
    assert counted() == {"mood": 14, "both": 21}, "not as many as there are answers"
    tokens = service_pb2.ModelInferRequest(model_name="multitask_tokens")
    tokens.inputs.add(name="input_ids", datatype="INT64", shape=[3, 1])
    for name in outputs:
        tokens.outputs.add(name=name)
    note(read_message(tokens, Limits()), 3)
    assert counted() == ({"mood": 17, "both": 24} if outputs else {"mood": 14, "both": 21})


def test_workers_add_up_what_they_counted(tmp_path):
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        first = DriftMonitor(tmp_path)
        first.note(answers(sure(200, 200)))
        first.count({"mood": MOOD})
        told = tmp_path / f"drift-{os.getpid()}.json"
        told.rename(tmp_path / f"drift-{sleeper.pid}.json")
        second = DriftMonitor(tmp_path)
        second.note(answers(sure(100, 0)))
        found = second.drifts({"mood": MOOD})["mood"]
        assert found.answers == 300
        expected = index([0.5, 0.5, 0], [100, 200, 0])
        assert found.psi["labels"] == pytest.approx(expected, abs=1e-4)
        assert second.drifts({"mood": MOOD.model_copy(update={"version": 2})})["mood"].answers == 0
    finally:
        sleeper.kill()
        sleeper.wait()
    assert second.drifts({"mood": MOOD})["mood"].answers == 0, "a worker that has died tells nothing any more"


def test_a_full_disk_is_told_once_and_so_is_its_end(tmp_path, monkeypatch, caplog):
    monitor = DriftMonitor(tmp_path)

    def count():
        monitor.note(answers(sure(1, 1)))
        monitor.count({"mood": MOOD})

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("onetrunk.serving.front.drift.monitor.os", stand_in(os, replace=full))
        for _ in range(5):
            count()
    count()
    count()
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "No space left on device",
        "other workers are told again what was counted",
    ]


def test_metrics_are_made_once_a_second():
    now = [1000.0]
    monitor = DriftMonitor(clock=lambda: now[0])
    window = 'onetrunk_drift_window_answers{task="mood"}'

    def told(tasks):
        return f"{window} 10.0" in monitor.text(tasks).decode()

    assert not told({"mood": MOOD})
    monitor.note(answers(sure(10, 5)))
    assert not told({"mood": MOOD})
    now[0] += 1.0
    assert told({"mood": MOOD})
    assert window not in monitor.text({}).decode(), "other tasks are told at once"


def test_the_doors_tell_the_drift(make_served, monkeypatch):
    """The fake says the second label of every text: only that one, with great confidence."""
    even = {"rows": 50, "labels": [0.5, 0.5], "none_of_these": 0.0, "confidence": EVEN, "entropy": 0.9}
    monkeypatch.setitem(TASKS, "sst2", {**TASKS["sst2"], "reference": even})
    served = make_served()
    text = "a text of some length"
    status, _ = served.ask("POST", "/v1/predict", {"texts": [text] * 150, "tasks": ["sst2"]})
    assert status == 200
    with Client(served.grpc_url) as client:
        client.predict([text] * 60, tasks=["sst2"])
    _, listed = served.ask("GET", "/v1/tasks")
    assert set(listed["drift"]) == {"sst2"}, "other bundles have no reference"
    found = listed["drift"]["sst2"]
    assert found["answers"] == 210
    assert found["psi"]["labels"] == pytest.approx(index([0.5, 0.5, 0], [0, 1, 0]), abs=1e-4)
    assert found["psi"]["confidence"] == pytest.approx(index(EVEN, [0] * 9 + [1]), abs=1e-4)
    _, metrics, _ = served.raw("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in metrics.decode().splitlines() if not line.startswith("#"))
    assert float(lines['onetrunk_drift_psi{of="labels",task="sst2"}']) == found["psi"]["labels"]
    assert float(lines['onetrunk_drift_window_answers{task="sst2"}']) == 210
    assert float(lines['onetrunk_none_of_these_share{task="sst2"}']) == 0
    assert float(lines['onetrunk_answer_entropy_reference{task="sst2"}']) == 0.9
    assert float(lines['onetrunk_answer_entropy{task="sst2"}']) == pytest.approx(found["entropy"])
    assert not any('task="cola"' in line for line in lines if line.startswith("onetrunk_drift"))
    with AdminClient(served.grpc_url) as admin:
        assert admin.drifts() == {"sst2": found}


def test_every_worker_tells_the_drift_whatever_it_was_asked_before(make_served, monkeypatch):
    """A worker of the front that has read no tasks yet reads them when it is asked for the drift."""

    async def read_none(gateway):
        await asyncio.sleep(3600)

    reference = {"rows": 50, "labels": [0.5, 0.5], "none_of_these": 0.0, "confidence": EVEN, "entropy": 0.9}
    monkeypatch.setitem(TASKS, "sst2", {**TASKS["sst2"], "reference": reference})
    monkeypatch.setattr(Gateway, "remember_tasks", read_none)
    with AdminClient(make_served().grpc_url) as admin:
        assert admin.drifts()["sst2"]["answers"] == 0


def test_a_server_that_cannot_tell_is_no_error(start_fake):
    with AdminClient(start_fake().url) as triton, AdminClient("127.0.0.1:1") as nobody:
        assert triton.drifts() == nobody.drifts() == {}


def test_counts_are_json():
    counts = count_scores(MOOD, sure(10, 4))
    assert Counts.of_record(json.loads(json.dumps(counts.record()))) == counts
