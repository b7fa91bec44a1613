"""`--sample`: a bounded, uniform sample of texts, in a file that only its owner reads and that survives restarts."""

import asyncio
import errno
import fcntl
import json
import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import chisquare

from onetrunk.client.answer import Answer
from onetrunk.client.readers import EmbeddingPrediction, LabelPrediction, LabelsPrediction
from onetrunk.client.tagging import Span, SpansPrediction, Word
from onetrunk.protocol.errors import UserError
from onetrunk.serving.cli import serve_repo
from onetrunk.serving.front import sample as sample_module
from onetrunk.serving.front.cli import serve_front
from onetrunk.serving.front.sample import MOST_TEXT_BYTES, Sample, check_sample
from onetrunk.serving.front.settings import Sampling
from tests.fixtures.stand_ins import stand_in


def answer(task="mood"):
    return Answer({task: LabelPrediction(task, "good", 0.8, {"good": 0.8, "bad": 0.2})}, False)


def note(sample, texts, task="mood"):
    sample.note(texts, [None] * len(texts), [answer(task)] * len(texts))


def until(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


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
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "texts.jsonl": 0o600,
        ".texts.jsonl.lock": 0o600,
    }
    found = lines(path)
    assert Counter(line["task"] for line in found) == {"mood": 20, "other": 20}
    assert {(line["task"], line["of"]) for line in found} == {("mood", 1000), ("other", 30)}
    assert set(found[0]) == {"task", "text", "label", "score", "time", "key", "of"}
    assert (found[0]["label"], found[0]["score"]) == ("good", 0.8)


def test_every_text_has_the_same_chance_over_restarts_and_writes(tmp_path):
    """Each of 50 texts is in a sample of 10 with probability 1/5, whenever it came and whatever was written between."""
    seen, draw = Counter(), random.Random(3)
    path = tmp_path / "texts.jsonl"
    for _ in range(100):
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
    assert sum(counts) == 1000
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
    assert len(sample._noted.lines["mood"]) < 20


@pytest.mark.parametrize("fails_first", [False, True])
def test_a_bound_in_bytes_leaves_the_sample_uniform(tmp_path, monkeypatch, fails_first):
    """What was dropped for want of room had the greatest keys, so no line of the sample has greater ones."""
    monkeypatch.setattr(sample_module, "MOST_NOTED_BYTES", 100_000)
    draw = random.Random(5)
    seen = Counter()
    for turn in range(60):
        path = tmp_path / f"{turn}.jsonl"
        sample = Sample(Sampling(path=path, size=1000), draw.random)
        note(sample, [f"first {number}" for number in range(20)])
        if fails_first:
            path.mkdir()
            with pytest.raises(UserError):
                sample.write()
            path.rmdir()
        else:
            sample.write()
        note(sample, [f"later {number} {'x' * 3000}" for number in range(80)])
        assert sample._noted.size_bytes <= 100_000
        sample.write()
        found = lines(path)
        assert {line["of"] for line in found} == {100}
        assert all(line["key"] <= sample._limit["mood"] for line in found)
        seen.update(line["text"].split()[0] for line in found)
    expected = np.array([0.2, 0.8]) * sum(seen.values())
    assert chisquare([seen["first"], seen["later"]], expected).pvalue > 0.001


