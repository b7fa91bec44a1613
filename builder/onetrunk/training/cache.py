"""The cache of hidden states on disk: since the trunk is frozen, it runs once per text, whatever is trained on it.

One folder holds one list of texts as one trunk reads them:

    <root>/states/<trunk>/<hash of the texts, the longest text, the device and the data type>/
        about.json      what the folder holds, and what the trunk's passes took
        lengths.npy     the number of tokens of each text, in the order of the data
        tap_03.f16      the hidden states at tap 3, text by text from short to long, without padding
        tap_05.part     hidden states that are being written; a pass that is resumed continues the file

A tap's file gets its name only when it is complete. States are stored as fp16: those of BERT's layers come from a
LayerNorm and stay far from fp16's limit, and its rounding error (0.0002 of a state's norm) is a tenth of bf16's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from onetrunk.files import atomic_write, atomic_write_text, translate_os_errors
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.tasks.examples import Texts
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.states import CachedStates, TokenRows, check_max_length, length_order, texts_sha256, tokenise

_LAYOUT = 1
# Tokens a batch, padding included: more would not make a CPU faster, and would not fit its caches.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}


@dataclass(frozen=True)
class CachedTexts:
    """The hidden states of one list of texts.

    Attributes:
        states: The states by tap.
        size_bytes: The size of the taps' files.
        cut: The number of texts that were longer than allowed.
        pass_seconds: The time of the trunk's passes that computed the states, whenever that was.
        pass_cpu_seconds: The processor time of these passes; other work on the machine does not count.
        trunk_ran: Whether the trunk ran just now, since states were missing.
    """

    states: dict[int, CachedStates]
    size_bytes: int
    cut: int
    pass_seconds: float
    pass_cpu_seconds: float
    trunk_ran: bool


class StateCache:
    """The hidden states of texts on one trunk, computed where they are missing.

    Attributes:
        folder: The folder of this trunk's states.
    """

    def __init__(self, root: Path, trunk: Trunk, compute: ComputeConfig) -> None:
        self.folder = root / "states" / trunk.identity
        self._trunk = trunk
        self._compute = compute

    def states(
        self,
        texts: Texts,
        taps: Sequence[int],
        *,
        max_length: int,
        what: str = "texts",
        progress: ProgressCallback = silent,
    ) -> CachedTexts:
        """Return the states at some taps. Those that are missing are computed in one pass over the texts.

        A pass that was killed is resumed after its last batch.

        Args:
            texts: Texts, or pairs of texts.
            taps: The taps.
            max_length: The longest text in tokens.
            what: The name of the texts in the progress.
            progress: Called with the number of tokens that are done.

        Raises:
            UserError: The trunk has no such tap, or cannot read that many tokens.
            OneTrunkError: The disk is full, or a state does not fit fp16.
        """
        needed = sorted(set(taps))
        for tap in needed:
            self._trunk.check_tap(tap)
        check_max_length(self._trunk, max_length)
        folder = self.folder / self._key(texts, max_length)
        with translate_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            about = _read_about(folder)
            missing = [tap for tap in needed if about is None or not self._is_complete(folder, tap, about)]
            if about is None or missing:
                about = self._run(folder, texts, missing, max_length, what, progress)
            lengths: NDArray[np.int64] = np.load(folder / "lengths.npy")
        states = {tap: CachedStates(tap_file(folder, tap), lengths, self._trunk.width) for tap in needed}
        size_bytes = sum(tap_file(folder, tap).stat().st_size for tap in needed)
        passes = [one for one in about["passes"] if set(one["taps"]) & set(needed)]
        seconds = sum(one["seconds"] for one in passes)
        cpu_seconds = sum(one.get("cpu_seconds", one["seconds"]) for one in passes)
        return CachedTexts(states, size_bytes, about["cut"], seconds, cpu_seconds, bool(missing))

    def has(self, texts: Texts, tap: int, *, max_length: int) -> bool:
        """Return whether the states of texts at a tap are there.

        Args:
            texts: Texts, or pairs of texts.
            tap: The tap.
            max_length: The longest text in tokens.
        """
        folder = self.folder / self._key(texts, max_length)
        about = _read_about(folder)
        return about is not None and self._is_complete(folder, tap, about)

    def _key(self, texts: Texts, max_length: int) -> str:
        # The trunk is the folder above, and taps are files within: another tap does not make another cache.
        parts = [_LAYOUT, texts_sha256(texts), max_length, self._compute.device, self._compute.trunk_dtype]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _is_complete(self, folder: Path, tap: int, about: dict[str, Any]) -> bool:
        file = tap_file(folder, tap)
        # Its name says that it is complete; the size guards against a truncated copy of the cache.
        return file.is_file() and file.stat().st_size == about["tokens"] * self._trunk.width * np.float16().nbytes

    def _run(
        self, folder: Path, texts: Texts, taps: list[int], max_length: int, what: str, progress: ProgressCallback
    ) -> dict[str, Any]:
        """Run the trunk over the texts for some taps, and return the new content of about.json."""
        started, cpu_started = time.monotonic(), time.process_time()
        rows = tokenise(self._trunk, texts, max_length)
        earlier = (_read_about(folder) or {"passes": []})["passes"]
        about = {**self._describe(rows, max_length), "passes": earlier}
        with atomic_write(folder / "lengths.npy") as aside, aside.open("wb") as stream:
            np.save(stream, rows.lengths)
        # Written last: where about.json exists, lengths.npy does.
        _write_about(folder, about)
        StatePass(self._trunk, self._compute, folder, rows, taps).run(what, progress)
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
            "device": self._compute.device,
            "precision": self._compute.trunk_dtype,
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
def _locked(folder: Path) -> Iterator[None]:
    """Make a second process that needs the same states wait for the first, and then find them."""
    with (folder / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tap_file(folder: Path, tap: int) -> Path:
    """Return the path of a tap's states, once they are complete."""
    return folder / f"tap_{tap:02d}.f16"


