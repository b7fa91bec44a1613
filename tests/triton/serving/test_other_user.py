"""What another user of the machine learns of a server, from before its start until after its stop: nothing."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hostile.starts import AnotherUser
from onetrunk.admin import AdminClient
from onetrunk.protocol.names import MULTITASK
from onetrunk.serving import Server

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
    ),
]

# Of this run alone: on a shared machine the same test may run elsewhere, and leave its own lying open.
KEY = f"a-key-of-{secrets.token_hex(8)}"
TEXT = f"a text of {secrets.token_hex(8)}"


def test_another_user_sees_neither_key_nor_texts_and_reaches_no_triton(tiny_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(tiny_repository, tmp_path / "model_repository")
    log = tmp_path / "triton.log"
    with (
        AnotherUser({"key": KEY, "text": TEXT}) as other,
        Server(
            repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY, log_path=log, probe_interval_s=None
        ) as server,
    ):
        other.try_door(server.http_url)
        with AdminClient(server.grpc_url, KEY) as admin:
            assert admin.loaded_versions()
            for _ in range(50):
                admin.ask(MULTITASK, [(TEXT, "")] * 8, ["mood"])
    assert other.report["uid"] != 0
    assert other.report["read"] > 1000, "it reads what it may"
    assert other.report["seen"] == {}
    assert [place for place in other.report["opened"] if "onetrunk" in place or place == server.http_url] == []
    assert log.stat().st_size, "the log was written"


def test_what_lies_open_is_found(tmp_path: Path) -> None:
    """The test above could not fail otherwise."""
    lying = Path("/dev/shm") / f"open_{tmp_path.name}"
    with AnotherUser({"key": KEY, "text": TEXT}) as other:
        lying.write_text(TEXT)
        lying.chmod(0o644)
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", KEY]) as showing:
            other.look_again()
            showing.kill()
        lying.unlink()
    assert set(other.report["seen"]) == {"key", "text"}
