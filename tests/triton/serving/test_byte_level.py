"""A real server with the tokenizer of another family than BERT's: byte-level BPE, two separators, padding by 1.

The trunk is a tiny BERT, since all that is asked about here is done before the trunk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from onetrunk.client import Client
from onetrunk.nn.bundle import save_bundle
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.protocol.errors import BadInput
from onetrunk.protocol.words import words_of
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.training.states import tokenise
from tests.conftest import write_tiny_trunk
from tests.fixtures.heads import random_head
from tests.fixtures.tokenizers import tokenizer_json_of

TEXTS = ["Beyoncé didn't   play...", "日本語 👍🏽 ok", "a", "the film\twas very, very good", "play some songs"]


def write_trunk(folder: Path) -> Path:
    write_tiny_trunk(folder)
    tokenizer_json = tokenizer_json_of("roberta")
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": Tokenizer.from_str(tokenizer_json).get_vocab_size(), "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    weights[name] = torch.randn(config["vocab_size"], 32, generator=torch.Generator().manual_seed(0)) * 0.3
    save_file(weights, folder / "model.safetensors")
    return folder


def spec(trunk: Trunk, task: str, kind: str, labels: tuple[str, ...], form: str = "single") -> HeadSpec:
    return HeadSpec(
        task=task, kind=kind, form=form, labels=labels, range=None, tap=2, layers=1, trunk=trunk.identity,
        width=trunk.width, max_length=32, metric="span_f1" if kind == "tagging" else "accuracy", scores={},
        created="2026-01-01", onetrunk_version="0", options={"output": "softmax"} if kind == "tagging" else {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(write_trunk(tmp_path_factory.mktemp("trunk") / "tiny"))


@pytest.fixture(scope="module")
def heads(trunk: Trunk) -> dict[str, tuple[HeadSpec, torch.nn.Module]]:
    made = {}
    for one in (
        spec(trunk, "mood", "classification", ("bad", "good")),
        spec(trunk, "match", "classification", ("no", "yes"), "pair"),
        spec(trunk, "song", "tagging", ("artist", "album")),
    ):
        made[one.task] = one, random_head(trunk, one, seed=1)
    return made


@pytest.fixture(scope="module")
def client(trunk: Trunk, heads: dict[str, tuple[HeadSpec, torch.nn.Module]], tmp_path_factory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("byte_level")
    for task, (one, head) in heads.items():
        save_bundle(folder / "heads" / task, one, head)
    # Two texts of 32 tokens a batch.
    request = BuildRequest(
        output=folder / "repository", heads=folder / "heads", trunk=trunk.folder, max_length=32, max_batch_tokens=64
    )
    build_repository(request)
    repository = shutil.copytree(folder / "repository", folder / "served")
    with (
        Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server,
        Client(server.grpc_url) as client,
    ):
        yield client


@torch.no_grad()
def scores_of(trunk: Trunk, one: HeadSpec, head: torch.nn.Module, row: str | tuple[str, str]) -> torch.Tensor:
    """What torch makes of the row as training tokenizes it, alone and without padding."""
    import numpy as np

    ids, types, mask = tokenise(trunk, [row], 32).batch(np.array([0]), trunk.pad_token_id)
    state = trunk.states(ids, types, mask, [2])[2]
    return get_kind(one.kind).output.scores(head(state, mask), one, head.output)[0]


def test_answers_are_those_of_torch_on_what_training_reads(client: Client, trunk: Trunk, heads) -> None:
    for text, answer in zip(TEXTS, client.predict(TEXTS, tasks=["mood"]), strict=True):
        assert answer["mood"].scores["good"] == pytest.approx(
            scores_of(trunk, *heads["mood"], text)[1].item(), abs=1e-5
        )
    for text in TEXTS:
        (answer,) = client.predict([text], ["the music"], tasks=["match"])
        expected = scores_of(trunk, *heads["match"], (text, "the music"))[1].item()
        assert answer["match"].scores["yes"] == pytest.approx(expected, abs=1e-5)


def test_words_are_the_texts_and_have_the_tags_of_their_tokens(client: Client, trunk: Trunk, heads) -> None:
    for text, answer in zip(TEXTS, client.predict(TEXTS, tasks=["song"]), strict=True):
        said = answer["song"]
        assert [(word.start, word.end) for word in said.words] == words_of(text)
        tags = scores_of(trunk, *heads["song"], text)
        # The first word has the first token that is in it; none of these texts begins with a blank.
        assert said.words[0].score == pytest.approx(tags[1, 1].item(), abs=1e-5)
        assert all(text[span.start : span.end] == span.text == span.text.strip() for span in said.spans)


@pytest.mark.parametrize("text", ["   ", "\ufffd", "\u0301"])
def test_nothing_to_read_is_refused_though_it_has_tokens(client: Client, text: str) -> None:
    with pytest.raises(BadInput):
        client.predict([text], tasks=["mood"])
