"""docker-compose.yml lets nobody in who should not be: ports, sockets, keys, users and rights."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onetrunk.serving.front.settings import GRPC_PORT, GRPC_SOCKET, HTTP_SOCKET, METRICS_SOCKET
from tests.fixtures.compose import DOCKERFILE, FRONT, SERVE, TRITONS, flags, read_compose

SOCKETS = "/run/onetrunk"


def test_nothing_is_published_beyond_loopback_by_default(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published), published


def test_one_address_opens_all_of_it() -> None:
    services = read_compose({"ONETRUNK_HOST": "0.0.0.0"})["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert all(port.startswith("0.0.0.0:") for port in published), published


@pytest.mark.hostile
@pytest.mark.parametrize("name", TRITONS)
def test_triton_is_reached_through_the_front_only(name: str, services: dict[str, Any]) -> None:
    triton, front = services[name], services["front"]
    # No network, no port, no key: sockets in a folder that no other user may enter.
    assert triton["network_mode"] == "none"
    assert "ports" not in triton
    assert not [variable for variable in triton["environment"] if "KEY" in variable]
    told = flags(triton["command"])
    assert told["--http-address"] == [f"unix:{SOCKETS}/{HTTP_SOCKET}"]
    assert told["--metrics-address"] == [f"unix:{SOCKETS}/{METRICS_SOCKET}"]
    assert (told["--grpc-address"], told["--grpc-port"]) == ([f"unix:{SOCKETS}/{GRPC_SOCKET}"], [str(GRPC_PORT)])
    assert front["command"][:2] == ["serve-front", SOCKETS]
    assert triton["environment"]["ONETRUNK_SOCKETS"] == SOCKETS
    for service in (triton, front):
        (mounted,) = [volume for volume in service["volumes"] if volume["target"] == SOCKETS]
        assert (mounted["type"], mounted["source"]) == ("volume", "sockets")
    assert triton["user"] == front["user"]
    check = triton["healthcheck"]["test"]
    assert check[check.index("--unix-socket") + 1] == f"{SOCKETS}/{HTTP_SOCKET}"


@pytest.mark.hostile
def test_the_folder_of_the_sockets_is_closed_to_other_users() -> None:
    options = read_compose({"ONETRUNK_UID": "1234", "ONETRUNK_GID": "5678"})["volumes"]["sockets"]["driver_opts"]
    assert options["type"] == "tmpfs"
    assert {"mode=0700", "uid=1234", "gid=5678"} <= set(options["o"].split(","))


@pytest.mark.hostile
def test_no_key_stands_in_a_command(services: dict[str, Any]) -> None:
    keyed = read_compose({"ONETRUNK_ADMIN_KEY": "a-key-for-this-test"})
    holders = [name for name, service in keyed["services"].items() if "a-key-for-this-test" in json.dumps(service)]
    assert holders == ["front"]
    front = keyed["services"]["front"]
    assert "a-key-for-this-test" not in json.dumps([front["command"], front["healthcheck"]])
    assert "KEY" not in SERVE.read_text(encoding="utf-8")


def test_every_service_is_hardened(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        user, _, group = service["user"].partition(":")
        assert int(user) > 0, name
        assert int(group) > 0, name
        assert "privileged" not in service, name
    for dockerfile in (DOCKERFILE, FRONT):
        assert re.search(r"^USER 1000:1000$", dockerfile.read_text(encoding="utf-8"), re.M)


def test_home_can_be_written_where_the_root_cannot(services: dict[str, Any]) -> None:
    for name in (*TRITONS, "front", "bench"):
        home = services[name]["environment"]["HOME"]
        assert home in [tmpfs.partition(":")[0] for tmpfs in services[name]["tmpfs"]]


def test_onnx_runtime_sends_no_telemetry(services: dict[str, Any]) -> None:
    for name in TRITONS:
        assert services[name]["environment"]["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.hostile
def test_a_killed_tritons_sockets_are_in_nobodys_way(tmp_path: Path) -> None:
    triton = tmp_path / "tritonserver"
    triton.write_text('#!/bin/sh\numask\nprintf "%s\\n" "$@"\n')
    triton.chmod(0o755)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    for name in (f"{GRPC_SOCKET}:{GRPC_PORT}", HTTP_SOCKET, METRICS_SOCKET):
        (sockets / name).touch()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ONETRUNK_SOCKETS": str(sockets)}
    command = ["sh", SERVE, "--id=two words", "--x"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    mask, *passed_on = run.stdout.splitlines()
    assert int(mask, 8) == 0o077
    assert passed_on == ["--id=two words", "--x"]
    assert list(sockets.iterdir()) == []
