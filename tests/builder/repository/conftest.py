"""Task files and dev data for the tiny heads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from onetrunk.export.chain_run import Chain, padded_batches
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.names import Segment
from onetrunk.repository.gate_settings import GateSettings

_WORDS = "a the is was very good bad film play music song red blue who what great poor plot actor short"
_TEXTS = 120
_FILE = """
kind = "{kind}"
form = "{form}"
{answers}
metrics = ["{metric}"]
train = "{task}.jsonl"
dev = "{task}.jsonl"
"""


@pytest.fixture(scope="session")
def gate(tiny_repository: Path, tiny_trunk, tiny_heads: Path, tmp_path_factory: pytest.TempPathFactory) -> GateSettings:
    """The gate on dev data of which the labels are what the fp32 files answer: so fp32 scores 100 points."""
    folder = tmp_path_factory.mktemp("tasks")
    cut = [Segment(0, 0), Segment(0, 1), Segment(1, 3)]
    chain = Chain(
        {segment: tiny_repository / segment.name / "1" / "model.onnx" for segment in cut},
        {path.name: tiny_repository / f"head_{path.name}" / "1" / "model.onnx" for path in tiny_heads.iterdir()},
    )
    generator = random.Random(0)
    for path in sorted(tiny_heads.iterdir()):
        spec = load_bundle(path).spec
        texts = [" ".join(generator.choices(_WORDS.split(), k=generator.randint(2, 12))) for _ in range(2 * _TEXTS)]
        rows = list(zip(texts[::2], texts[1::2], strict=True))
        asked = rows if spec.form == "pair" else [first for first, _ in rows]
        scores = chain.scores(spec, list(padded_batches(tiny_trunk, asked, (16, 32))))
        if spec.labels:
            labels = [spec.labels[index] for index in scores.argmax(axis=-1)]
            answers = f"labels = {json.dumps(spec.labels)}"
        else:
            # Any line through its own answers correlates with them by 1.
            labels = (5 * (scores - scores.min()) / np.ptp(scores))[:, 0].clip(0, 5).tolist()
            answers = "range = [0.0, 5.0]"
        lines = [
            json.dumps({"sentence": first, "sentence2": second, "label": label})
            for (first, second), label in zip(rows, labels, strict=True)
        ]
        (folder / f"{spec.task}.jsonl").write_text("\n".join(lines))
        fields = {"task": spec.task, "kind": spec.kind, "form": spec.form, "metric": spec.metric}
        (folder / f"{spec.task}.toml").write_text(_FILE.format(answers=answers, **fields))
    # Untrained heads answer at their thresholds: a few rows in a hundred may turn.
    return GateSettings(max_loss=8, task_dir=folder)