class StatePass:
    """One pass of the trunk over many texts, from short to long, that writes the files of several taps.

    Files only grow, by whole batches, and the batches depend on the lengths of the texts alone. So the size of a file
    tells what a killed pass has written, and a resumed pass writes the same bytes as an uninterrupted one.
    """

    def __init__(
        self, trunk: Trunk, compute: ComputeConfig, folder: Path, rows: TokenRows, taps: Sequence[int]
    ) -> None:
        self._trunk = trunk
        self._compute = compute
        self._rows = rows
        self._files = {tap: tap_file(folder, tap) for tap in taps}
        self._parts = {tap: file.with_suffix(".part") for tap, file in self._files.items()}
        self._token_bytes = trunk.width * np.float16().nbytes

    def run(self, what: str, progress: ProgressCallback) -> None:
        """Compute the states that are missing, and give the files their final names.

        Args:
            what: The name of the texts in the progress.
            progress: Called after each batch with the number of tokens that are done.

        Raises:
            OneTrunkError: The disk is full, and partial files are removed; or a state does not fit fp16.
        """
        what, total = f"{what}, in tokens", int(self._rows.lengths.sum())
        batches, done = self._remaining_batches()
        home = next(self._trunk.parameters()).device
        self._trunk.to(self._compute.device)
        try:
            self._check_room(total - done)
            with ExitStack() as stack:
                streams = {tap: stack.enter_context(part.open("ab")) for tap, part in self._parts.items()}
                progress(what, done, total)
                for batch in batches:
                    self._write(batch, streams)
                    done += int(self._rows.lengths[batch].sum())
                    progress(what, done, total)
                for stream in streams.values():
                    stream.flush()
                    os.fsync(stream.fileno())
            for tap, part in self._parts.items():
                os.replace(part, self._files[tap])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._give_up(total)
        finally:
            self._trunk.to(home)

    def _remaining_batches(self) -> tuple[list[NDArray[np.int64]], int]:
        """Return the batches that are left, and the number of tokens that the files of all taps have already."""
        written = min(self._size(part) for part in self._parts.values()) // self._token_bytes
        batches = list(_batches(self._rows.lengths, _BATCH_TOKENS[self._compute.device]))
        done = first = 0
        while first < len(batches) and (after := done + int(self._rows.lengths[batches[first]].sum())) <= written:
            done, first = after, first + 1
        for part in self._parts.values():
            if part.exists():
                os.truncate(part, done * self._token_bytes)
        return batches[first:], done

    @torch.no_grad()
    def _write(self, batch: NDArray[np.int64], streams: Mapping[int, BinaryIO]) -> None:
        device = self._compute.device
        input_ids, type_ids, mask = (t.to(device) for t in self._rows.batch(batch, self._trunk.pad_token_id))
        with self._compute.context():
            states = self._trunk.states(input_ids, type_ids, mask, list(streams))
        for tap, stream in streams.items():
            tokens = states[tap][mask.bool()].half()  # (tokens of the batch, width)
            if not torch.isfinite(tokens).all():
                raise OneTrunkError(f"tap {tap} of trunk {self._trunk.identity}: its hidden states do not fit fp16")
            stream.write(tokens.cpu().numpy().tobytes())

    def _check_room(self, tokens: int) -> None:
        needed = tokens * self._token_bytes * len(self._parts)
        folder = next(iter(self._parts.values())).parent
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _give_up(self, total: int) -> NoReturn:
        for part in self._parts.values():
            part.unlink(missing_ok=True)
        folder = next(iter(self._parts.values())).parent
        needed = total * self._token_bytes * len(self._parts)
        raise OneTrunkError(
            f"{folder}: the disk is full: the states of these texts need {needed / 1e9:.2f} GB, and "
            f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free; make room, or give another folder by --cache"
        ) from None

    @staticmethod
    def _size(part: Path) -> int:
        return part.stat().st_size if part.exists() else 0


def _batches(lengths: NDArray[np.int64], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers from short texts to long ones, as many at a time as fit into ``max_tokens`` with padding."""
    batch: list[int] = []
    for row in length_order(lengths):
        # The rows are sorted, so this one is the longest of the batch.
        if batch and (len(batch) + 1) * int(lengths[row]) > max_tokens:
            yield np.array(batch)
            batch = []
        batch.append(int(row))
    yield np.array(batch)
