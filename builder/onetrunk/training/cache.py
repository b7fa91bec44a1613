"""The cache of trunk states on disk: since the trunk is frozen, it runs once per text, whatever is trained on it.

One folder holds one list of texts as one trunk reads them:

    <root>/states/<trunk>/<hash over texts, cut and arithmetic>/
        about.json      what it is, and what passes of the trunk took
        lengths.npy     tokens a text, in the order of the data
        tap_03.f16      the states at tap 3, a text after the other, from short to long, no padding
        tap_05.part     states that are being written; what is there counts when the pass goes on

A tap's file has its name only when it is whole. Stored as fp16: the states of BERT's layers are numbers of LayerNorm,
far from fp16's limit, and its rounding (0.0002 of a state's size) is a tenth of that of bf16.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.files import atomic_write, atomic_write_text
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.tasks.offsets import Texts
from onetrunk.training.arithmetic import Arithmetic
from onetrunk.training.cache_pass import StatePass, tap_file
from onetrunk.training.states import CachedStates
from onetrunk.training.tokens import TokenRows, check_max_length, texts_sha256, tokenise

CACHE_VARIABLE = "ONETRUNK_CACHE"
_LAYOUT = 1


def cache_root(given: Path | None = None) -> Path:
    """The folder of all caches: as given, or from the variable ONETRUNK_CACHE, or in the user's own cache folder."""
    if given is not None:
        return given
    variable = os.environ.get(CACHE_VARIABLE)
    if variable:
        return Path(variable)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onetrunk"


@dataclass(frozen=True)
class CachedTexts:
    """The states of one list of texts.

    Attributes:
        states: by tap.
        size_bytes: of the taps' files.
        cut: how many texts were longer than allowed.
        pass_seconds: what the passes of the trunk took that computed them, whenever that was.
        pass_cpu_seconds: the same on the processor, without waiting for other work on the machine.
        trunk_ran: whether the trunk had to run just now, or all was there.
    """

    states: dict[int, CachedStates]
    size_bytes: int
    cut: int
    pass_seconds: float
    pass_cpu_seconds: float
    trunk_ran: bool


class StateCache:
    """States of texts on one trunk, made where they are missing.

    Attributes:
        folder: where this trunk's states are.
    """

    def __init__(self, root: Path, trunk: Trunk, arithmetic: Arithmetic) -> None:
        self.folder = root / "states" / trunk.identity
        self._trunk = trunk
        self._arithmetic = arithmetic

    def states(
        self,
        texts: Texts,
        taps: Sequence[int],
        *,
        max_length: int,
        what: str = "texts",
        progress: ProgressCallback = silent,
    ) -> CachedTexts:
        """The states at all taps asked for. Those that are missing are computed in one pass over the texts.

        A pass that was killed goes on where it was.

        Args:
            texts: texts, or pairs of texts.
            taps: which taps.
            max_length: longest text in tokens.
            what: the texts' name in the progress.
            progress: told how many tokens are done.

        Raises:
            UserError: the trunk has no such tap, or cannot read that many tokens.
            OneTrunkError: the disk is full, or a state does not fit fp16.
        """
        wanted = sorted(set(taps))
        for tap in wanted:
            self._trunk.check_tap(tap)
        check_max_length(self._trunk, max_length)
        folder = self.folder / self._key(texts, max_length)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            about = _read_about(folder)
            missing = [tap for tap in wanted if about is None or not self._is_whole(folder, tap, about)]
            if about is None or missing:
                about = self._run(folder, texts, missing, max_length, what, progress)
            lengths: NDArray[np.int64] = np.load(folder / "lengths.npy")
        states = {tap: CachedStates(tap_file(folder, tap), lengths, self._trunk.width) for tap in wanted}
        size_bytes = sum(tap_file(folder, tap).stat().st_size for tap in wanted)
        passes = [one for one in about["passes"] if set(one["taps"]) & set(wanted)]
        seconds = sum(one["seconds"] for one in passes)
        cpu_seconds = sum(one.get("cpu_seconds", one["seconds"]) for one in passes)
        return CachedTexts(states, size_bytes, about["cut"], seconds, cpu_seconds, bool(missing))

    def _key(self, texts: Texts, max_length: int) -> str:
        # The trunk is the folder above. Taps are files of the folder: another tap does not make another cache.
        parts = [_LAYOUT, texts_sha256(texts), max_length, self._arithmetic.device, self._arithmetic.precision]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _is_whole(self, folder: Path, tap: int, about: dict[str, Any]) -> bool:
        file = tap_file(folder, tap)
        # Its name says that it is whole; the size guards against a copy of the cache that was cut off.
        return file.is_file() and file.stat().st_size == about["tokens"] * self._trunk.width * np.float16().nbytes

    def _run(
        self, folder: Path, texts: Texts, taps: list[int], max_length: int, what: str, progress: ProgressCallback
    ) -> dict[str, Any]:
        """One pass over the texts for some taps; gives what about.json says after it."""
        started, cpu_started = time.monotonic(), time.process_time()
        rows = tokenise(self._trunk, texts, max_length)
        earlier = (_read_about(folder) or {"passes": []})["passes"]
        about = {**self._describe(rows, max_length), "passes": earlier}
        with atomic_write(folder / "lengths.npy") as aside, aside.open("wb") as stream:
            np.save(stream, rows.lengths)
        # Written last: where it is, lengths.npy is.
        _write_about(folder, about)
        StatePass(self._trunk, self._arithmetic, folder, rows, taps).run(what, progress)
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
        this = {"taps": taps, "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
        about["passes"] = [*earlier, this]
        _write_about(folder, about)
        return about

    def _describe(self, rows: TokenRows, max_length: int) -> dict[str, Any]:
        return {
            "trunk": self._trunk.identity,
            "texts": len(rows.lengths),
            "tokens": int(rows.lengths.sum()),
            "cut": rows.cut,
            "max_length": max_length,
            "device": self._arithmetic.device,
            "precision": self._arithmetic.precision,
        }


def _read_about(folder: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return about


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    atomic_write_text(folder / "about.json", json.dumps(about, indent=2) + "\n")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Makes a second process that wants the same states wait for the first, and then find them."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
