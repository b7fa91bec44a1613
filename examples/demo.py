"""`make demo`: install, build the repository, start a real Triton, and ask it about a few texts.

It says what it does, each line with the seconds since the start. The first part runs before anything is installed, in
the Python that make was given; it starts this file again in the environment for the questions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = Path(".venv/bin")  # as the commands at the end name it
BEGAN = "ONETRUNK_DEMO_BEGAN"
# What a program says while it works is shown at most so often.
EVERY_S = 2.0

AFTERWARDS = f"""
Serve it: {BIN}/serve-repo
The page: http://127.0.0.1:8000/

Three ways to go on, while it is served:
  {BIN}/ask-repo "play the newest album of nina simone" --tasks intent,slots
  curl -s http://127.0.0.1:8000/v1/predict -d '{{"texts": ["A gripping film."], "tasks": ["sst2"]}}'
  {BIN}/deploy-head --list"""


def main() -> int:
    """Run the steps; return the exit status of the first that fails, or 0."""
    os.environ.setdefault(BEGAN, str(time.time()))
    # Once verbose and once quiet is pip's usual, of which one line a package is shown.
    pip = {"PIP_VERBOSE": "1", "PIP_PROGRESS_BAR": "off", "PYTHONUNBUFFERED": "1"}
    steps: tuple[tuple[str, list[str], dict[str, str], Callable[[str], str | None]], ...] = (
        ("installing into .venv", ["make", "--no-print-directory", ".venv/.serving"], pip, of_pip),
        ("building model_repository from heads/", [str(BIN / "build-repo"), "--tasks", "all"], {}, of_build),
    )
    for what, command, more, shorten in steps:
        say(f"{what}: {' '.join(command)}")
        status = follow(command, more, shorten)
        if status:
            return status
    command = [str(BIN / "python"), str(HERE / "demo.py"), "--ask"]
    status = subprocess.run(command, cwd=ROOT).returncode
    if not status:
        say("done")
        print(AFTERWARDS)
    return status


def ask(repository: Path = ROOT / "model_repository") -> None:
    """Serve a repository on free ports, ask about the texts of demo.jsonl, print the answers, and stop the server.

    Args:
        repository: The repository. Tasks that it lacks are not asked; a text of which it has none asks all that fit.
    """
    say("starting Triton")
    from rich.console import Console

    from onetrunk.client import Client
    from onetrunk.client.display import answer_table
    from onetrunk.client.lines import Line
    from onetrunk.serving import Server

    rows = [json.loads(line) for line in (HERE / "demo.jsonl").read_text(encoding="utf-8").splitlines()]
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server, Client(server.grpc_url) as client:
        say(f"{len(server.tasks)} tasks answer; asking each text what suits it")
        answered = []
        for number, row in enumerate(rows, 1):
            line = Line(number, row["text"], row.get("text_pair"))
            tasks = [task for task in row["tasks"] if task in server.tasks] or None
            (answer,) = client.predict([line.text], [line.pair], tasks=tasks)
            answered.append((line, answer))
        Console().print(answer_table(answered, top=1))
        say("stopping Triton")


def say(what: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"{time.time() - float(os.environ.setdefault(BEGAN, str(time.time()))):6.1f} s  {what}", flush=True)


def follow(command: list[str], more: dict[str, str], shorten: Callable[[str], str | None]) -> int:
    """Run a command, and show what it says in short; all of it if it fails.

    Args:
        command: The command, which runs in the checkout's root.
        more: Variables of its environment.
        shorten: A line -> what to show of it, or None.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said: list[str] = []

    def read(lines: Iterable[str]) -> None:
        for line in lines:
            said.append(line)

    reader = threading.Thread(target=read, args=(process.stdout,))
    reader.start()
    seen, shown = 0, ""
    while reader.is_alive():
        reader.join(EVERY_S)
        lines = said[seen:]
        seen += len(lines)
        short = next(filter(None, (shorten(line.strip()) for line in reversed(lines))), shown)
        if short != shown:
            say(f"  {short}")
            shown = short
    status = process.wait()
    if status:
        print("".join(said), file=sys.stderr)
        say(f"failed with exit status {status}: {' '.join(command)}")
    return status


def of_pip(line: str) -> str | None:
    """Return what pip does, without paths, hashes and everything that is there already."""
    if found := re.match(r"(Collecting|Downloading) (\S+)(.*)", line):
        size = re.search(r"\([\d.]+ [kMG]?B\)", found[3])
        return " ".join(filter(None, (found[1].lower(), Path(found[2]).name, size and size[0])))
    if found := re.match(r"Processing \S*?([^/\s]+\.whl)", line):
        return f"reading {found[1]}"
    if found := re.match(r"Installing collected packages: (.*)", line):
        names = found[1].split(", ")
        return (
            f"unpacking {len(names)} packages, {names[0]} to {names[-1]}" if len(names) > 1 else f"unpacking {names[0]}"
        )
    return None


def of_build(line: str) -> str | None:
    """Return what build-repo does, without its tables."""
    return line if re.search(r"\d+ of \d+$", line) else None


if __name__ == "__main__":
    if sys.argv[1:] == ["--ask"]:
        ask()
    else:
        sys.exit(main())
