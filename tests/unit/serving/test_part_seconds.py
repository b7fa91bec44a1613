"""The histogram of a part's seconds, which the tokenizer and the `onnxruntime` backend each have a copy of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from onetrunk.protocol.names import CHECK_ID

FILES = ("builder/onetrunk/repository/tokenizer/model.py", "server/onetrunk/serving/backends/onnxruntime/model.py")


def test_both_copies_are_the_same(load: Callable[[str], Any]) -> None:
    one, other = (load(file) for file in FILES)
    assert inspect.getsource(one.PartSeconds) == inspect.getsource(other.PartSeconds)
    assert one.CHECK_ID == other.CHECK_ID == CHECK_ID


@pytest.mark.parametrize("file", FILES)
def test_it_is_told_once_a_second_as_prometheus_counts(
    load: Callable[[str], Any], triton: ModuleType, file: str
) -> None:
    seconds = load(file).PartSeconds("head_mood")
    one, check = triton.Request({}, []), triton.Request({}, [], CHECK_ID)

    def told() -> dict[str, float]:
        found = {}
        for kind in ("bucket", "sum", "count"):
            for metric in triton.MetricFamily.made[f"onetrunk_part_seconds_{kind}"].metrics:
                assert metric.labels["part"] == "head_mood"
                found[metric.labels.get("le", kind)] = metric.value
        return found

    seconds.add(0.001, [one, check, one])
    seconds.add(0.3, [one])
    seconds.add(7.0, [check])
    assert set(told().values()) == {0.0}
    seconds.told_at -= 1.0
    seconds.add(60.0, [one])
    found = told()
    assert (found["count"], found["sum"]) == (4, pytest.approx(60.302))
    buckets = {name: value for name, value in found.items() if name not in ("count", "sum")}
    assert [buckets[le] for le in ("0.0005", "0.001", "0.25", "0.5", "5", "+Inf")] == [0, 2, 2, 3, 3, 4]
    assert list(buckets.values()) == sorted(buckets.values())
    seconds.told_at -= 1.0
    seconds.add(0.002, [one])
    assert (told()["count"], told()["0.001"], told()["0.0025"]) == (5, 2, 3)
