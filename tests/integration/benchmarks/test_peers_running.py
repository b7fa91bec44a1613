"""Each peer, started for real: does it answer what transformers answers?"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.peers.peers import PEERS, TASKS, Peer, running_peer

PYTHON = os.environ.get("ONETRUNK_PEERS_PYTHON")
TEXTS = Path(__file__).parents[3] / "clients/onetrunk/client/bench/texts.jsonl"
# Softmax of logits of a few units: ONNX Runtime's fused GELU and attention differ from torch's in the last digits.
TOLERANCE = {"infinity-optimum": 1e-3}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        PYTHON is None,
        reason="ONETRUNK_PEERS_PYTHON is not set to the Python of a venv with benchmarks/peers/requirements.txt",
    ),
]


def rows() -> list[tuple[str, str | None]]:
    """Ten real texts, three of them pairs."""
    lines = [json.loads(line) for line in TEXTS.read_text().splitlines()]
    single = [(line["text"], None) for line in lines if "text_pair" not in line]
    pairs = [(line["text"], line["text_pair"]) for line in lines if "text_pair" in line]
    return [*single[:7], *pairs[:3]]


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight checkpoints, small but for their vocabulary."""
    from transformers import BertConfig, DistilBertConfig

    from benchmarks.peers.checkpoints import VOCABULARY, write_checkpoints

    if request.param == "bert":
        config = BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
        )
    else:
        config = DistilBertConfig(vocab_size=VOCABULARY, dim=64, n_layers=2, n_heads=2, hidden_dim=128)
    return write_checkpoints(tmp_path_factory.mktemp("peers") / request.param, config)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_peer_answers_what_transformers_answers(peer: Peer, models: Path) -> None:
    from benchmarks.peers.reference import Reference

    reference = Reference(models)
    assert PYTHON is not None
    with running_peer(peer, Path(PYTHON), models, threads=1, start_timeout_s=300) as running:
        assert running.tasks == tuple(sorted(TASKS))
        processes = running.processes()
        for text, pair in rows():
            answers = running.ask(text, pair)
            expected = reference.ask(text, pair, peer)
            for task, scores in expected.items():
                assert answers[task] == pytest.approx(scores, abs=TOLERANCE.get(peer.name, 1e-4)), (task, text)
    assert not [process for process in processes if process.is_running()]
