"""Jobs in processes of their own: they end with the command that they belong to."""

import multiprocessing
import os
from types import SimpleNamespace

import pytest

from onetrunk.distill import jobs
from onetrunk.distill.jobs import Job, _ends_with_parent
from onetrunk.protocol.errors import OneTrunkError
from tests.fixtures.stand_ins import stand_in


def test_worker_ends_when_its_command_is_no_more(monkeypatch):
    worker = SimpleNamespace(name="LokyProcess-1")
    monkeypatch.setattr(jobs, "multiprocessing", stand_in(multiprocessing, current_process=lambda: worker))
    steps = []
    progress = _ends_with_parent(lambda *step: steps.append(step))
    progress("epoch 1", 1, 2)
    monkeypatch.setattr(jobs, "os", stand_in(os, getppid=lambda: 1))
    with pytest.raises(OneTrunkError, match="killed"):
        progress("epoch 1", 2, 2)
    assert steps == [("epoch 1", 1, 2)]


def test_command_itself_outlives_its_shell(monkeypatch):
    steps = []
    progress = _ends_with_parent(lambda *step: steps.append(step))
    monkeypatch.setattr(jobs, "os", stand_in(os, getppid=lambda: 1))
    progress("epoch 1", 1, 2)
    assert steps == [("epoch 1", 1, 2)]


def test_job_says_what_it_is():
    assert str(Job("cola", "baseline, seed 2", work=lambda *_: None)) == "cola: baseline, seed 2"
