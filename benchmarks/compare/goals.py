"""The goals of serving, one ratio each, from what the scenarios measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import names
from benchmarks.compare.measure import ratios
from benchmarks.compare.result import Point, Result


@dataclass(frozen=True)
class ServingGoal:
    """A ratio that serving should reach.

    Attributes:
        name: Its name in summary.json.
        what: What is compared, in words.
        least: The least ratio that is good enough; None where there is a greatest one instead.
        most: The greatest ratio that is good enough.
        value: The measured ratio: median, least and greatest of the repeats; None where it was not measured.
    """

    name: str
    what: str
    least: float | None
    most: float | None
    value: tuple[float, float, float] | None

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches it; None where it was not measured."""
        if self.value is None:
            return None
        if self.least is not None:
            return self.value[0] >= self.least
        return self.most is not None and self.value[0] <= self.most


def find_goals(results: Mapping[str, Result], folder: Path) -> list[ServingGoal]:
    """Return all goals with their measured ratios.

    Args:
        results: Scenario -> its result; a missing scenario leaves its goals open.
        folder: The folder with the figures of other benchmarks (padding.json, precision.json).
    """
    found = []
    for name, what, least, most, measure in _GOALS:
        try:
            value = measure(results, folder)
        except (KeyError, FileNotFoundError):
            value = None
        found.append(ServingGoal(name, what, least, most, value))
    return found


Results = Mapping[str, Result]
Value = tuple[float, float, float]
_Measure = Callable[[Results, Path], Value]


def best_of(result: Result, system: str, tokens: int, concurrency: int) -> Point:
    """Of several settings of one system, which stand in brackets behind its name, the fastest."""
    points = [
        point
        for point in result.points
        if point.system.split(" (")[0] == system and (point.tokens, point.concurrency) == (tokens, concurrency)
    ]
    if not points:
        raise KeyError(system)
    return max(points, key=lambda point: point.measured.median("throughput"))


def beside(result: Result, point: Point) -> Point | None:
    """Ours as it was measured beside a peer; None for ours itself."""
    mark = f"(beside {point.system})"
    load = (point.tokens, point.concurrency)
    return next((p for p in result.points if p.system.endswith(mark) and (p.tokens, p.concurrency) == load), None)


def _against(scenario: str, ours: str, other: str, tokens: int, concurrency: int = 4) -> _Measure:
    def measure(results: Results, folder: Path) -> Value:
        result = results[scenario]
        mine = result.find(ours, tokens, concurrency)
        return ratios(mine.measured, best_of(result, other, tokens, concurrency).measured)

    return measure


def _subset_error(concurrency: int, *, cpu: bool = False) -> _Measure:
    """How far the time of one shallow task is from its share of the layers: |t / t_all / (tap / deepest) - 1|.

    Args:
        concurrency: texts on their way at a time.
        cpu: whether the time is the processor's. A shallow request has one segment, which may run in one thread, while
            the segments of a deep one work side by side: with several texts its time also counts the cores left idle.
    """

    def measure(results: Results, folder: Path) -> Value:
        result = results["subset"]
        share = result.figures["shallow_tap"] / result.figures["deep_tap"]
        shallow = result.find(f"one task on tap {result.figures['shallow_tap']:g}", 128, concurrency).measured
        every = result.find("all eight tasks", 128, concurrency).measured
        times = ratios(shallow, every, "cpu_ms") if cpu else ratios(every, shallow)
        errors = [abs(time / share - 1) for time in times]
        return errors[0], min(errors), max(errors)

    return measure


def _tasks64_time(results: Results, folder: Path) -> Value:
    result = results["tasks"]
    eight = result.find(f"{names.INT8_HEADS}: 8", 128, 4)
    many = result.find(f"{names.INT8_HEADS}: 64", 128, 4)
    return ratios(eight.measured, many.measured)


def _tasks64_memory(results: Results, folder: Path) -> Value:
    result = results["tasks"]
    over = []
    for count in (64, 8):
        point = result.find(f"{names.INT8_HEADS}: {count}", 128, 4)
        over.append(point.measured.memory_mb - (point.weights_mb or 0.0))
    return (over[0] / over[1],) * 3


def _all_vs_eight(precision: str, cpu: bool = False) -> _Measure:
    """Time of a text for all tasks that ship, over that for GLUE's eight, of 32 tokens, 4 at a time."""

    def measure(results: Results, folder: Path) -> Value:
        result = results["understanding"]
        count = int(result.figures["tasks"])
        everything, eight = (result.find(f"{precision}: {tasks}", 32, 4).measured for tasks in (count, 8))
        return ratios(everything, eight, "cpu_ms") if cpu else ratios(eight, everything)

    return measure


def _vs_best_peer(results: Results, folder: Path) -> Value:
    """Return the lowest ratio over all peers, lengths and concurrencies; NaN counts as the lowest.

    Above 1, OneTrunk is ahead everywhere.
    """
    result = results["peers"]
    pairs = [(beside(result, point), point) for point in result.points]
    found = [ratios(ours.measured, point.measured) for ours, point in pairs if ours is not None]
    if not found:
        raise KeyError("peers")
    return min(found, key=lambda value: (not math.isnan(value[0]), value))


