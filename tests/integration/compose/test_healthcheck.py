"""The front's healthcheck speaks the front's TLS, and says why a front is not healthy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from tests.fixtures.compose import FRONT

Check = Callable[[dict[str, str]], subprocess.CompletedProcess[str]]


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """The variables that docker-compose.yml passes on, with a certificate's files."""
    authority = trustme.CA()
    certificate = authority.issue_cert("front.example")
    paths = [tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt")]
    certificate.cert_chain_pems[0].write_to_path(paths[0])
    certificate.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    paths[1].chmod(0o600)
    names = ("ONETRUNK_TLS_CERT", "ONETRUNK_TLS_KEY", "ONETRUNK_TLS_CLIENT_CA")
    return {name: str(path) for name, path in zip(names, paths, strict=True)}


@pytest.fixture
def check(tmp_path: Path) -> Iterator[Check]:
    """Starts a front without a Triton, with some variables, and runs its healthcheck."""
    sockets = tmp_path / "sockets"
    sockets.mkdir(mode=0o700)
    started: list[subprocess.Popen[bytes]] = []

    def run(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [str(one.getsockname()[1]) for one in taken]
        for one in taken:
            one.close()
        options = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        command = [Path(sys.executable).parent / "serve-front", sockets, *options]
        started.append(subprocess.Popen(command, env=os.environ | variables))
        deadline = time.monotonic() + 60
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", int(ports[0]))) == 0:
                    break
            assert started[-1].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        healthcheck = [sys.executable, FRONT.parent / "healthy.py", ports[0]]
        return subprocess.run(healthcheck, env=os.environ | variables, capture_output=True, text=True, timeout=60)

    yield run
    for process in started:
        process.terminate()
    for process in started:
        process.wait(60)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_front_without_triton_is_not_healthy(check: Check, certificates: dict[str, str], encrypted: bool) -> None:
    del certificates["ONETRUNK_TLS_CLIENT_CA"]
    done = check(certificates if encrypted else {})
    assert done.returncode == 1
    assert done.stderr.startswith("not healthy: 503: ")


def test_being_asked_for_a_certificate_is_an_answer(check: Check, certificates: dict[str, str]) -> None:
    assert check(certificates).returncode == 0
