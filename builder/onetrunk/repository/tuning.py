"""``--tune``: measures the models of a repository and gives each the number of threads that suits this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onetrunk.machine import processor_model, usable_cores
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.manifest import Placement, Threads
from onetrunk.protocol.names import MODEL_FILE, TOKENIZER
from onetrunk.repository.configs import parameters_of
from onetrunk.repository.model_times import IDLE, Measurement, ModelTime, ModelTimes, measure_models
from onetrunk.repository.state import RepositoryState, read_state
from onetrunk.repository.transaction import commit_state

TuningObjective = Literal["throughput", "latency"]

# The share of the time that a further thread must save. For less, the cores are better left to other requests.
_MIN_GAIN = 0.1
# The share that splitting a bottleneck must save. Under load, the threads of a model wait for each other whenever
# another model has one of their cores, which no measurement of a model alone shows: a gain of a fifth by these figures
# was a loss of a sixth on a server.
_MIN_GAIN_OF_SPLIT = 0.3
_PERCENT = f"{100 * _MIN_GAIN:.0f}%"


@dataclass(frozen=True)
class Tuning:
    """The result of tuning a repository.

    Attributes:
        placement: The threads of each model, with the reasons.
        written: The files that were written, below the repository.
        notes: Remarks on the measurement.
    """

    placement: Placement
    written: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def tune_repository(
    repository: Path, objective: TuningObjective, tokens: int, progress: ProgressCallback = silent
) -> Tuning:
    """Measure every model in the ensembles and commit their threads. The caller holds the repository's lock.

    Args:
        repository: The repository, which is up to date.
        objective: What the threads are chosen for.
        tokens: The length of the text that is measured.
        progress: Called as the models are measured.

    Returns:
        The threads of each model, and what was written.

    Raises:
        OneTrunkError: The configs could not be written. The repository is unchanged.
    """
    state = read_state(repository)
    cores = usable_cores()
    vocab_size = int(parameters_of(state.tokenizer)["vocab_size"])
    found = measure_models(_files(repository, state), tokens, vocab_size, cores, progress)
    by = "build-repo --tune" if objective == "throughput" else f"build-repo --tune {objective}"
    placement = Placement(
        threads=choose_threads(found.times, cores, objective, tokens),
        measured=f"Measured by {by} on {processor_model()}, {cores} core{'' if cores == 1 else 's'}.",
    )
    # Only threads change: every mixture of old and new configs names the same models.
    _, written = commit_state(repository, replace(state, placement=placement))
    return Tuning(placement, tuple(written), (*_notes(found), *_notes_on(placement)))


def _files(repository: Path, state: RepositoryState) -> dict[str, Path]:
    """Return the ONNX files through which a request for all tasks goes, in that order."""
    config, _ = state.ensembles[0]
    return {
        step.model_name: repository / step.model_name / str(step.model_version) / MODEL_FILE
        for step in config.ensemble_scheduling.step
        if step.model_name != TOKENIZER
    }


def _notes(found: Measurement) -> tuple[str, ...]:
    if found.idle_fraction >= IDLE:
        return ()
    return (
        f"other programs took {100 * (1 - found.idle_fraction):.0f}% of the cores while --tune measured, so that more "
        "threads may help more than it seems: run the command again when the machine is idle",
    )


def _notes_on(placement: Placement) -> tuple[str, ...]:
    several = [name for name, threads in sorted(placement.threads.items()) if threads.count > 1]
    if not several:
        return ()
    return (
        f"more than one thread is right for serve-repo ({', '.join(several)}); in NVIDIA's own ONNX Runtime backend "
        "waiting threads spin, and one thread a model, as without --tune, is faster",
    )


def choose_threads(times: ModelTimes, cores: int, objective: TuningObjective, tokens: int) -> dict[str, Threads]:
    """Choose the threads of each model by its measured times.

    For ``throughput``, a model gets the fewest threads with which it is no bottleneck. Requests follow each other
    through the models, so with enough requests all cores are busy as long as no model takes longer for a text than all
    cores together take for all models. Splitting a model's work among threads costs processor time, so it must make the
    whole faster by three tenths.

    For ``latency``, a model gets as many threads as make a single text clearly faster on an idle machine.

    Args:
        times: The measured times; every model with the same numbers of threads.
        cores: The number of cores.
        objective: What the threads are chosen for.
        tokens: The length of the measured text.

    Returns:
        Model -> its threads, with the reason.
    """
    if objective == "latency":
        return {name: _fastest(part, tokens) for name, part in times.items()}
    chosen = {name: min(part) for name, part in times.items()}
    while True:
        slowest = max(times, key=lambda name: times[name][chosen[name]].wall_ms)
        more = _next_count(times, chosen, slowest, cores)
        if more is None:
            share = _cores_ms(times, chosen, cores)
            return {name: _for_throughput(part, chosen[name], share, cores, tokens) for name, part in times.items()}
        chosen[slowest] = more


def _cores_ms(times: ModelTimes, chosen: Mapping[str, int], cores: int) -> float:
    """Return the time per text in ms if all cores work all the time."""
    return sum(times[name][count].cpu_ms for name, count in chosen.items()) / cores


def _pace_ms(times: ModelTimes, chosen: Mapping[str, int], cores: int) -> float:
    """Return the time per text in ms with enough requests: the slowest model's, or all cores' if that is longer."""
    slowest = max(times[name][count].wall_ms for name, count in chosen.items())
    return max(slowest, _cores_ms(times, chosen, cores))


def _next_count(times: ModelTimes, chosen: Mapping[str, int], name: str, cores: int) -> int | None:
    """Return the next number of threads of a model that makes the whole clearly faster, or None."""
    target = (1 - _MIN_GAIN_OF_SPLIT) * _pace_ms(times, chosen, cores)
    counts = (count for count in sorted(times[name]) if count > chosen[name])
    return next((count for count in counts if _pace_ms(times, {**chosen, name: count}, cores) <= target), None)


def _for_throughput(part: Mapping[int, ModelTime], count: int, share: float, cores: int, tokens: int) -> Threads:
    together = f"{'the one core gives' if cores == 1 else f'all {cores} cores together give'} {1e3 / share:.1f} texts/s"
    together += f" ({_ms(share)} a text)"
    fewest, wall = min(part), part[count].wall_ms
    if wall > share:
        why = f"it holds the others up ({together}), and more threads would not win three tenths for the whole"
    elif count == fewest:
        why = f"it keeps up with the whole: {together}"
    else:
        why = f"with {_threads(fewest)} it takes {_ms(part[fewest].wall_ms)} and holds the others up: {together}"
    return Threads(count=count, reason=f"{_threads(count)}: {_ms(wall)} a text of {tokens} tokens; {why}.")


def _fastest(part: Mapping[int, ModelTime], tokens: int) -> Threads:
    chosen = fewest = min(part)
    for count in sorted(part):
        if part[count].wall_ms <= (1 - _MIN_GAIN) * part[chosen].wall_ms:
            chosen = count
    others = {count: time.wall_ms for count, time in part.items() if count != chosen}
    reason = f"{_threads(chosen)}: {_ms(part[chosen].wall_ms)} a text of {tokens} tokens"
    if chosen != fewest:
        reason += f", with {_threads(fewest)} {_ms(part[fewest].wall_ms)}"
    if more := {count: wall for count, wall in others.items() if count > chosen}:
        best = min(more, key=lambda count: more[count])
        reason += f"; {_threads(best)} ({_ms(more[best])}) would not save {_PERCENT}"
    return Threads(count=chosen, reason=f"{reason}.")


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _ms(value: float) -> str:
    return f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"
