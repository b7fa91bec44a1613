"""With how many threads each model should compute, from what it costs with one and with more. A pure rule, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from onetrunk.protocol.manifest import Threads
from onetrunk.repository.part_times import PartTime, Times

Goal = Literal["throughput", "latency"]

# A thread more must save so much of the time: for less, the cores are better left to other requests.
_WORTH_IT = 0.1
# Under load the threads of one model wait for each other whenever another model has one of their cores, which no
# measurement of a model alone shows: what would win a fifth by its figures lost a sixth on a server.
_WORTH_A_SPLIT = 0.3
_PERCENT = f"{100 * _WORTH_IT:.0f}%"


def choose_threads(times: Times, cores: int, goal: Goal, tokens: int) -> dict[str, Threads]:
    """The threads of each model, with the reason.

    For ``throughput``: as few as the model needs to be no bottleneck. Requests follow each other through the models, so
    with enough of them all cores are busy as long as no model takes longer for a text than all cores together take for
    all models. Splitting its work among threads costs time that is then lost: it must win three tenths for the whole.

    For ``latency``: as many as make a text clearly faster while nobody else asks.

    Args:
        times: what was measured; every model with the same numbers of threads.
        cores: how many there are.
        goal: what counts.
        tokens: length of the text that was measured with.
    """
    if goal == "latency":
        return {name: _fastest(part, tokens) for name, part in times.items()}
    chosen = {name: min(part) for name, part in times.items()}
    while True:
        slowest = max(times, key=lambda name: times[name][chosen[name]].wall_ms)
        more = _next(times, chosen, slowest, cores)
        if more is None:
            share = _share(times, chosen, cores)
            return {name: _kept_up(part, chosen[name], share, cores, tokens) for name, part in times.items()}
        chosen[slowest] = more


def _share(times: Times, chosen: Mapping[str, int], cores: int) -> float:
    """Milliseconds a text, if all cores work all the time."""
    return sum(times[name][count].cpu_ms for name, count in chosen.items()) / cores


def _pace(times: Times, chosen: Mapping[str, int], cores: int) -> float:
    """Milliseconds a text, with requests enough: the slowest model's, or all cores' if that is more."""
    slowest = max(times[name][count].wall_ms for name, count in chosen.items())
    return max(slowest, _share(times, chosen, cores))


def _next(times: Times, chosen: Mapping[str, int], name: str, cores: int) -> int | None:
    """The next number of threads of a model by which the whole is clearly faster; None where there is none."""
    wanted = (1 - _WORTH_A_SPLIT) * _pace(times, chosen, cores)
    counts = (count for count in sorted(times[name]) if count > chosen[name])
    return next((count for count in counts if _pace(times, {**chosen, name: count}, cores) <= wanted), None)


def _kept_up(part: Mapping[int, PartTime], count: int, share: float, cores: int, tokens: int) -> Threads:
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


def _fastest(part: Mapping[int, PartTime], tokens: int) -> Threads:
    chosen = fewest = min(part)
    for count in sorted(part):
        if part[count].wall_ms <= (1 - _WORTH_IT) * part[chosen].wall_ms:
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
