"""A trunk of ModernBERT's form that reads 8,192 tokens: a text of 8,000 in one piece, and a longer one in windows."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil
import pytest
import torch

from onetrunk.client import Client
from onetrunk.nn.bundle import save_bundle
from onetrunk.nn.trunk import load_trunk
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.buckets import BucketRequest
from onetrunk.serving import Server
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.training.states import tokenise
from tests.fixtures.families import write_family_trunk
from tests.fixtures.heads import random_head

LENGTH = 8192
# Scores of 2 attention heads take half a gigabyte, of two texts a whole one. Some copies are made on the way.
MOST_BYTES = 10e9


class PeakMemory:
    """The most memory that the processes below this one have held together."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            held = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    held += process.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
            self.size_bytes = max(self.size_bytes, held)


@pytest.mark.slow
@pytest.mark.exhaustive  # some minutes, and 7 GB
@pytest.mark.timeout(900)
def test_a_text_of_8000_tokens_is_read_at_once_and_a_longer_one_in_windows(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 192,
        "max_position_embeddings": LENGTH,
        "local_attention": 128,
    }
    trunk = load_trunk(write_family_trunk(tmp_path / "trunk", "modernbert", **sizes))
    spec = HeadSpec(
        task="mood", kind="classification", form="single", labels=("bad", "good"), tap=2, layers=1,
        trunk=trunk.identity, width=trunk.width, max_length=LENGTH, metric="accuracy", scores={}, created="2026-01-01",
        onetrunk_version="0", long_texts="windows",
    )  # fmt: skip
    head = random_head(trunk, spec, 0)
    save_bundle(tmp_path / "heads" / "mood", spec, head)
    report = build_repository(
        BuildRequest(
            output=tmp_path / "repository",
            heads=tmp_path / "heads",
            trunk=trunk.folder,
            max_length=LENGTH,
            buckets=BucketRequest(lengths=(64, LENGTH)),
        )
    )
    assert any(note.startswith("batches have at most 2 texts, not 32") for note in report.notes)
    config = (tmp_path / "repository" / "multitask" / "config.pbtxt").read_text()
    assert re.search(r"^max_batch_size: 2$", config, re.MULTILINE)

    words = ["the", "film", "was", "very", "good", "and"]
    tokenizer = trunk.tokenizer()
    text = " ".join(words)
    tokens_a_round = len(tokenizer.encode(f"{text} {text}").ids) - len(tokenizer.encode(text).ids)
    text = " ".join(words * (8000 // tokens_a_round))
    ids, types, mask = tokenise(trunk, [text], LENGTH).batch([0], trunk.pad_token_id)
    assert 7900 < ids.shape[1] <= 8000
    with torch.no_grad():
        state = trunk.states(ids, types, mask, [2])[2]
        expected = get_kind(spec.kind).output.scores(head(state, mask), spec, head.output)[0].tolist()
    with (
        Server(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server,
        Client(server.grpc_url, timeout_s=300) as client,
        PeakMemory() as peak,
    ):
        (answer,) = client.predict(text, tasks=["mood"])
        assert (answer.tokens, answer.truncated, answer["mood"].windows) == (ids.shape[1], False, 1)
        assert [answer["mood"].scores[label] for label in ("bad", "good")] == pytest.approx(expected, abs=2e-5)
        (longer,) = client.predict(f"{text} {text}", tasks=["mood"])
        assert (longer.truncated, longer["mood"].windows) == (False, 3)
    print(f"{ids.shape[1]} tokens: {answer.ms / 1000:.1f} s, {peak.size_bytes / 1e9:.1f} GB")
    assert 0.5e9 < peak.size_bytes < MOST_BYTES
