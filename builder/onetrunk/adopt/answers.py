"""The cache of a classifier's outputs: it runs once a text, whatever is learned from it, and goes on where it stopped.

One folder holds what one model says: ``<root>/teachers/<hash of the model and of the longest text>/``. Each process
that runs the model appends to a file of its own, a record a text: the text's hash, the number of rows, and the rows in
fp32. A record that a kill cut short is the last of its file, and is left out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from onetrunk.files import translate_os_errors
from onetrunk.tasks.rows import Text

_HASH_BYTES, _COUNT_BYTES = 32, 4
# A text has at most so many rows: one, or one a token. A file that says more is damaged.
_MOST_ROWS = 2**16

Rows = NDArray[np.float32]
"""What a model says about one text. *Shape:* (1, outputs), by token (tokens, 2 + outputs) with each token's place."""


def text_hash(text: Text) -> bytes:
    """Return a hash of a text, or of both of a pair."""
    parts = (text,) if isinstance(text, str) else text
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(f"{len(parts)},{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.digest()


class AnswerFile:
    """A file that one process appends records to."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def append(self, text: Text, rows: Rows) -> None:
        """Write what the model says about a text."""
        record = text_hash(text) + len(rows).to_bytes(_COUNT_BYTES, "little")
        self._stream.write(record + np.ascontiguousarray(rows, dtype=np.float32).tobytes())


class AnswerCache:
    """The outputs of one model, on disk.

    Attributes:
        folder: The folder of its files.
    """

    def __init__(self, root: Path, identity: str, width: int) -> None:
        """Open the outputs of a model.

        Args:
            root: The root folder of all caches.
            identity: A hash of the model and of how it reads texts.
            width: The number of columns of its rows.
        """
        self.folder = root / "teachers" / identity
        self._width = width

    def read(self) -> dict[bytes, Rows]:
        """Return all outputs that there are, by the hashes of their texts."""
        found: dict[bytes, Rows] = {}
        for path in sorted(self.folder.glob("*.f32")):
            for key, rows, _ in self._records(path):
                found[key] = rows
        return found

    def missing(self, texts: Sequence[Text]) -> list[Text]:
        """Return the texts that have no outputs yet, each once."""
        known = self.read()
        return [text for key, text in {text_hash(text): text for text in texts}.items() if key not in known]

    @contextmanager
    def appending(self, part: int) -> Iterator[AnswerFile]:
        """Open the file that one of several processes appends to.

        Args:
            part: The number of the process.

        Raises:
            OneTrunkError: The file cannot be written.
        """
        path = self.folder / f"part_{part:02d}.f32"
        with translate_os_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                # What a kill cut short must not stand before whole records.
                os.truncate(path, max((end for *_, end in self._records(path)), default=0))
            with path.open("ab") as stream:
                yield AnswerFile(stream)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make a second command that needs the same model wait for the first, and then find what that has computed."""
        with translate_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    def _records(self, path: Path) -> Iterator[tuple[bytes, Rows, int]]:
        """Yield the whole records of a file, each with the place of its end."""
        content, place = path.read_bytes(), 0
        while place + _HASH_BYTES + _COUNT_BYTES <= len(content):
            start = place + _HASH_BYTES + _COUNT_BYTES
            count = int.from_bytes(content[place + _HASH_BYTES : start], "little")
            end = start + count * self._width * np.dtype(np.float32).itemsize
            if count > _MOST_ROWS or end > len(content):
                return
            rows = np.frombuffer(content[start:end], dtype=np.float32).reshape(count, self._width)
            yield content[place : place + _HASH_BYTES], rows, end
            place = end


def in_batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the numbers of texts from short to long, as many at a time as have ``most`` tokens with their padding.

    Args:
        lengths: The number of tokens of each text.
        most: The number of tokens of a batch, unless a single text has more.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > most:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


Progress = Callable[[int], None]
"""Called with the number of texts that were read just now."""
