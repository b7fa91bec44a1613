"""One pass of the trunk over many texts, that writes the states at several taps."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.training.arithmetic import Arithmetic
from onetrunk.training.states import length_order
from onetrunk.training.tokens import TokenRows

# Tokens a batch, with padding: more would not make a CPU faster, and leaves its caches.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}


def tap_file(folder: Path, tap: int) -> Path:
    """Where the states at a tap are, once they are whole."""
    return folder / f"tap_{tap:02d}.f16"


class StatePass:
    """Writes the files of several taps, from short texts to long ones.

    Files only grow, by whole batches, and which texts make a batch depends on their lengths alone. So what a killed
    pass has written is known by its size, and a pass that goes on writes the very numbers that an undisturbed one does.
    """

    def __init__(
        self, trunk: Trunk, arithmetic: Arithmetic, folder: Path, rows: TokenRows, taps: Sequence[int]
    ) -> None:
        self._trunk = trunk
        self._arithmetic = arithmetic
        self._rows = rows
        self._files = {tap: tap_file(folder, tap) for tap in taps}
        self._parts = {tap: file.with_suffix(".part") for tap, file in self._files.items()}
        self._token_bytes = trunk.width * np.float16().nbytes

    def run(self, what: str, progress: ProgressCallback) -> None:
        """Computes what is missing, and gives the files their names.

        Raises:
            OneTrunkError: the disk is full, in which case nothing half is left; or a state does not fit fp16.
        """
        total = int(self._rows.lengths.sum())
        batches, done = self._remaining_batches()
        home = next(self._trunk.parameters()).device
        self._trunk.to(self._arithmetic.device)
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
        """The batches still to be run, and how many tokens are there already in the files of all taps."""
        there = min(self._size(part) for part in self._parts.values()) // self._token_bytes
        batches = list(_batches(self._rows.lengths, _BATCH_TOKENS[self._arithmetic.device]))
        done = first = 0
        while first < len(batches) and (after := done + int(self._rows.lengths[batches[first]].sum())) <= there:
            done, first = after, first + 1
        for part in self._parts.values():
            if part.exists():
                os.truncate(part, done * self._token_bytes)
        return batches[first:], done

    @torch.no_grad()
    def _write(self, batch: NDArray[np.int64], streams: Mapping[int, BinaryIO]) -> None:
        device = self._arithmetic.device
        input_ids, type_ids, mask = (t.to(device) for t in self._rows.batch(batch, self._trunk.pad_token_id))
        with self._arithmetic.context():
            states = self._trunk.states(input_ids, type_ids, mask, list(streams))
        for tap, stream in streams.items():
            tokens = states[tap][mask.bool()].half()  # (tokens of the batch, width)
            if not torch.isfinite(tokens).all():
                raise OneTrunkError(f"tap {tap} of trunk {self._trunk.identity} gives states that do not fit 16 bits")
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
            f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free; make room, or give another place by --cache"
        ) from None

    @staticmethod
    def _size(part: Path) -> int:
        return part.stat().st_size if part.exists() else 0


def _batches(lengths: NDArray[np.int64], most_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows from short to long, as many at a time as fit into ``most_tokens`` with their padding."""
    batch: list[int] = []
    for row in length_order(lengths):
        # Sorted: the row that comes is the longest of the batch.
        if batch and (len(batch) + 1) * int(lengths[row]) > most_tokens:
            yield np.array(batch)
            batch = []
        batch.append(int(row))
    yield np.array(batch)
