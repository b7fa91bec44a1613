"""Foreign ONNX files: those that nobody here exported, and that may never answer, take all memory or end their process.

They run in a process of their own, which has a bound on its memory and is ended once an answer takes too long. Files
that were exported here run in such a process, without a bound, on another ONNX Runtime than the installed one.
"""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.export import foreign_process
from onetrunk.export.errors import ParityError
from onetrunk.machine import environment_for_others

ANSWER_TIME_S = 60.0
"""The time in which a foreign file must be loaded, and in which it must answer a batch. A head takes milliseconds."""

_OWN_ANSWER_TIME_S = 1800.0

Waiting = Callable[[str, float, float], None]
"""Called while an answer is awaited, with what is awaited, the seconds that have passed and those that are allowed."""

_POLL_S = 0.5
_MAX_ANSWER_BYTES = 2**30
_FAULT_CHARACTERS = 300


def not_shown(what: str, passed_s: float, allowed_s: float) -> None:
    """Show nothing while an answer is awaited; see ``Waiting``."""


@dataclass(frozen=True)
class Signature:
    """An input or an output of a foreign file, with the attributes of ONNX Runtime's ``NodeArg``.

    Attributes:
        name: Its name.
        type: Its type, such as ``tensor(float)``.
        shape: Its dims: a size, or the symbol of a dynamic one.
    """

    name: str
    type: str
    shape: Sequence[int | str | None]


class ForeignSession:
    """A foreign file that is loaded in a process of its own, used as an ONNX Runtime ``InferenceSession`` is.

    The process ends with the session.
    """

    def __init__(
        self,
        file: Path,
        model: str,
        *,
        own: bool = False,
        packages: Path | None = None,
        answer_time_s: float = ANSWER_TIME_S,
        waiting: Waiting = not_shown,
    ) -> None:
        """Load the file.

        Args:
            file: The ONNX file.
            model: The model's name, for messages.
            own: Whether it was exported here: then its memory has no bound, and its answers half an hour.
            packages: The folder of another ONNX Runtime, on which it runs; None is the installed one.
            answer_time_s: The time in which the file must be loaded, and in which it must answer.
            waiting: Called twice a second while an answer is awaited.

        Raises:
            ParityError: ONNX Runtime does not load the file, or not in time.
        """
        self._model, self._waiting, self._is_own = model, waiting, own
        self._answer_time_s = _OWN_ANSWER_TIME_S if self._is_own else answer_time_s
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", foreign_process.__file__, str(file.absolute()), str(theirs.fileno())),
                    *("own" if own else "foreign", *([] if packages is None else [str(packages.absolute())])),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment_for_others(), "ORT_DISABLE_TELEMETRY": "1"},
                start_new_session=True,  # Ctrl-C is for the builder, which then ends this process
            )
        self._end = weakref.finalize(self, _end, self._process, self._pipe)
        try:
            signature = json.loads(self._receive("to be loaded", "ONNX Runtime does not load it"))
        except BaseException:
            self._end()
            raise
        self._inputs = [Signature(*one) for one in signature["inputs"]]
        self._outputs = [Signature(*one) for one in signature["outputs"]]

    def get_inputs(self) -> list[Signature]:
        """Return the inputs."""
        return self._inputs

    def get_outputs(self) -> list[Signature]:
        """Return the outputs."""
        return self._outputs

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Compute outputs.

        Args:
            outputs: The names of the outputs; None for all of them.
            feeds: Input -> its values.

        Returns:
            The outputs in the order of their names.

        Raises:
            ParityError: It fails, its process ends, or it does not answer in time.
        """
        content = io.BytesIO()
        np.savez(content, **feeds)
        shape = " x ".join(str(size) for size in next(iter(feeds.values())).shape[:2])
        what = f"to answer a batch of {shape} tokens"
        try:
            self._pipe.send_bytes(content.getbuffer())
        except OSError as error:
            raise self._ended(what) from error
        answer = self._receive(what, "does not run")
        try:
            with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
                found = {one.name: arrays[f"arr_{place}"] for place, one in enumerate(self._outputs)}
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ParityError(self._model, "an output is no tensor: export it with tensors only") from error
        return [found[name] for name in (outputs or found)]

    def _receive(self, what: str, fault: str) -> bytes:
        """Return the next answer.

        Args:
            what: What is awaited, for messages.
            fault: What to say before the reason if it fails.
        """
        began = time.monotonic()
        try:
            while not self._pipe.poll(_POLL_S):
                passed = time.monotonic() - began
                self._waiting(f"{self._model} {what}", passed, self._answer_time_s)
                if passed > self._answer_time_s:
                    self._end()
                    why = "" if self._is_own else "; a head takes milliseconds: does it have a loop that does not end?"
                    raise ParityError(
                        self._model, f"needs more than {self._answer_time_s:g} s {what}, and was ended{why}"
                    )
            answer = self._pipe.recv_bytes(_MAX_ANSWER_BYTES)
        except (EOFError, OSError) as error:
            raise self._ended(what) from error
        if answer[:1] == foreign_process.FAULT:
            reason = " ".join(answer[1:].decode(errors="replace").split())
            raise ParityError(self._model, f"{fault}: {reason[:_FAULT_CHARACTERS]}")
        return answer[1:]

    def _ended(self, what: str) -> ParityError:
        self._end()
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        needs = "more memory than there is" if self._is_own else "more memory than a head"
        return ParityError(self._model, f"its process {how} when it was {what}: does it need {needs}?")


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.wait()
