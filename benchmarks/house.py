"""Measure the house: how many files and lines the product has, and through how many files one piece of work runs.

    python benchmarks/house.py                 files, lines and the three walks of this checkout, as JSON
    python benchmarks/house.py --checkout DIR  of another checkout, with the Python of its environment

A walk runs a command in this process on a small input and notes in which of the product's files functions run: `rooms`
is the number of those files, `doors` the number of different pairs of files of which one calls the other. Imports do
not count, and neither does what runs in other processes, such as Triton's. `walk_train` trains a head on 40 texts,
`walk_build` builds a repository of one shipped bundle, and `walk_ask` asks a running server about one text.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

SOURCE_ROOTS = ("builder", "server", "clients")
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
WALKS = ("walk_train", "walk_build", "walk_ask")

_TASK = """
kind = "classification"
labels = ["no", "yes"]
metrics = ["accuracy"]
train = "train.csv"
dev = "dev.csv"
"""


def count_source(checkout: Path) -> dict[str, int]:
    """Return the number of Python files below the source roots, of their lines, and of their lines of code."""
    files = [path for root in SOURCE_ROOTS for path in (checkout / root).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return {
        "files": len(files),
        "lines": sum(len(text.splitlines()) for text in texts),
        "code_lines": sum(count_code_lines(text) for text in texts),
    }


def count_code_lines(text: str) -> int:
    """Return the number of a module's lines that hold code: no blank lines, comments or docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


class Footprints:
    """The files of the product in which functions run, and the calls that lead from one into another."""

    def __init__(self, checkout: Path) -> None:
        self._roots = tuple(f"{checkout / root}{os.sep}" for root in SOURCE_ROOTS)
        self.rooms: set[str] = set()
        self.doors: set[tuple[str, str]] = set()

    def record(self, run: Callable[[], object]) -> None:
        """Run something, noting every call in every thread that it starts."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            run()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        file = frame.f_code.co_filename
        if not file.startswith(self._roots):
            return
        self.rooms.add(file)
        caller = frame.f_back
        # The nearest frame of the product: libraries in between, such as click, are no rooms.
        while caller is not None and not caller.f_code.co_filename.startswith(self._roots):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != file:
            self.doors.add((caller.f_code.co_filename, file))


def run_command(name: str, *arguments: str) -> None:
    """Run a console script of the installed project in this process."""
    (script,) = (entry for entry in entry_points(group="console_scripts") if entry.name == name)
    script.load().main(args=list(arguments), standalone_mode=False)


def write_task(folder: Path) -> Path:
    """Write a task of 40 texts to train on and 20 to measure with."""
    rows = [f"{'a good' if row % 2 else 'a bad'} film, number {row},{'yes' if row % 2 else 'no'}" for row in range(60)]
    for name, part in (("train", rows[:40]), ("dev", rows[40:])):
        lines = [f'"{text}",{label}' for text, label in (row.rsplit(",", 1) for row in part)]
        (folder / f"{name}.csv").write_text("\n".join(["sentence,label", *lines]) + "\n", encoding="utf-8")
    task = folder / "film.toml"
    task.write_text(_TASK, encoding="utf-8")
    return task


def walk(name: str, checkout: Path, folder: Path) -> dict[str, int]:
    """Run one of the walks in this process.

    Args:
        name: Which one.
        checkout: The checkout whose files count.
        folder: An empty folder to work in.
    """
    heads, repository = str(checkout / "heads"), str(folder / "model_repository")
    prints = Footprints(checkout)
    if name == "walk_train":
        arguments = [str(write_task(folder)), "--tap", "3", "--heads", str(folder), "--cache", str(folder / "cache")]
        prints.record(lambda: run_command("train-head", *arguments, "--json"))
    elif name == "walk_build":
        build = ["build-repo", "--tasks", "sst2", "--heads", heads, "--output", repository]
        prints.record(lambda: run_command(*build))
    else:
        run_command("build-repo", "--tasks", "sst2", "--heads", heads, "--output", repository)
        serve = [str(Path(sys.executable).parent / "serve-repo"), repository, "--json"]
        ports = [option for kind in ("http", "grpc", "metrics") for option in (f"--{kind}-port", "0")]
        with subprocess.Popen([*serve, *ports], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["grpc"]
            prints.record(lambda: run_command("ask-repo", "A gripping film.", "--url", url))
            server.terminate()
    return {"rooms": len(prints.rooms), "doors": len(prints.doors)}


def main() -> None:
    """Print the figures of a checkout, or of one walk in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--walk", choices=WALKS, help="only this one, in this process")
    given = parser.parse_args()
    checkout = given.checkout.resolve()
    if given.walk is not None:
        with tempfile.TemporaryDirectory() as folder:
            found = walk(given.walk, checkout, Path(folder))
        print(json.dumps(found))
        return
    figures: dict[str, Any] = count_source(checkout)
    for name in WALKS:
        # One process each: what is imported and cached by one walk must not spare the next its way.
        command = [sys.executable, __file__, "--checkout", str(checkout), "--walk", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=checkout)
        figures[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
