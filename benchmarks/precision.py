"""How much faster than fp32 a repository in int8 is: segments and heads in ONNX Runtime, both precisions in turn.

Two repositories: the default trunk with the heads in ``heads/``, and a random trunk of BERT-base's form, cut at taps
2, 4, 6 and 7, with two one-layer heads on each. What a model costs does not depend on its weights.

Usage: python benchmarks/precision.py > docs/results/precision.md
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from builder.export.names import ATTENTION_MASK, HIDDEN_STATE, Segment, cut_trunk, hidden_name
from builder.export.onnx_file import export_head, export_segment
from builder.export.precision import reduce_file
from builder.export.release import DEFAULT_RELEASE, get_release
from builder.machine import processor_name
from builder.model.bundle import load_bundle
from builder.model.head_spec import find_bundles
from builder.model.trunk import Trunk, load_trunk, trunk_folder
from builder.planning.sessions import Files, Session, time_in_turn, token_batch

RELEASE = get_release(DEFAULT_RELEASE)
PRECISIONS = ("fp32", "int8")
BASE_TAPS = (2, 4, 6, 7)
ROUNDS = 40

Parts = tuple[dict[Segment, Path], dict[str, tuple[int, Path]]]
"""Segments' files; head -> its tap and its file."""


def write_base_trunk(folder: Path) -> Trunk:
    """A random BERT-base, as a Hugging Face folder."""
    folder.mkdir()
    config = BertConfig()
    torch.manual_seed(0)
    weights = BertModel(config, add_pooling_layer=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config.to_dict()}))
    shutil.copyfile(trunk_folder() / "tokenizer.json", folder / "tokenizer.json")
    return load_trunk(folder)


def default_parts(trunk: Trunk, folder: Path) -> Parts:
    """The heads in ``heads/``, and the segments that they need."""
    heads = {}
    for bundle in map(load_bundle, find_bundles(Path("heads"))):
        path = folder / f"head_{bundle.spec.task}.onnx"
        export_head(bundle.head(trunk), bundle.spec, path, RELEASE)
        heads[bundle.spec.task] = bundle.spec.tap, path
    segments = {segment: folder / f"{segment.name}.onnx" for segment in cut_trunk({tap for tap, _ in heads.values()})}
    for segment, path in segments.items():
        export_segment(trunk, segment, path, RELEASE)
    return segments, heads


def base_parts(trunk: Trunk, folder: Path) -> Parts:
    """Two heads a tap."""
    files = Files(trunk, folder)
    segments = {segment: files.segment(segment.start, segment.stop) for segment in cut_trunk(set(BASE_TAPS))}
    return segments, {f"{tap}{twin}": (tap, files.head(tap, 1)) for tap in BASE_TAPS for twin in "ab"}


def reduced(parts: Parts) -> Parts:
    """The same in int8, beside."""

    @functools.cache
    def int8(path: Path, thorough: bool) -> Path:
        target = path.with_name(f"{path.stem}_int8.onnx")
        reduce_file(path, target, "int8", thorough=thorough)
        return target

    segments, heads = parts
    return (
        {segment: int8(path, True) for segment, path in segments.items()},
        {name: (tap, int8(path, False)) for name, (tap, path) in heads.items()},
    )


class Chain:
    """Segments and heads, loaded as a server loads them: heads have one thread."""

    def __init__(self, parts: Parts, threads: int) -> None:
        segments, heads = parts
        self.segments = {segment: Session(path, threads) for segment, path in segments.items()}
        self.heads = [(tap, Session(path, 1)) for tap, path in heads.values()]

    def run_trunk(self, tensors: dict[str, np.ndarray]) -> None:
        """All states."""
        for segment, session in self.segments.items():
            tensors[segment.output] = session.run(tensors)

    def run_heads(self, tensors: Mapping[str, np.ndarray]) -> None:
        """All answers."""
        for tap, session in self.heads:
            session.run({HIDDEN_STATE: tensors[hidden_name(tap)], ATTENTION_MASK: tensors[ATTENTION_MASK]})


def measure(parts: Mapping[str, Parts], trunk: Trunk, threads: int, tokens: int, batch: int) -> str:
    """A row of the table."""
    runs: dict[str, Callable[[], object]] = {}
    for precision in PRECISIONS:
        chain, tensors = Chain(parts[precision], threads), dict(token_batch(trunk, tokens, batch))
        chain.run_trunk(tensors)
        runs[f"trunk {precision}"] = functools.partial(chain.run_trunk, tensors)
        runs[f"heads {precision}"] = functools.partial(chain.run_heads, tensors)
    times = time_in_turn(runs, ROUNDS)
    # The least: on a machine that others use too, all that is more is theirs.
    least = {name: float(taken.min()) for name, taken in times.items()}
    cells = []
    for parts_of in (("trunk",), ("heads",), ("trunk", "heads")):
        fp32, int8 = (sum(least[f"{part} {precision}"] for part in parts_of) for precision in PRECISIONS)
        cells += [f"{fp32:.1f}", f"{int8:.1f}", f"**{fp32 / int8:.2f}**"]
    return f"{threads} | {batch} | {tokens} | {' | '.join(cells)} |"


def main() -> None:
    """Prints a page."""
    part = "fp32 | int8 | times"
    head = f"| threads | texts | tokens | trunk {part} | 8 heads {part} | all {part} |"
    print("# int8 against fp32\n")
    print("`python benchmarks/precision.py`: milliseconds of all segments and of all eight heads, one after the other,")
    print(
        "in ONNX Runtime without a server, both precisions in turn, the least of", ROUNDS, "rounds; and how many times"
    )
    print("faster int8 is. Threads are the trunk's; heads have one.\n")
    print(f"Machine: {processor_name()}.\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "default").mkdir()
        (folder / "base").mkdir()
        trunk = load_trunk()
        base = write_base_trunk(folder / "trunk")
        shapes = [
            (
                "Default trunk (6 x 384), the heads in `heads/`",
                trunk,
                default_parts(trunk, folder / "default"),
                (32, 128),
            ),
            ("BERT-base's form (12 x 768) up to tap 7, random", base, base_parts(base, folder / "base"), (128,)),
        ]
        for title, model, fp32, lengths in shapes:
            parts = {"fp32": fp32, "int8": reduced(fp32)}
            print(f"## {title}\n\n{head}\n|{'---|' * 12}")
            for threads in (1, 2):
                for batch in (1, 4):
                    for tokens in lengths:
                        print("|", measure(parts, model, threads, tokens, batch), flush=True)
            print()


if __name__ == "__main__":
    sys.exit(main())
