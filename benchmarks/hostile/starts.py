"""Starts that should not succeed: too little of a resource, files that were changed, and another user who listens."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.hostile import spy
from benchmarks.hostile.bad import BadClient, message
from benchmarks.hostile.target import Target
from onetrunk.admin import AdminClient

NOBODY = "65534"
START_S = 150.0

console = Console(stderr=True)


def is_root() -> bool:
    """Whether this may mount file systems and become another user."""
    return os.geteuid() == 0


def mounted(size: str, place: str) -> list[str]:
    """A wrapper that gives a program a file system of a size of its own at a place."""
    script = f'mount -t tmpfs -o size={size},mode=1777 tmpfs {place} && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


def resources(repository: Path, work: Path) -> dict:
    """Start with too little of each resource in turn, and say what the server said."""
    full = work / "full"
    full.mkdir()
    # With one page left, so that programs take it for a place where files can be made.
    fill = f'mount -t tmpfs -o size=64k,mode=1777 tmpfs {full} && head -c 61440 /dev/zero > {full}/fill; exec "$@"'
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    cases: dict[str, dict] = {
        "64 open files": {"wrapper": ["prlimit", "--nofile=64:64"]},
        "1 GB of addresses": {"wrapper": ["prlimit", f"--as={1 << 30}"]},
        "a port that is taken": {"options": ["--grpc-port", port]},
        "a log that cannot be written": {"options": ["--log", "/proc/nothing/triton.log"]},
    }
    if is_root():
        cases["64 MB of /dev/shm"] = {"wrapper": mounted("64m", "/dev/shm")}
        cases["16 MB of /dev/shm"] = {"wrapper": mounted("16m", "/dev/shm")}
        cases["a full disk"] = {
            "wrapper": ["unshare", "--mount", "--propagation", "private", "sh", "-c", fill, "sh"],
            "environment": {"TMPDIR": str(full)},
        }
    found = {}
    for name, settings in cases.items():
        found[name] = start(repository, **settings)
        console.print(f"  {name}: {found[name]}", highlight=False)
    taken.close()
    return found


def start(repository: Path, **settings: object) -> dict:
    """Start a server under some conditions; a server that says it is ready must then carry a full batch."""
    target = Target(repository, **settings)
    ready = target.wait_ready(START_S)
    found = {"ready": ready, "seconds": round(time.monotonic() - target.began, 1)}
    if ready:
        found["full_batch"] = full_batch(target)
        target.stop()
    else:
        target.stop(5)
        found["exit_status"] = target.exit_status
    said = [line for _, line in target.said]
    return found | {
        "said": (target.last_words() if not ready else "; ".join(said[:2]))[:400],
        "traceback": any("Traceback" in line for line in said),
        "left_behind": target.left_behind(),
    }


def full_batch(target: Target) -> str:
    """Send as many texts as one request may have, as long as the trunk reads; return the outcome."""
    request = message([b"word " * 200] * 32, outputs=tuple(target.ready["tasks"]))
    try:
        return BadClient(target.ready).call(request.SerializeToString())
    except Exception as error:
        return str(error)[:200]


def full_disk_at_restart(repository: Path, work: Path) -> dict:
    """The disk fills up while the server runs, Triton dies, and after a while there is room again."""
    if not is_root():
        return {}
    folder = work / "disk"
    folder.mkdir()
    with Target(repository, wrapper=mounted("32m", str(folder)), environment={"TMPDIR": str(folder)}) as target:
        inside = Path(f"/proc/{target.pid}/root{folder}")
        fill = inside / "fill"
        with fill.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        since = time.monotonic()
        target.processes()["triton"].kill()
        time.sleep(15)
        said = [line for moment, line in target.said if moment > since]
        alive = target.exit_status is None
        with contextlib.suppress(OSError):
            fill.unlink()
        outcome = "given up"
        while alive and time.monotonic() - since < 120:
            outcome = full_batch(target)
            if outcome == "answered":
                break
            time.sleep(0.5)
        folders = sum(path.is_dir() for path in inside.glob("onetrunk*")) if alive else None
        seconds = round(time.monotonic() - since, 1)
    return {"said": said[:4], "after_the_disk_has_room": outcome, "seconds": seconds, "folders": folders}


def tampered(repository: Path, work: Path) -> dict:
    """Change one file of each kind in turn; a server must refuse each, and name the file."""
    segment = min(path.name for path in repository.glob("trunk_*"))
    changes = {
        "a head's model": "head_sst2/1/model.onnx",
        "a segment's model": f"{segment}/1/model.onnx",
        "the tokenizer's code": "tokenizer/1/model.py",
        "the tokenizer's vocabulary": "tokenizer/1/tokenizer.json",
        "labels": "multitask/labels_sst2.txt",
        "a config": "multitask/config.pbtxt",
    }
    found = {}
    for name, file in changes.items():
        copy = work / "tampered"
        shutil.copytree(repository, copy)
        path = copy / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        target = Target(copy)
        ready = target.wait_ready(START_S)
        seconds = round(time.monotonic() - target.began, 2)
        target.stop()
        caught = not ready and any(file in line or file.split("/")[0] in line for _, line in target.said)
        found[name] = {"caught": caught, "seconds": seconds, "said": target.last_words()[:300]}
        console.print(f"  {name}: {found[name]}", highlight=False)
        shutil.rmtree(copy)
    return found


class AnotherUser:
    """Runs `spy` as another user while a block runs. What it found is in `report` afterwards."""

    def __init__(self, hidden: dict[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="spy-", dir="/tmp"))
        shutil.copy(spy.__file__, self._folder / "spy.py")
        self._folder.chmod(0o755)
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        # The interpreter of this environment may lie where another user cannot come.
        pythons = [os.path.realpath(sys.executable), "/usr/bin/python3"]
        python = next(one for one in pythons if not subprocess.run([*become, one, "-c", ""]).returncode)
        command = [*become, python, "-I", self._folder / "spy.py"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        self._say(json.dumps({"secrets": hidden, "folders": ["/tmp", "/var/tmp", "/dev/shm", "/run"]}))
        self.report: dict = {}

    def try_door(self, address: str) -> None:
        """Let it try a port of a server, too."""
        self._say(address)

    def look_again(self) -> None:
        """Wait until it has looked at everything once more."""
        for _ in range(2):  # it may have been about to read the first line when it began to look
            self._say("")
            self._process.stdout.readline()

    def __enter__(self) -> AnotherUser:
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)
        found, _error = self._process.communicate(timeout=60)
        shutil.rmtree(self._folder)
        self.report = json.loads(found)

    def _say(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


def watched_by_another_user(repository: Path, work: Path) -> dict:
    """Another user reads and knocks from before the start until after the stop; the key is used, and Triton dies."""
    if not is_root() or shutil.which("setpriv") is None:
        return {}
    key, text = secrets.token_urlsafe(24), f"Nobody else may read {secrets.token_hex(8)}."
    options = ["--log", str(work / "triton.log")]
    with AnotherUser({"key": key, "text": text}) as other, Target(repository, key=key, options=options) as target:
        other.try_door(target.ready["http"])
        request = message([text.encode()] * 8).SerializeToString()
        ask(target, request, 50)
        with AdminClient(target.ready["grpc"], key) as admin:  # as deploy-head does
            admin.loaded_versions()
        target.processes()["triton"].kill()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and full_batch(target) != "answered":
            time.sleep(0.2)
        ask(target, request, 50)
    return other.report


def ask(target: Target, request: bytes, times: int) -> None:
    """Ask so often, whatever the answer."""
    client = BadClient(target.ready)
    for _ in range(times):
        with contextlib.suppress(Exception):
            client.call(request)


def launcher_killed(repository: Path) -> dict:
    """kill -9 of `serve-repo` itself: nothing of it may be left after a while."""
    with Target(repository) as target:
        processes = [process for role, process in target.processes().items() if role != "serve-repo"]
        os.kill(target.pid, signal.SIGKILL)
        since = time.monotonic()
        _, alive = psutil.wait_procs(processes, timeout=60)
        return {
            "seconds": round(time.monotonic() - since, 1),
            "processes_left": len(alive),
            "left_behind": target.left_behind(),
        }