def test_the_file_is_bounded_in_bytes(make, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_module, "MOST_FILE_BYTES", 50_000)
    sample = make(size=100)
    note(sample, ["ä" * 5000] * 60)
    note(sample, ["short"] * 3, "other")
    sample.write()
    path = tmp_path / "texts.jsonl"
    assert 30_000 < path.stat().st_size <= 50_000
    found = lines(path)
    assert {line["text"] for line in found} == {"ä" * (MOST_TEXT_BYTES // 2), "short"}
    assert Counter(line["task"] for line in found)["other"] == 3
    note(sample, ["short"] * 100)
    sample.write()
    assert {(line["task"], line["of"]) for line in lines(path)} == {("mood", 160), ("other", 3)}
    path.write_bytes(b"\n" * 50_001)
    with pytest.raises(UserError, match="50,001 bytes, allowed are 50,000"):
        check_sample(path)


def test_what_could_not_be_written_is_written_later_and_once(make, tmp_path, monkeypatch, caplog):
    sample, path = make(size=30), tmp_path / "texts.jsonl"
    monkeypatch.setattr(sample_module, "LOCK_S", 0.05)
    note(sample, [f"text {number}" for number in range(10)])
    with (tmp_path / ".texts.jsonl.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(3):
            asyncio.run(sample.write_aside())
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "another process holds" in caplog.text
    note(sample, [f"text {number}" for number in range(10, 15)])
    monkeypatch.setattr(sample_module, "_encoded", lambda line: {}["a fault of our own"])
    asyncio.run(sample.write_aside())
    assert "a fault of our own" in caplog.text
    assert sample._limit == {}
    monkeypatch.undo()
    asyncio.run(sample.write_aside())
    assert sorted(line["text"] for line in lines(path)) == sorted(f"text {number}" for number in range(15))
    assert {line["of"] for line in lines(path)} == {15}
    assert caplog.records[-1].message.endswith("is written again")


def test_a_folder_that_others_hold_is_in_nobodys_way(make, tmp_path):
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        sample = make()
        note(sample, ["a text"])
        sample.write()
    finally:
        os.close(held)
    assert len(lines(tmp_path / "texts.jsonl")) == 1


def test_what_is_noted_while_the_file_is_written_is_in_it_once(make, tmp_path):
    sample, writing = make(size=5), threading.Thread(target=lambda: sample.write())

    class Slow(LabelPrediction):
        def record(self, top):
            writing.start()
            writing.join(0.2)
            return super().record(top)

    note(sample, [str(number) for number in range(9)])
    slow = Slow("mood", "good", 0.8, {})
    sample._draw = lambda: 0.0
    sample.note(["slow"], [None], [Answer({"mood": slow}, False)])
    writing.join()
    note(sample, ["last"])
    sample.write()
    found = [line["text"] for line in lines(tmp_path / "texts.jsonl")]
    assert len(found) == len(set(found)) == 5
    assert {"slow", "last"} < set(found)
    assert {line["of"] for line in lines(tmp_path / "texts.jsonl")} == {11}


def test_a_file_that_is_begun_anew_gets_every_text_again(make, tmp_path):
    """Of the old file's sample, only texts with small keys were noted; the new one must not be confined to these."""
    sample, path = make(size=10), tmp_path / "texts.jsonl"
    note(sample, [str(number) for number in range(1000)])
    sample.write()
    path.unlink()
    note(sample, [str(number) for number in range(1000)])
    sample.write()
    note(sample, [str(number) for number in range(8)])
    sample.write()
    assert [(line["of"], len(lines(path))) for line in lines(path)] == [(8, 8)] * 8


def test_embeddings_are_not_kept(make, tmp_path):
    sample = make()
    vector = EmbeddingPrediction("embedding", None, 0.0, {}, (0.6, 0.8))
    sample.note(["a text"], [None], [Answer({"embedding": vector, **answer().predictions}, False)])
    sample.write()
    assert {line["task"] for line in lines(tmp_path / "texts.jsonl")} == {"mood"}


def test_a_link_is_followed_once(tmp_path):
    (tmp_path / "other").mkdir()
    link = tmp_path / "texts.jsonl"
    link.symlink_to(tmp_path / "other" / "kept.jsonl")
    sampling = Sampling(path=link)
    check_sample(sampling.path)
    assert link.is_symlink()
    assert (tmp_path / "other" / "kept.jsonl").read_bytes() == b""
    lock = tmp_path / "other" / ".kept.jsonl.lock"
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        check_sample(sampling.path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_is_mounted_by_itself_is_refused(tmp_path, monkeypatch):
    """The kernel lets nothing be moved to the place of a mount."""

    def busy(source, target):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), source, None, target)

    monkeypatch.setattr("onetrunk.serving.front.sample.os", stand_in(os, replace=busy))
    with pytest.raises(UserError, match="mounted by itself, and so cannot be replaced: mount a folder"):
        check_sample(tmp_path / "texts.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == [".texts.jsonl.lock"]


def test_long_texts_are_cut_and_answers_have_no_long_lists(make, tmp_path):
    sample = make()
    labels = LabelsPrediction("many", "a", 0.9, {"a": 0.9, "b": 0.1}, ("a",))
    spans = SpansPrediction("tags", None, 0.7, {}, (Word("x", 0, 1, "O", 1.0),), (Span("t", "x", 0, 1, 0.7),))
    sample.note(["x" * 10_000], ["y\u2028\ud800"], [Answer({"many": labels, "tags": spans}, False)])
    sample.write()
    many, tags = lines(tmp_path / "texts.jsonl")
    assert (len(many["text"]), many["text_pair"], many["cut"]) == (MOST_TEXT_BYTES, "y\u2028?", True)
    assert many["labels"] == ["a"]
    assert tags["spans"] == [{"type": "t", "text": "x", "start": 0, "end": 1, "score": 0.7}]
    assert "words" not in tags
    assert "scores" not in many


@pytest.mark.parametrize("content", ["notes\n", '{"task": "mood"}\n', "[1]\n", "\xff\n"])
def test_a_file_of_something_else_is_not_touched(tmp_path, content):
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="line 1"):
        check_sample(path)
    assert path.read_text(encoding="latin-1") == content


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        check_sample(tmp_path / "none" / "texts.jsonl")


def test_commands_refuse_a_file_of_something_else(repository, tmp_path, monkeypatch):
    monkeypatch.setattr("onetrunk.serving.front.observer.log_json_lines", lambda verbose: None)
    path = tmp_path / "notes.txt"
    path.write_text("notes\n")
    sockets = tmp_path / "sockets"
    sockets.mkdir(mode=0o700)
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    for command, *arguments in ((serve_repo, str(repository), *ports), (serve_front, str(sockets))):
        done = CliRunner().invoke(command, [*arguments, "--sample", str(path)])
        assert done.exit_code == 2
        assert f": --sample {path}: line 1 is none that --sample writes: give another file\n" in done.stderr


def test_a_front_that_is_started_again_serves_without_the_sample(make_served, tmp_path, caplog, monkeypatch):
    """Whatever became of the file since the command has checked it, it must not keep the front from its clients."""
    monkeypatch.setattr("onetrunk.serving.front.sample.WRITE_EVERY_S", 0.05)
    path = tmp_path / "kept" / "texts.jsonl"
    path.parent.mkdir()
    path.write_text("notes\n")
    served = make_served(sample=Sampling(path=path))
    assert served.ask("POST", "/v1/predict", {"texts": ["a text"], "tasks": ["sst2"]})[0] == 200
    until(lambda: "line 1 is none that --sample writes" in caplog.text)
    path.write_text("")
    until(lambda: path.read_text() != "")
    assert [line["text"] for line in lines(path)] == ["a text"]


def test_the_front_keeps_texts_only_if_it_was_told_to(make_served, tmp_path, monkeypatch):
    path = tmp_path / "kept" / "texts.jsonl"
    path.parent.mkdir()
    monkeypatch.setattr("onetrunk.serving.front.sample.WRITE_EVERY_S", 0.05)
    served = make_served(sample=Sampling(path=path, size=5))
    body = {"texts": [f"text {number}" for number in range(8)], "tasks": ["sst2"]}
    assert served.ask("POST", "/v1/predict", body)[0] == 200
    until(path.exists)
    found = lines(path)
    assert len(found) == 5
    assert {line["of"] for line in found} == {8}
    assert {line["label"] for line in found} == {"positive"}


def test_by_default_nothing_is_kept(served, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert served.ask("POST", "/v1/predict", {"texts": ["a text"], "tasks": ["sst2"]})[0] == 200
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == set()
