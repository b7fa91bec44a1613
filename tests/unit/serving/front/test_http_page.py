"""The examples of docs/http.md, run in their languages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.fake_triton import EMBEDDING
from tests.unit.serving.front.conftest import Served

PAGE = Path(__file__).parents[4] / "docs" / "http.md"
EXAMPLES = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
ENDS = {"bash": "sh", "python": "py", "javascript": "mjs", "java": "java", "go": "go"}
NEEDS = {"bash": "curl", "javascript": "node", "java": "javac", "go": "go"}
COMMANDS = {
    "bash": ["bash", "-e", "-o", "pipefail"],
    "python": [sys.executable],
    "javascript": ["node"],
    "java": ["java"],
    "go": ["go", "run"],
}


def run(served: Served, folder: Path, language: str, text: str) -> str:
    """What an example prints."""
    if shutil.which(NEEDS.get(language, "sh")) is None:
        pytest.skip(f"needs {NEEDS[language]}")
    assert "http://127.0.0.1:8000" in text
    file = folder / f"Ask.{ENDS[language]}"
    file.write_text(text.replace("http://127.0.0.1:8000", served.url))
    done = subprocess.run([*COMMANDS[language], str(file)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("language", "text"),
    [pytest.param(*example, id=f"{at}-{example[0]}") for at, example in enumerate(EXAMPLES)],
)
def test_an_example_runs(served: Served, tmp_path: Path, language: str, text: str) -> None:
    served.triton.tasks["embedding"] = dict(EMBEDDING)
    answer = run(served, tmp_path, language, text)
    assert ('"embedding":[' if "/v1/embeddings" in text else "positive") in answer
    assert answer.count("error") == ('"text": ""' in text), "only the line without a text has no answer"


def test_there_is_an_example_in_each_language() -> None:
    assert {language for language, _ in EXAMPLES} == set(ENDS)
