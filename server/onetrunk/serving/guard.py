"""A process between the launcher and Triton, so that nothing outlives the launcher, however it ends.

It is run as a program: `python guard.py SHM_PREFIX FOLDER GRACE_S COMMAND...`. It starts the command, writes its
process id to stdout, and ends it when stdin closes. The launcher closes it to stop Triton, and the kernel does when the
launcher dies. Then the guard kills what is left of the command's process group, removes shared memory and folder, and
exits with the command's exit status.

It uses the standard library only and stands alone, so that it starts in some 20 ms with `python -I -S`.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")
POLL_S = 0.1


def end_with_guard() -> None:
    """Ask the kernel to end the command if even the guard is killed. Runs in the child, before exec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Make this process the parent of grandchildren whose parent has died, so that it can reap them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def wait_for_reason_to_stop(child: subprocess.Popen[bytes], signals: list[int]) -> None:
    """Return when stdin is closed, a signal has come or the child has ended."""
    while child.poll() is None and not signals:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if readable and not os.read(sys.stdin.fileno(), 1024):
            return


def end(child: subprocess.Popen[bytes], grace_s: float) -> int:
    """End the child and all of its process group; return the child's exit status, as a shell would."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            # Triton does not stop by itself once one of its Python processes has died.
            child.kill()
            child.wait()
    end_group(child.pid)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def end_group(group: int) -> None:
    """Kill what is left of a process group. If Triton was killed, its stubs stay behind as orphans."""
    for _ in range(50):
        try:
            os.killpg(group, signal.SIGKILL)
            while os.waitpid(-group, os.WNOHANG) != (0, 0):
                pass
        except ProcessLookupError:
            return
        except ChildProcessError:  # none of them is this process's to reap: init does it
            pass
        time.sleep(POLL_S)


def clear(shm_prefix: str, folder: str) -> None:
    """Remove the server's shared memory and its private folder."""
    for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def main(shm_prefix: str, folder: str, grace_s: str, *command: str) -> int:
    """Run the command until it ends or stdin closes."""
    # A signal to the guard alone must not leave Triton without a guard.
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.append(number))
    adopt_orphans()
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True, preexec_fn=end_with_guard
        )
        print(child.pid, flush=True)
        try:
            wait_for_reason_to_stop(child, signals)
        finally:
            status = end(child, float(grace_s))
        return status
    finally:
        clear(shm_prefix, folder)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
