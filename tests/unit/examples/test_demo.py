"""The demo tells what its steps do while they do it, and everything of a step that fails."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from onetrunk.tasks.head_spec import find_bundles, read_spec

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("ONETRUNK_DEMO_BEGAN", raising=False)
    names = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    names["follow"].__globals__["EVERY_S"] = 0.05
    return names


def test_a_step_is_told_in_short_while_it_runs(demo: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    script = "import time; print('Collecting torch==2.13.0 (from -r x)', flush=True); time.sleep(0.3); print('noise')"
    assert demo["follow"]([sys.executable, "-c", script], {}, demo["of_pip"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split(" s ")[1].strip() == "collecting torch==2.13.0"


def test_a_step_that_fails_is_told_in_full(demo: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    script = "print('the reason'); raise SystemExit(3)"
    assert demo["follow"]([sys.executable, "-c", script], {}, demo["of_pip"]) == 3
    assert "the reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "short"),
    [
        ("Processing /a/torch-2.13.0+cpu-cp311.whl (from -r y (line 2))", "reading torch-2.13.0+cpu-cp311.whl"),
        ("Downloading https://x.org/a/onnx-1.22.0.whl (19.1 MB)", "downloading onnx-1.22.0.whl (19.1 MB)"),
        ("Installing collected packages: b, c, a", "unpacking 3 packages, b to a"),
        ("Requirement already satisfied: x", None),
    ],
)
def test_pip_is_told_without_paths(demo: dict[str, Any], line: str, short: str | None) -> None:
    assert demo["of_pip"](line) == short


def test_each_text_is_asked_only_what_reads_such_texts() -> None:
    forms = {path.name: read_spec(path).form for path in find_bundles(ROOT / "heads")}
    rows = [json.loads(line) for line in (ROOT / "examples" / "demo.jsonl").read_text().splitlines()]
    for row in rows:
        assert {forms[task] for task in row["tasks"]} == {"pair" if "text_pair" in row else "single"}
    assert {task for row in rows if "film" in row["text"] for task in row["tasks"]} == {"sst2"}
