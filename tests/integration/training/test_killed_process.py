"""A process that is killed outright: what it left is enough to go on from, and to end bit for bit the same."""

import multiprocessing
import os
import signal

import pytest
import torch

from onetrunk.nn.trunk import load_trunk
from onetrunk.training.arithmetic import Arithmetic
from onetrunk.training.execute import execute
from onetrunk.training.run_record import RunStore
from onetrunk.training.workbench import BenchSettings, Workbench
from tests.fixtures.recorded_runs import same, spec_of


def open_bench(trunk_folder, root, tasks):
    settings = BenchSettings(tasks=tasks, runs=root / "runs", max_length=32)
    return Workbench(
        settings, load_trunk(trunk_folder), Arithmetic("cpu", "fp32"), root / "cache", RunStore(root / "runs")
    )


def train_and_be_killed(trunk_folder, root, tasks):
    torch.set_num_threads(1)
    bench = open_bench(trunk_folder, root, tasks)

    def progress(what, done, total):
        # In the second epoch's middle: a checkpoint of the first is there.
        if "epoch 2" in what and done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    execute(spec_of("student", bench), bench, progress=progress)


@pytest.mark.slow
def test_student_killed_by_sigkill_goes_on(tiny_trunk_folder, tmp_path, mood, second, fits):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=train_and_be_killed, args=(tiny_trunk_folder, tmp_path / "one", (mood, second)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("one", "undisturbed"):
            bench = open_bench(tiny_trunk_folder, tmp_path / name, (mood, second))
            execute(spec_of("student", bench), bench)
    finally:
        torch.set_num_threads(threads)
    went_on, _, undisturbed = fits
    assert (went_on.start, undisturbed.start) == (1, 0)
    assert same(went_on.state, undisturbed.state)