def _number(file: str, key: str) -> _Measure:
    def measure(results: Results, folder: Path) -> Value:
        values: dict[str, Any] = json.loads((folder / file).read_text(encoding="utf-8"))
        if values[key] is None:
            raise KeyError(key)  # not measured, as bf16 where no processor computes in it
        return (float(values[key]),) * 3

    return measure


_BASE = "BERT-base shape, 128 tokens, 4 at a time: eight tasks against"
_GOALS: tuple[tuple[str, str, float | None, float | None, _Measure], ...] = (
    (
        "vs_one",
        f"{_BASE} one single-task model, heads in int8 and the rest in fp32",
        1.3,
        None,
        _against("base", names.INT8_HEADS, names.SINGLE, 128),
    ),
    (
        "vs_one_fp32",
        "the same with heads in fp32",
        1.3,
        None,
        _against("base", names.GROUPED, names.SINGLE, 128),
    ),
    (
        "vs_eight",
        f"{_BASE} eight single-task models, heads in int8 and the rest in fp32",
        10.0,
        None,
        _against("base", names.INT8_HEADS, names.SINGLES, 128),
    ),
    (
        "vs_eight_fp32",
        "the same with heads in fp32",
        10.0,
        None,
        _against("base", names.GROUPED, names.SINGLES, 128),
    ),
    (
        "vs_trunk",
        f"{_BASE} the trunk alone, heads in int8 and the rest in fp32",
        0.9,
        None,
        _against("base", names.INT8_HEADS, names.TRUNK, 128),
    ),
    (
        "vs_trunk_fp32",
        "the same with heads in fp32",
        0.9,
        None,
        _against("base", names.GROUPED, names.TRUNK, 128),
    ),
    (
        "small_vs_one",
        "default trunk, one-layer heads, 32 tokens: eight tasks against one single-task model, heads in int8 and the "
        "rest in fp32",
        1.0,
        None,
        _against("small", names.INT8_HEADS, names.SINGLE, 32),
    ),
    (
        "small_vs_one_fp32",
        "the same with heads in fp32",
        1.0,
        None,
        _against("small", names.GROUPED, names.SINGLE, 32),
    ),
    (
        "shipped_vs_one",
        "shipped bundles, 32 tokens: eight tasks against one single-task model, both in fp32",
        0.85,
        None,
        _against("shipped", names.GROUPED, names.SINGLE, 32),
    ),
    (
        "shipped_vs_one_128",
        "the same, 128 tokens",
        0.85,
        None,
        _against("shipped", names.GROUPED, names.SINGLE, 128),
    ),
    (
        "shipped_int8_vs_one_fp32",
        "shipped bundles, 32 tokens: eight tasks in int8 against one single-task model in fp32",
        1.5,
        None,
        _against("shipped", names.INT8, names.SINGLE, 32),
    ),
    (
        "shipped_int8_vs_one_fp32_128",
        "the same, 128 tokens",
        1.5,
        None,
        _against("shipped", names.INT8, names.SINGLE, 128),
    ),
    (
        "subset_error",
        "one shallow task, 1 at a time: its time against its layers",
        None,
        0.25,
        _subset_error(1),
    ),
    ("subset_error_4", "the same, 4 at a time", None, 0.25, _subset_error(4)),
    ("subset_error_4_cpu", "the same, 4 at a time, by processor time", None, 0.25, _subset_error(4, cpu=True)),
    (
        "ten_vs_eight",
        "shipped bundles, 32 tokens: time of all ten tasks against the eight of GLUE",
        None,
        1.10,
        _all_vs_eight(names.GROUPED),
    ),
    ("ten_vs_eight_cpu", "the same by processor time", None, 1.10, _all_vs_eight(names.GROUPED, cpu=True)),
    ("ten_vs_eight_int8", "the same, all in int8, time", None, 1.10, _all_vs_eight(names.INT8)),
    ("tasks64_time", "64 tasks against 8: time", None, 2.0, _tasks64_time),
    ("tasks64_memory", "64 tasks against 8: memory of the server over the weights", None, 2.0, _tasks64_memory),
    (
        "int8_speedup",
        "shipped bundles, 128 tokens, eight tasks: all in int8 against fp32",
        1.8,
        None,
        _against("shipped", names.INT8, names.GROUPED, 128),
    ),
    (
        "bf16_speedup",
        "shipped bundles, 128 tokens, eight tasks: all in bf16 (AMX) against fp32",
        1.8,
        None,
        _against("shipped", names.BF16, names.GROUPED, 128),
    ),
    (
        "bf16_vs_one",
        "shipped bundles, 32 tokens: eight tasks in bf16 against one single-task model in fp32",
        1.5,
        None,
        _against("shipped", names.BF16, names.SINGLE, 32),
    ),
    (
        "int8_metric_loss",
        "greatest loss of a task's metric by int8, in points",
        None,
        0.5,
        _number("precision.json", "int8_metric_loss"),
    ),
    (
        "bf16_metric_loss",
        "greatest loss of a task's metric by bf16, in points",
        None,
        0.5,
        _number("precision.json", "bf16_metric_loss"),
    ),
    ("padding_share", "padding on GLUE's dev sets, shuffled", None, 0.15, _number("padding.json", "padding_share")),
    ("vs_best_peer", "eight tasks against the best peer, the least ratio over all loads", 1.0, None, _vs_best_peer),
)
