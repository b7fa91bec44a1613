"""The attack on a server counts what it saw, and its figures are the ten that were asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hostile import bad, clients, report
from benchmarks.hostile.faults import LIMIT_S, Asked, outage, served_by
from benchmarks.hostile.target import role_of

TASKS = {"cola": {"tap": 1}, "intent": {"tap": 2}, "slots": {"tap": 3}}


def fault(noticed: float | None, neighbours: int) -> dict:
    return {"noticed_s": noticed, "outage_s": 9.0, "outages_s": {}, "neighbours_failed": neighbours, "said": []}


def good(failed: int = 0, wrong: int = 0) -> dict:
    tally = clients.Tally(sent=10, largest=1e-6, seconds=[0.1])
    tally.failed["refused"] = failed
    tally.wrong["cola"] = wrong
    return tally.record()


DETAILS = {
    "machine": "2 cores",
    "date": "2026-11-28",
    "mixed": {
        "good": good(1, 2),
        "bad": {"no JSON": {"400": 7, "longest_s": 0.1}},
        "seconds": 9,
        "triton_restarted": False,
    },
    "storm": {"attack": {"OK": 1}, "good": good(3), "seconds": 9, "triton_restarted": False},
    "greed": {"attack": {"calls": 9}, "clients": 4, "good": good(3), "seconds": 9, "triton_restarted": False},
    "memory": {
        "good": good(),
        "gzip": {
            "outcomes": {"413": 32},
            "before_mb": 900.0,
            "peak_mb": 925.5,
            "growth_mb": 25.5,
            "shm_growth_mb": 0.0,
        },
    },
    "rest": {
        "minutes": 10,
        "before": {"rss_mb": 900.0, "shm_mb": 20.0},
        "after_rest": {"rss_mb": 950.0, "shm_mb": 23.5},
    },
    "faults": {
        "SIGKILL head_cola": fault(0.5, 0),
        "SIGSTOP head_cola": fault(4.5, 0),
        "SIGSTOP head_slots": fault(5.5, 2),
        "SIGSTOP front": fault(99.0, 99),
    },
    "spy": {"seen": {"text": "/dev/shm/x"}, "opened": []},
    "tamper": {
        "labels": {"caught": True, "seconds": 0.4, "said": "refused"},
        "config": {"caught": False, "seconds": 1.0, "said": "Ready"},
    },
}


def test_the_figures_are_these_ten(tmp_path: Path) -> None:
    report.write(DETAILS, tmp_path / "hostile")
    assert json.loads((tmp_path / "hostile" / "summary.json").read_text()) == {
        "good_sent": 10,
        "good_failed": 3,
        "cancel_storm_failed": 3,
        "greed_failed": 3,
        "hang_noticed_s": 5.5,
        "hang_neighbours_failed": 2,
        "gzip_peak_mb": 25.5,
        "shm_left_mb": 3.5,
        "key_seen_by_other_user": False,
        "tamper_caught": False,
    }
    page = (tmp_path / "hostile.md").read_text()
    assert "`python -m benchmarks.hostile" in page
    assert "| SIGSTOP head_slots | 5.5 | 9.0 | 0 | 2 |" in page
    assert all(line.count("|") >= 3 for line in page.splitlines() if line.startswith("|"))


def test_what_was_not_measured_is_no_figure() -> None:
    assert set(report.summary({}).values()) == {None}
    assert tuple(report.summary({})) == report.KEYS == tuple(report.MEANING)


def test_a_hang_that_nobody_noticed_counts_as_long_as_was_waited() -> None:
    found = {"faults": {"SIGSTOP head_cola": fault(None, 0), "SIGSTOP tokenizer": fault(2.0, 0)}}
    assert report.summary(found)["hang_noticed_s"] == LIMIT_S


def test_an_outage_lasts_until_the_first_answer_after_the_last_failure() -> None:
    asked = [
        Asked("cola", 0.0, 9.0, "before the signal"),
        Asked("cola", 9.5, 11.0, None),
        Asked("cola", 11.0, 12.0, "no answer"),
        Asked("cola", 11.5, 12.5, None),  # was sent before the failure was known
        Asked("cola", 13.0, 14.0, None),
    ]
    assert outage(asked, since=10.0) == 4.0
    assert outage(asked[:-1], since=10.0) is None
    assert outage(asked, since=12.4) == 0.0


@pytest.mark.parametrize(
    ("role", "tasks"),
    [
        ("head_cola", {"cola"}),
        ("trunk_00_01", {"cola", "intent", "slots"}),
        ("trunk_01_02", {"intent", "slots"}),
        ("trunk_02_03", {"slots"}),
        ("tokenizer", set(TASKS)),
        ("front", set(TASKS)),
    ],
)
def test_neighbours_are_the_tasks_that_do_not_need_a_process(role: str, tasks: set[str]) -> None:
    assert served_by(role, TASKS) == tasks


def test_processes_are_told_apart_by_their_command_lines() -> None:
    stub = "/run/triton_python_backend_stub"
    assert role_of([stub, "/repo/head_cola/1/model.onnx", "region"], "/repo") == "head_cola"
    assert role_of(["/opt/bin/tritonserver", "--model-repository=/repo"], "/repo") == "triton"
    assert role_of(["python", "-m", "onetrunk.serving.front"], "/repo") == "front"
    assert role_of(["python", "/x/guard.py", "/opt/bin/tritonserver"], "/repo") == "guard"
    assert role_of(["sh"], "/repo") == role_of([], "/repo") == ""


def test_answers_by_token_are_compared_over_the_shorter_bucket() -> None:
    reference = [[1.0, 0.5], [2.0, 0.5]]
    assert clients.difference(np.array([[1.0, 0.5], [2.0, 0.75], [-1.0, 0.0]]), reference) == 0.25
    assert clients.difference(np.array([0.25]), [0.5]) == 0.25


def test_a_bomb_is_a_thousand_times_larger_than_it_looks() -> None:
    assert len(bad.bomb(10, "gzip")) < 10 * bad.MIB / 500


def test_what_becomes_of_a_bad_request_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    client = bad.BadClient({"grpc": "127.0.0.1:1", "http": "127.0.0.1:1"})
    for error, outcome in ((ConnectionResetError(), "closed"), (TimeoutError(), "hung")):

        def fail(_: bad.BadClient, error: Exception = error) -> str:
            raise error

        monkeypatch.setitem(bad.KINDS, outcome, fail)
        client.step(outcome)
    monkeypatch.setitem(bad.KINDS, "right", lambda _: "answered")
    client.step("right")
    found = client.tally.record()
    assert {kind: re.sub(r"longest.*", "", " ".join(outcomes)).strip() for kind, outcomes in found.items()} == {
        "closed": "closed",
        "hung": "hung",
        "right": "answered",
    }
