"""`--sample`: a bounded, uniform sample of texts, in a file that only its owner reads and that survives restarts."""

import json
import os
import random
import threading
from collections import Counter

import pytest
from scipy.stats import chisquare

from onetrunk.client.answer import Answer
from onetrunk.client.readers import LabelPrediction, LabelsPrediction
from onetrunk.client.tagging import Span, SpansPrediction, Word
from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.sample import MOST_CHARACTERS, Sample
from onetrunk.serving.front.settings import Sampling


def answer(task="mood"):
    return Answer({task: LabelPrediction(task, "good", 0.8, {"good": 0.8, "bad": 0.2})}, False)


def note(sample, texts, task="mood"):
    sample.note(texts, [None] * len(texts), [answer(task)] * len(texts))


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def make(tmp_path):
    def sample(size=20, seed=0):
        return Sample(Sampling(path=tmp_path / "texts.jsonl", size=size), random.Random(seed).random)

    return sample


def test_the_file_is_bounded_private_and_whole(make, tmp_path):
    sample = make()
    for part in range(10):
        note(sample, [f"text {part} {number}" for number in range(100)])
        note(sample, [f"other {part} {number}" for number in range(3)], "other")
        sample.write()
    path = tmp_path / "texts.jsonl"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["texts.jsonl"]
    found = lines(path)
    assert Counter(line["task"] for line in found) == {"mood": 20, "other": 20}
    assert {(line["task"], line["of"]) for line in found} == {("mood", 1000), ("other", 30)}
    assert set(found[0]) == {"task", "text", "label", "score", "time", "key", "of"}
    assert (found[0]["label"], found[0]["score"]) == ("good", 0.8)


def test_every_text_has_the_same_chance_over_restarts_and_writes(tmp_path):
    """Each of 50 texts is in a sample of 10 with probability 1/5, whenever it came and whatever was written between."""
    seen, draw = Counter(), random.Random(3)
    path = tmp_path / "texts.jsonl"
    for _ in range(400):
        path.unlink(missing_ok=True)
        for start in (0, 5, 30):
            sample = Sample(Sampling(path=path, size=10), draw.random)
            texts = [str(number) for number in range(start, {0: 5, 5: 30, 30: 50}[start])]
            note(sample, texts[:7])
            sample.write()
            note(sample, texts[7:])
            sample.write()
        found = lines(path)
        assert len(found) == 10
        assert all(line["of"] == 50 for line in found)
        seen.update(line["text"] for line in found)
    counts = [seen[str(number)] for number in range(50)]
    assert sum(counts) == 4000
    assert chisquare(counts).pvalue > 0.001


def test_a_larger_sample_than_before_stays_uniform(make, tmp_path):
    """What had greater keys is gone, so later texts get in only with keys as small as those that were kept."""
    first = make(size=10)
    note(first, [str(number) for number in range(100)])
    first.write()
    greatest = max(line["key"] for line in lines(tmp_path / "texts.jsonl"))
    later = make(size=50, seed=1)
    note(later, [str(number) for number in range(100, 200)])
    later.write()
    found = lines(tmp_path / "texts.jsonl")
    assert 10 <= len(found) < 50
    assert all(line["key"] <= greatest for line in found)
    assert {line["of"] for line in found} == {200}


def test_workers_write_into_one_file(make, tmp_path):
    samples = [make(size=50, seed=seed) for seed in range(4)]

    def work(sample, name):
        for part in range(20):
            note(sample, [f"{name} {part} {number}" for number in range(10)])
            sample.write()

    threads = [threading.Thread(target=work, args=(sample, at)) for at, sample in enumerate(samples)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(tmp_path / "texts.jsonl")
    assert len(found) == len({line["text"] for line in found}) == 50
    assert {line["of"] for line in found} == {800}
    assert len({line["text"].split()[0] for line in found}) == 4


def test_what_waits_for_a_write_is_bounded(make):
    sample = make(size=10)
    note(sample, [str(number) for number in range(5000)])
    assert len(sample._found["mood"]) < 20


def test_long_texts_are_cut_and_answers_have_no_long_lists(make, tmp_path):
    sample = make()
    labels = LabelsPrediction("many", "a", 0.9, {"a": 0.9, "b": 0.1}, ("a",))
    spans = SpansPrediction("tags", None, 0.7, {}, (Word("x", 0, 1, "O", 1.0),), (Span("t", "x", 0, 1, 0.7),))
    sample.note(["x" * 10_000], ["y\u2028"], [Answer({"many": labels, "tags": spans}, False)])
    sample.write()
    many, tags = lines(tmp_path / "texts.jsonl")
    assert (len(many["text"]), many["text_pair"], many["cut"]) == (MOST_CHARACTERS, "y\u2028", True)
    assert many["labels"] == ["a"]
    assert tags["spans"] == [{"type": "t", "text": "x", "start": 0, "end": 1, "score": 0.7}]
    assert "words" not in tags
    assert "scores" not in many


@pytest.mark.parametrize("content", ["notes\n", '{"task": "mood"}\n', "[1]\n", "\xff\n"])
def test_a_file_of_something_else_is_not_touched(make, tmp_path, content):
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="line 1"):
        make()
    assert path.read_text(encoding="latin-1") == content


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        Sample(Sampling(path=tmp_path / "none" / "texts.jsonl"))


def test_the_front_keeps_texts_only_if_it_was_told_to(make_served, tmp_path, monkeypatch):
    path = tmp_path / "kept" / "texts.jsonl"
    path.parent.mkdir()
    monkeypatch.setattr("onetrunk.serving.front.sample.WRITE_EVERY_S", 0.05)
    served = make_served(sample=Sampling(path=path, size=5))
    body = {"texts": [f"text {number}" for number in range(8)], "tasks": ["sst2"]}
    assert served.ask("POST", "/v1/predict", body)[0] == 200
    for _ in range(200):
        if path.exists():
            break
        threading.Event().wait(0.02)
    found = lines(path)
    assert len(found) == 5
    assert {line["of"] for line in found} == {8}
    assert {line["label"] for line in found} == {"positive"}


def test_by_default_nothing_is_kept(served, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert served.ask("POST", "/v1/predict", {"texts": ["a text"], "tasks": ["sst2"]})[0] == 200
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set()
