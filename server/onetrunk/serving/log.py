"""Triton's log, and the reason in it why Triton did not start."""

from __future__ import annotations

import re
from pathlib import Path

# The first line of an entry, like: E1123 22:30:53.123456 7121 model_lifecycle.cc:642] "failed to load ..."
ENTRY = re.compile(r"^(?P<level>[EWI])\d{4} \S+ \d+ \S+\] ", re.MULTILINE)
FAILED_MODEL = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)", re.DOTALL)
# What Triton and pybind11 put around the message that a Python model raised.
WRAPPING = re.compile(r"^(Internal|Invalid argument|TritonModelException|RuntimeError): ")
TRACEBACK = re.compile(r"\s*\n+At:\n.*", re.DOTALL)
NO_GPU = re.compile(r"has kind KIND_GPU but (no GPUs are available|server does not support GPUs)")
# Triton's own message does not say what to do.
BUILT_FOR_A_GPU = (
    "built for a GPU, and Triton finds none on this machine: build-repo --device cpu, or serve where one is "
    "(docs/docker.md)"
)
# Where the reason of a death is looked for.
TAIL_BYTES = 64 << 10
# How many of the models that fail for one reason are named.
MOST_NAMES = 3
FAILED_ENDPOINT = re.compile(r"failed to start .* service: .*")
LAST_WORDS = re.compile(r"^error: creating server: (?P<reason>.*?)(?:\n\n|\Z)", re.DOTALL | re.MULTILINE)


def one_line(reason: str) -> str:
    """Return a reason without the wrapping, the traceback and line breaks."""
    reason = TRACEBACK.sub("", reason.strip().strip('"').replace("\\n", "\n"))
    while WRAPPING.match(reason):
        reason = WRAPPING.sub("", reason)
    return " ".join(reason.replace('\\"', '"').split()).rstrip(";")


def read_since(path: Path, offset: int) -> str:
    """Return what was logged after an offset in bytes."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode("utf-8", errors="replace")


def tail(path: Path, offset: int) -> str:
    """Return what was logged last after an offset in bytes; nothing if the log is gone."""
    try:
        return read_since(path, max(offset, path.stat().st_size - TAIL_BYTES))
    except OSError:
        return ""


def entries(log: str) -> list[tuple[str, str]]:
    """Split a log into (level, message). Tables that Triton prints belong to the entry before them."""
    starts = list(ENTRY.finditer(log))
    ends = ([start.start() for start in starts] + [len(log)])[1:]
    return [(start["level"], log[start.end() : end].strip()) for start, end in zip(starts, ends, strict=True)]


def failed_models(log: str) -> dict[str, str]:
    """Return model -> reason, of the models that did not load."""
    found = {}
    for level, message in entries(log):
        match = FAILED_MODEL.match(message.strip('"'))
        if level == "E" and match:
            found[match["model"]] = one_line(match["reason"])
    return found


def loaded_models(log: str) -> set[str]:
    """Return the names of the models that were loaded."""
    return set(re.findall(r"successfully loaded '([^']+)'", log))


def failure_reason(log: str) -> str | None:
    """Return in one line why Triton did not start: the models' reasons, each once, or else Triton's own."""
    models: dict[str, list[str]] = {}
    for name, reason in sorted(failed_models(log).items()):
        own = BUILT_FOR_A_GPU if NO_GPU.search(reason) else reason.removeprefix(f"{name}:").strip()
        models.setdefault(own, []).append(name)
    if models:
        return "; ".join(f"{_listed(names)}: {reason}" for reason, names in models.items())
    last_words = LAST_WORDS.search(log)
    if last_words:
        return one_line(last_words["reason"])
    endpoints = [one_line(message) for _, message in entries(log) if FAILED_ENDPOINT.match(message.strip('"'))]
    return "; ".join(endpoints) or None


def _listed(names: list[str]) -> str:
    rest = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
