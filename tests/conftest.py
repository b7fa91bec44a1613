"""Set up every test: the environment, the tiers' markers, and a tiny random trunk, so that no test needs a hub.

The tests lie in three tiers. ``unit`` runs in process and is fast; ``integration`` trains, builds and starts
subprocesses; ``triton`` starts a real Triton. Fixtures that several folders share are plugins in ``tests/fixtures``.
"""

from __future__ import annotations

import os
import sys

# Of the hundreds of processes that the tests start, each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Before anything loads ONNX Runtime.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are fastest in one thread; several wait for each other, and on a busy machine for very long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import shutil
from pathlib import Path

import pytest

sys.dont_write_bytecode = False

pytest_plugins = [
    "tests.fixtures.processor",  # first: the fixtures of the gate import it
    "tests.fixtures.classifiers",
    "tests.fixtures.compose",
    "tests.fixtures.deploying",
    "tests.fixtures.fake_triton",
    "tests.fixtures.tokenizers",  # first: families imports it
    "tests.fixtures.families",
    "tests.fixtures.gate",
    "tests.fixtures.handmade_repository",
    "tests.fixtures.python_model",
    "tests.fixtures.releases",
    "tests.fixtures.tasks",
    "tests.fixtures.wheel",
]

WORDS = """
a the is was very good bad film play music song please turn on off light red blue who what when where
i you he she it not no yes great poor plot actor scene long short and or but of to in with for
"""
CONFIG_KEYS = """
vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings
type_vocab_size pad_token_id layer_norm_eps hidden_act hidden_dropout_prob attention_probs_dropout_prob
"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [chr(code) for code in range(ord("a"), ord("z") + 1)]
VOCAB = [*SPECIAL, *dict.fromkeys([*WORDS.split(), *PIECES]), *[f"##{piece}" for piece in PIECES], ".", ",", "?", "!"]


def write_tiny_trunk(folder: Path, *, layers: int = 4, width: int = 32, seed: int = 0) -> Path:
    """A random BERT of a few layers with a WordPiece tokenizer, as a Hugging Face folder."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    config = BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        # Far from the usual 0.02, so that a random trunk's states depend on the text.
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    # Written by hand, so that the identity does not depend on the version of transformers.
    settings = {key: getattr(config, key) for key in CONFIG_KEYS.split()}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **settings}, indent=1))

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_trunk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT: 4 layers of width 32, at most 64 tokens."""
    return write_tiny_trunk(tmp_path_factory.mktemp("trunk") / "tiny")


@pytest.fixture(scope="session")
def tiny_trunk(tiny_trunk_folder: Path):
    """The tiny trunk, loaded."""
    from onetrunk.nn.trunk import load_trunk

    return load_trunk(tiny_trunk_folder)


def write_tiny_heads(folder: Path, trunk) -> Path:
    """Untrained heads of every kind, form and depth."""
    import torch

    from onetrunk.nn.bundle import save_bundle
    from onetrunk.nn.head import new_head
    from onetrunk.tasks.head_spec import HeadSpec
    from onetrunk.tasks.kinds import get_kind

    shapes = [
        ("grade", "regression", "pair", None, (0.0, 5.0), 3, 1),
        ("match", "classification", "pair", ("no", "yes"), None, 1, 2),
        ("mood", "classification", "single", ("bad", "good"), None, 3, 1),
        ("topic", "classification", "single", ("film", "house", "music"), None, 0, 1),
    ]
    for seed, (task, kind, form, labels, bounds, tap, layers) in enumerate(shapes):
        spec = HeadSpec(
            task=task,
            kind=kind,
            form=form,
            labels=labels,
            range=bounds,
            tap=tap,
            layers=layers,
            trunk=trunk.identity,
            width=trunk.width,
            max_length=32,
            metric="pearson" if kind == "regression" else "accuracy",
            scores={},
            created="2026-01-01",
            onetrunk_version="0",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = new_head(trunk, outputs=get_kind(kind).output.num_outputs(spec), tap=tap, layers=layers)
            # Large enough that scores differ from text to text, which an untrained output's do not.
            torch.nn.init.normal_(head.output.weight, std=0.5)
        save_bundle(folder / task, spec, head)
    return folder


@pytest.fixture(scope="session")
def tiny_heads(tiny_trunk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four untrained bundles on the tiny trunk: grade, match, mood, topic."""
    return write_tiny_heads(tmp_path_factory.mktemp("bundles") / "heads", tiny_trunk)


@pytest.fixture(params=["cls", "mean", "learned"])
def mood_bundle(request: pytest.FixtureRequest, tiny_heads: Path, tiny_trunk, tmp_path: Path):
    """The bundle `mood`, once for every query of a last layer."""
    import torch

    from onetrunk.nn.bundle import load_bundle, save_bundle
    from onetrunk.nn.head import empty_head

    bundle = load_bundle(tiny_heads / "mood")
    head = empty_head(tiny_trunk, outputs=2, tap=bundle.spec.tap, layers=bundle.spec.layers, query=request.param)
    head.load_state_dict(bundle.weights, strict=False)
    if head.pool is not None:
        torch.nn.init.normal_(head.pool, std=0.5, generator=torch.Generator().manual_seed(0))
    save_bundle(tmp_path / "mood", bundle.spec.model_copy(update={"query": request.param}), head)
    return load_bundle(tmp_path / "mood")


@pytest.fixture(scope="session")
def tiny_repository(tiny_heads: Path, tiny_trunk_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What build-repo makes of the tiny heads; tests that write into it take a copy."""
    from onetrunk.repository import BuildRequest, build_repository

    output = tmp_path_factory.mktemp("built") / "model_repository"
    build_repository(BuildRequest(output=output, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32))
    return output


@pytest.fixture(scope="session")
def served(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory):
    """A real Triton on a copy of the tiny repository, ready. It asks itself nothing: tests count its statistics."""
    from onetrunk.serving import Server

    # Triton's Python backend leaves byte code in what it serves, which tests of the repository must not meet.
    repository = shutil.copytree(tiny_repository, tmp_path_factory.mktemp("served") / "model_repository")
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that renews golden files."""
    parser.addoption(
        "--renew-golden", action="store_true", help="write the golden files anew from what is generated now"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier, and with the group of tests that must run in one process, one after another.

    A file is a group, so that its fixtures are built once. All of the triton tier is one: a Triton uses every core, and
    its tests measure times and count what ran.
    """
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        tier = path.parts[0]
        item.add_marker(getattr(pytest.mark, tier))
        item.add_marker(pytest.mark.xdist_group("triton" if item.get_closest_marker("triton") else str(path)))
