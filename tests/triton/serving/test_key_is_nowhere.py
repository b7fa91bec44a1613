"""After a day's work the admin key is in no log, file, output, command line or foreign environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.protocol.errors import UserError

KEY = "the+key/of=the-admin~0123456789"
WRONG = "another+key/of=somebody~9876543210"
NOBODY = 65534

pytestmark = [
    pytest.mark.slow,
    pytest.mark.hostile,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

# Reads all that it may of every process, again and again until its stdin is closed. The key comes by stdin, so that the
# spy itself does not show it.
SPY = """
import glob, json, select, sys
key = sys.stdin.readline().strip().encode()
read, refused, seen, found = 0, 0, set(), set()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            content = open(path, "rb").read()
        except PermissionError:
            refused += 1
        except OSError:
            pass
        else:
            read += 1
            seen.add(content.partition(b"\\0")[0].rpartition(b"/")[2].decode("utf-8", "replace"))
            if key in content:
                found.add(path.rpartition("/")[2] + ": " + content.replace(b"\\0", b" ").decode("utf-8", "replace"))
print(json.dumps({"read": read, "refused": refused, "seen": sorted(seen), "found": sorted(found)}))
"""


def command(name: str) -> list[str]:
    return [sys.executable, "-c", f"from onetrunk.{name}"]


SERVE_REPO = command("serving.cli import serve_repo; serve_repo()")
DEPLOY_HEAD = command("cli.deploy_head import deploy_head; deploy_head()")
ASK_REPO = command("client.cli import ask_repo; ask_repo()")


@pytest.fixture
def spied() -> Iterator[Callable[[], dict[str, Any]]]:
    """A process of another user reads what it can from now on; gives what it has seen, and ends it."""
    spy = subprocess.Popen(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", SPY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
    )
    assert spy.stdin is not None
    assert spy.stdout is not None
    spy.stdin.write(f"{KEY}\n")
    spy.stdin.flush()
    assert spy.stdout.readline() == "ready\n"

    def end() -> dict[str, Any]:
        out, _ = spy.communicate(timeout=60)
        return dict(json.loads(out))

    yield end
    spy.kill()
    spy.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where everything is written. Its path is short, since sockets are put into it."""
    path = Path(tempfile.mkdtemp(prefix="day", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def holders(folder: Path, keys: tuple[str, ...]) -> list[str]:
    """The files below a folder that hold one of the keys."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [str(path) for path in files if any(key.encode() in path.read_bytes() for key in keys)]


def ask_over_http(url: str, key: str | None) -> str:
    """The body of the answer to a request that only the admin may make, with the headers."""
    headers = {"onetrunk-admin-key": key} if key is not None else {}
    request = urllib.request.Request(f"{url}/v2/repository/index", data=b"{}", headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return f"{response.status} {response.headers} {response.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.headers} {error.read().decode()}"


def test_a_days_work_shows_the_key_to_nobody(
    spied: Callable[[], dict[str, Any]],
    folder: Path,
    tiny_repository: Path,
    tiny_trunk_folder: Path,
    bundle: Callable[..., Path],
) -> None:
    repository = shutil.copytree(tiny_repository, folder / "repository")
    (folder / "tmp").mkdir()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ONETRUNK_")}
    plain["TMPDIR"] = str(folder / "tmp")
    key_file = Path(tempfile.mkdtemp(prefix="key", dir="/tmp")) / "key"  # the one file that may hold it
    key_file.touch(0o600)
    key_file.write_text(f"{KEY}\n")
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json", "--verbose"]
    server = subprocess.Popen(
        [*SERVE_REPO, str(repository), *ports],
        env={**plain, "ONETRUNK_ADMIN_KEY": KEY},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    outputs = []
    try:
        assert server.stdout is not None
        ready = server.stdout.readline()
        assert ready, server.stderr.read() if server.stderr else ""
        outputs.append(ready)
        urls = json.loads(ready)

        def run(*arguments: object, key: str | None = None) -> int:
            environment = plain if key is None else {**plain, "ONETRUNK_ADMIN_KEY": key}
            done = subprocess.run(
                [str(argument) for argument in arguments], env=environment, cwd=folder, capture_output=True, text=True
            )
            outputs.append(done.stdout + done.stderr)
            return done.returncode

        deploy = [*DEPLOY_HEAD, "--repository", repository, "--trunk", tiny_trunk_folder, "--url", urls["grpc"]]
        assert run(*ASK_REPO, "a good day", "--json", "--url", urls["grpc"]) == 0, outputs[-1]
        assert run(*deploy, bundle(), "--admin-key-file", key_file) == 0, outputs[-1]
        assert run(*deploy, "--rollback", "mood", "--json", key=KEY) == 0, outputs[-1]
        assert run(*deploy, "--sync", key=WRONG) == 2, outputs[-1]
        assert run(*deploy, "--sync", key=f"{WRONG}\n\n") == 2, outputs[-1]
        assert run(*deploy, "--sync") == 2, outputs[-1]
        assert run(*deploy, "--log", key=KEY) == 0, outputs[-1]
        outputs += [ask_over_http(f"http://{urls['http']}", key) for key in (KEY, WRONG, None)]
        assert [output.partition(" ")[0] for output in outputs[-3:]] == ["200", "403", "403"]
        with Client(urls["grpc"]) as client, AdminClient(urls["grpc"], WRONG) as admin:
            assert client.predict("a good day")
            with pytest.raises(UserError) as raised:
                admin.unload("multitask")
            outputs.append(str(raised.value))
        with urllib.request.urlopen(urls["metrics"], timeout=60) as response:
            outputs.append(response.read().decode())
        # While everything runs: folders of sockets and copies are gone afterwards.
        assert holders(folder, (KEY, WRONG)) == []
    finally:
        # Not SIGINT: where the tests run in the background, it is ignored from the start.
        server.send_signal(signal.SIGTERM)
        try:
            outputs += server.communicate(timeout=60)
        finally:
            server.kill()
        shutil.rmtree(key_file.parent)
    assert server.returncode == 0, outputs[-1]
    seen = spied()
    assert seen["found"] == []
    assert {"tritonserver", Path(sys.executable).name} <= set(seen["seen"]), "it looked at what matters"
    assert min(seen["read"], seen["refused"]) > 100, "it read command lines, and was refused environments"
    assert holders(folder, (KEY, WRONG)) == []
    for output in outputs:
        assert KEY not in output
        assert WRONG not in output
    assert (repository / "deployments.jsonl").is_file()
    for log in (urls["log"], urls["front_log"]):
        assert Path(log).is_relative_to(folder), "it was among the files"
