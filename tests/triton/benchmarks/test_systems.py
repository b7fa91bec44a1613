"""A comparison on the tiny trunk: the systems that are put together answer, and are measured on a real Triton."""

import json
import shutil
from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks.compare.load import ask
from benchmarks.compare.measure import measure_in_turn
from benchmarks.compare.one_trunk import write_one_trunk
from benchmarks.compare.systems import Systems, TritonSystem
from benchmarks.compare.texts import texts_of_length


@pytest.mark.slow
def test_systems_answer_and_are_measured(tiny_repository, tiny_trunk, tmp_path):
    # Triton's Python backend leaves byte code in what it serves.
    ours = shutil.copytree(tiny_repository, tmp_path / "ours")
    others = Systems(tiny_trunk, ours, tmp_path / "systems", 32, cores=2)
    write_one_trunk(ours, tmp_path / "one_trunk")
    systems = [
        TritonSystem("ours", "", ours, 4),
        TritonSystem("one of ours", "", ours, 4, ("mood",)),
        TritonSystem("one trunk", "", tmp_path / "one_trunk", 4),
        others.fused(1, "fused"),
        others.trunk_alone(1, "trunk"),
        others.single(1, 2, "single"),
        others.singles(2, "singles"),
        others.empty(2, "empty"),
    ]
    answers = {}
    texts = texts_of_length(tiny_trunk, 16, 3)
    with ExitStack() as running:
        targets = {system.name: running.enter_context(system.running()) for system in systems}
        for name, target in targets.items():
            (body,) = ask(target.host, target.port, target.requests(texts[0]))
            answers[name] = {output["name"]: np.array(output["data"]) for output in json.loads(body)["outputs"]}
        counts = {name: target.tasks for name, target in targets.items()}
        measured = measure_in_turn(targets, texts, concurrency=2, seconds=0.3, repeats=2)
    tasks = {"grade", "match", "mood", "topic"}
    for name in ("ours", "one trunk", "fused"):
        assert tasks <= answers[name].keys()
        for task in tasks:
            np.testing.assert_allclose(answers[name][task], answers["ours"][task], atol=1e-5)
    assert answers["one of ours"].keys() == {"mood"}
    assert answers["singles"].keys() == {"single_00", "single_01"}
    assert answers["trunk"].keys() == {"state"}
    for name in ("ours", "one of ours", "one trunk", "fused", "single", "singles"):
        assert counts[name] == len(answers[name].keys() - {"token_count", "truncated"})
    assert counts["trunk"] == counts["empty"] == 0
    for figures in measured.values():
        assert len(figures.samples) == 2
        assert all(sample.throughput > 0 and sample.cpu_ms > 0 for sample in figures.samples)
        assert figures.memory_mb > sum(figures.parts_mb.values()) > 0
    assert {"tokenizer", "trunk_00_01", "head_mood"} <= measured["ours"].parts_mb.keys()
    assert 0 < systems[3].weights_mb() < systems[0].weights_mb() * 2
