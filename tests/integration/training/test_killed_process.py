"""A process that is killed outright: what it left is enough to go on from, and to end bit for bit the same."""

import multiprocessing
import os
import signal

import pytest
import torch

from onetrunk.nn.trunk import load_trunk
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.experiment import Experiment, ExperimentConfig
from onetrunk.training.trainer import execute
from tests.fixtures.recorded_runs import same, spec_of


def open_experiment_in(trunk_folder, root, tasks):
    config = ExperimentConfig(tasks=tasks, cache=root / "cache", runs=root / "runs", max_length=32)
    return Experiment(config, load_trunk(trunk_folder), ComputeConfig("cpu", "fp32"))


def train_and_be_killed(trunk_folder, root, tasks):
    torch.set_num_threads(1)
    experiment = open_experiment_in(trunk_folder, root, tasks)

    def progress(what, done, total):
        # In the second epoch's middle: a checkpoint of the first is there.
        if "epoch 2" in what and done == total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    execute(spec_of("student", experiment), experiment, progress=progress)


@pytest.mark.slow
def test_student_killed_by_sigkill_goes_on(tiny_trunk_folder, tmp_path, mood, second, fits):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=train_and_be_killed, args=(tiny_trunk_folder, tmp_path / "one", (mood, second)))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("one", "undisturbed"):
            experiment = open_experiment_in(tiny_trunk_folder, tmp_path / name, (mood, second))
            execute(spec_of("student", experiment), experiment)
    finally:
        torch.set_num_threads(threads)
    went_on, _, undisturbed = fits
    assert (went_on.start, undisturbed.start) == (1, 0)
    assert same(went_on.state, undisturbed.state)
