"""Measures the models of a repository that stands, and gives each the threads that suit this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from onetrunk.machine import processor_model, usable_cores
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.manifest import Placement
from onetrunk.protocol.names import MODEL_FILE, TOKENIZER
from onetrunk.repository.configs import parameters_of
from onetrunk.repository.part_times import Measurement, measure_parts
from onetrunk.repository.quiet import QUIET
from onetrunk.repository.state import RepositoryState, read_state
from onetrunk.repository.thread_choice import Goal, choose_threads
from onetrunk.repository.transaction import commit_state


@dataclass(frozen=True)
class Tuning:
    """What came of it.

    Attributes:
        placement: the threads, with the reasons.
        written: files that were written, below the repository.
        notes: what a user should know of the measurement.
    """

    placement: Placement
    written: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def tune_repository(repository: Path, goal: Goal, tokens: int, progress: ProgressCallback = silent) -> Tuning:
    """Measures every model that the ensembles name, and writes the configs anew. The caller holds the repository.

    Args:
        repository: its folder; build-repo has just written it, or found it as it should be.
        goal: what counts.
        tokens: length of the text that is measured with.
        progress: see ProgressCallback.

    Raises:
        OneTrunkError: the disk is full or the like; the repository then stays as it is.
    """
    state = read_state(repository)
    cores = usable_cores()
    vocab_size = int(parameters_of(state.tokenizer)["vocab_size"])
    found = measure_parts(_files(repository, state), tokens, vocab_size, cores, progress)
    by = "build-repo --tune" if goal == "throughput" else f"build-repo --tune {goal}"
    placement = Placement(
        threads=choose_threads(found.times, cores, goal, tokens),
        measured=f"Measured by {by} on {processor_model()}, {cores} core{'' if cores == 1 else 's'}.",
    )
    # Only threads change: every mixture of old and new configs names the same models.
    _, written = commit_state(repository, replace(state, placement=placement))
    return Tuning(placement, tuple(written), _notes(found))


def _files(repository: Path, state: RepositoryState) -> dict[str, Path]:
    """The ONNX files that a request for all tasks goes through, in that order."""
    config, _ = state.ensembles[0]
    return {
        step.model_name: repository / step.model_name / str(step.model_version) / MODEL_FILE
        for step in config.ensemble_scheduling.step
        if step.model_name != TOKENIZER
    }


def _notes(found: Measurement) -> tuple[str, ...]:
    if found.free_share >= QUIET:
        return ()
    return (
        f"other programs took {100 * (1 - found.free_share):.0f}% of the cores while --tune measured, so that more "
        "threads may help more than it seems: give the command again when the machine is quiet",
    )
