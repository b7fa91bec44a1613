"""What is compared: trunks with heads on them, trained ones and such that only have the form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.compare.kept import whole_folder
from onetrunk.distill.cost_measurement import untrained_head
from onetrunk.nn.bundle import save_bundle
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.nn.trunk_source import trunk_folder
from onetrunk.tasks.head_spec import find_bundles

SEED = 0

# The taps of the paper's eight tasks in its served system; two one-layer heads on each make the eight.
PAPER_TAPS = (2, 4, 6, 7)

# Of the tasks that ship, those that the goals of serving are about; the others understand utterances.
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")

_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


@dataclass(frozen=True)
class Shape:
    """A trunk and a folder of heads.

    Attributes:
        name: as it stands in the results.
        what: what it is, for a reader.
        trunk: the trunk's folder; None for the default trunk.
        heads: the folder of bundles.
        tasks: which of them; None for all.
    """

    name: str
    what: str
    trunk: Path | None
    heads: Path
    tasks: tuple[str, ...] | None = None


def base_shape(folder: Path, heads: int = 8) -> Shape:
    """BERT-base's shape, 12 x 768, seeded random weights, with one-layer heads on the paper's taps in turn.

    What a model costs does not depend on its weights, so that no hub is needed for it. The tokenizer is the default
    trunk's, whose vocabulary is BERT-base's.
    """
    trunk = folder / "base" / "trunk"
    if not trunk.exists():
        _write_random_bert(trunk)
    bundles = folder / "base" / f"heads_{heads}"
    _write_heads(bundles, load_trunk(trunk), PAPER_TAPS, heads)
    what = f"BERT-base shape (12 x 768, seeded random weights), {heads} one-layer heads on taps 2, 4, 6, 7"
    return Shape("base", what, trunk, bundles)


def distil_trunk(folder: Path) -> Path:
    """A trunk of DistilBERT's size, 6 x 768, seeded random weights."""
    trunk = folder / "distil" / "trunk"
    if not trunk.exists():
        _write_random_bert(trunk, layers=6)
    return trunk


def small_shape(folder: Path, tap: int = 4, heads: int = 8) -> Shape:
    """The default trunk with untrained one-layer heads, all on one tap."""
    bundles = folder / "small" / f"heads_{heads}"
    _write_heads(bundles, load_trunk(None), (tap,), heads)
    return Shape("small", f"default trunk (6 x 384), {heads} one-layer heads on tap {tap}", None, bundles)


def glue_shape(heads: Path) -> Shape:
    """The default trunk with GLUE's eight bundles, of those that ship."""
    return Shape("glue", "default trunk (6 x 384), the eight GLUE bundles that ship", None, heads, GLUE)


def shipped_shape(heads: Path) -> Shape:
    """The default trunk with all bundles that ship."""
    count = len(find_bundles(heads))
    return Shape(f"shipped_{count}", f"default trunk (6 x 384), the {count} bundles that ship", None, heads)


def _write_random_bert(folder: Path, layers: int = 12) -> None:
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = BertModel(BertConfig(**_BASE, num_hidden_layers=layers), add_pooling_layer=False)
    with whole_folder(folder) as aside:
        model.save_pretrained(aside)
        # save_pretrained writes the version of transformers, and with it the trunk's identity would change.
        config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
        config.pop("transformers_version", None)
        (aside / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        shutil.copyfile(trunk_folder(None) / "tokenizer.json", aside / "tokenizer.json")


def _write_heads(folder: Path, trunk: Trunk, taps: Sequence[int], count: int) -> None:
    for number in range(count):
        task, tap = f"task_{number:02d}", taps[number % len(taps)]
        if (folder / task).exists():
            continue
        head, spec = untrained_head(trunk, tap=tap, layers=1, task=task, seed=SEED + number)
        # A head's layer is a copy of the trunk's; heads with equal weights could be shared by a clever runtime.
        noise = torch.Generator().manual_seed(SEED + number)
        for parameter in head.layers.parameters():
            parameter.data.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=noise))
        save_bundle(folder / task, spec, head)
