"""One Triton process under its guard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from onetrunk.protocol.errors import ServerError
from onetrunk.serving import guard
from onetrunk.serving.command import EXIT_TIMEOUT_S
from onetrunk.serving.installation import Runtime

# The time for Triton to stop by itself: its own time-out, and time to unload the models.
GRACE_S = EXIT_TIMEOUT_S + 3


class TritonProcess:
    """A Triton process. Stopping it also ends and removes everything that belongs to it."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], runtime: Runtime, log: Path) -> None:
        self._runtime = runtime
        arguments = [runtime.shm_prefix, str(runtime.folder), str(GRACE_S), *command]
        with log.open("ab") as log_file:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=environment,
                # Ctrl-C reaches the launcher alone, which then stops Triton in good order.
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        self.pid = 0
        first_line = self._guard.stdout.readline()
        if not first_line:
            self.stop()
            raise ServerError(f"Triton's program does not run on this machine; see the log {log}")
        self.pid = int(first_line)

    def exit_status(self) -> int | None:
        """Return Triton's exit status as a shell would, or None while it runs."""
        return self._guard.poll()

    def stop(self) -> None:
        """End Triton and wait until nothing of it is left. A second call does nothing."""
        assert self._guard.stdin is not None
        assert self._guard.stdout is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(GRACE_S + 10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._guard.stdout.close()
        if self._guard.returncode < 0 and self.pid:  # the guard was killed, and could not clean up
            guard.end_group(self.pid)
        guard.clear(self._runtime.shm_prefix, str(self._runtime.folder))
