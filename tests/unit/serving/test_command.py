"""Host and ports, Triton's command line and environment, and the private folder of a process."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.serving import installation
from onetrunk.serving.command import Address, PortTakenError, choose_ports, resolve_host, triton_command
from onetrunk.serving.installation import Installation, Runtime, environment, find_libpython, find_triton, make_runtime
from tests.fixtures.ports import free_port
from tests.fixtures.stand_ins import stand_in

HERE = Installation(
    binary=Path("/triton/bin/tritonserver"),
    python_backend=Path("/triton/backends/python"),
    stub=Path("/triton/stub"),
    libraries=Path("/triton/libs"),
    libpython=None,
)
RUNTIME = Runtime(Path("/private"), "onetrunk_1_ab_")


def test_the_whole_command_line() -> None:
    assert triton_command(HERE, RUNTIME, Path("/repo")) == [
        "/triton/bin/tritonserver",
        "--model-repository=/repo",
        "--backend-directory=/private/backends",
        "--model-control-mode=explicit",
        "--load-model=multitask",
        "--load-model=multitask_tokens",
        "--disable-auto-complete-config",
        "--grpc-address=unix:/private/grpc.sock",
        "--http-address=unix:/private/http.sock",
        "--metrics-address=unix:/private/metrics.sock",
        "--grpc-port=1",
        "--http-port=2",
        "--metrics-port=3",
        "--allow-gpu-metrics=false",
        "--metrics-config=summary_latencies=true",
        "--exit-timeout-secs=5",
        "--backend-config=python,shm-region-prefix-name=onetrunk_1_ab_",
        "--backend-config=python,stub-timeout-seconds=120",
    ]


def test_verbose_logs_every_request() -> None:
    assert triton_command(HERE, RUNTIME, Path("/repo"), verbose=True)[-1] == "--log-verbose=1"


@pytest.mark.hostile
def test_the_folder_of_the_sockets_is_closed_to_others_and_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()

    def make_folder(prefix: str, dir: str | Path = deep) -> str:
        return tempfile.mkdtemp(prefix=prefix, dir=dir)

    monkeypatch.setattr(installation, "tempfile", stand_in(tempfile, mkdtemp=make_folder))
    runtime = make_runtime(find_triton())
    try:
        assert stat.S_IMODE(runtime.folder.stat().st_mode) == 0o700
        assert len(str(runtime.sockets.metrics_socket)) < 108, "the kernel takes no longer name of a socket"
        assert list(deep.iterdir()) == []
    finally:
        shutil.rmtree(runtime.folder)


def test_the_environment_leads_to_our_libraries_and_python() -> None:
    ours = {"ONETRUNK_ADMIN_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret"}
    made = environment(HERE, RUNTIME, {"PATH": "/bin", "LD_LIBRARY_PATH": "/own", "OTHER": "kept", **ours})
    assert made == {
        "PATH": f"{sys.prefix}/bin:/bin",
        "LD_LIBRARY_PATH": "/private/lib:/triton/libs:/own",
        "ORT_DISABLE_TELEMETRY": "1",
        "OTHER": "kept",
    }
    # An empty entry would mean the working directory.
    assert environment(HERE, RUNTIME, {})["LD_LIBRARY_PATH"] == "/private/lib:/triton/libs"


def test_triton_is_found_without_importing_its_package() -> None:
    code = (
        "import sys; from onetrunk.serving.installation import find_triton; found = find_triton(); "
        "assert 'pytriton' not in sys.modules; assert found.binary.is_file() and found.stub.is_file(); "
        "assert found.libraries.is_dir()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("pytriton", r"^Triton is not installed .*: pip install -e '\.\[server\]' in the checkout$"),
        (
            "onnxruntime",
            r"^ONNX Runtime is not installed .*: pip install -e '\.\[cpu\]' in the checkout \(or \[gpu\], for CUDA\)$",
        ),
        ("tokenizers", r"^tokenizers is not installed .*: pip install -e '\.\[server\]' in the checkout$"),
    ],
)
def test_what_is_missing_names_its_pip_line(monkeypatch: pytest.MonkeyPatch, package: str, message: str) -> None:
    find_spec = importlib.util.find_spec
    util = stand_in(importlib.util, find_spec=lambda name: None if name == package else find_spec(name))
    monkeypatch.setattr(installation, "importlib", stand_in(importlib, util=util))
    with pytest.raises(UserError, match=message):
        find_triton()


def test_a_python_without_a_stub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Version:
        major, minor = 3, 99

    monkeypatch.setattr(installation, "sys", stand_in(sys, version_info=Version))
    with pytest.raises(UserError, match=r"no Python backend for Python 3\.99 \(it has: 3\.10, "):
        find_triton()


def test_libpython_is_taken_from_a_python_that_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "libpython3.99.so.1.0"
    monkeypatch.setattr(installation, "sys", stand_in(sys, base_prefix=str(tmp_path)))
    util = stand_in(ctypes.util, find_library=lambda name: f"lib{name}.so.1.0")
    monkeypatch.setattr(installation, "ctypes", stand_in(ctypes, util=util))
    assert find_libpython("3.99") is None, "the dynamic linker finds it"
    library.touch()
    assert find_libpython("3.99") == library


def test_a_machine_without_libpython_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    util = stand_in(ctypes.util, find_library=lambda name: None)
    monkeypatch.setattr(installation, "ctypes", stand_in(ctypes, util=util))
    with pytest.raises(UserError, match=r"needs libpython3\.99\.so\.1\.0.*apt-get install libpython3\.99"):
        find_libpython("3.99")


def test_the_private_folder_holds_both_backends(tmp_path: Path) -> None:
    fake = tmp_path / "triton"
    (fake / "python" / "__pycache__").mkdir(parents=True)
    (fake / "python" / "libtriton_python.so").touch()
    (fake / "stub").mkdir()
    (fake / "stub" / "triton_python_backend_stub").touch(mode=0o644)
    (fake / "libpython3.99.so.1.0").touch()
    runtime = make_runtime(
        Installation(
            binary=fake,
            python_backend=fake / "python",
            stub=fake / "stub" / "triton_python_backend_stub",
            libraries=fake,
            libpython=fake / "libpython3.99.so.1.0",
        )
    )
    try:
        files = {str(path.relative_to(runtime.folder)) for path in runtime.folder.rglob("*") if not path.is_dir()}
        assert files == {
            "backends/python/libtriton_python.so",
            "backends/python/triton_python_backend_stub",
            "backends/onnxruntime/model.py",
            "lib/libpython3.99.so.1.0",
        }
        assert not any(path.is_symlink() for path in runtime.backends.rglob("*")), "Triton refuses links there"
        assert os.access(runtime.backends / "python" / "triton_python_backend_stub", os.X_OK)
        assert runtime.folder.stat().st_mode & 0o077 == 0, "nobody else's business"
    finally:
        shutil.rmtree(runtime.folder)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener.getsockname()[1]


def test_free_ports_are_chosen_and_named_ones_kept() -> None:
    free = free_port()
    chosen = choose_ports(Address("127.0.0.1", 0, free, 0))
    assert chosen.grpc_port == free
    assert len(chosen.ports) == 3
    assert 0 not in chosen.ports


def test_a_taken_port_is_named_with_its_option(taken: int) -> None:
    with pytest.raises(PortTakenError, match=rf"^port {taken} is in use; give another with --metrics-port$") as error:
        choose_ports(Address("127.0.0.1", 0, 0, taken))
    assert error.value.exit_code == 1


def test_one_port_for_two_endpoints_is_refused(taken: int) -> None:
    free = choose_ports(Address("127.0.0.1", 0, 0, 0)).http_port
    with pytest.raises(UserError, match=f"--grpc-port {free}: another endpoint has this port"):
        choose_ports(Address("127.0.0.1", free, free, 0))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1: not an address of this machine"):
        choose_ports(Address("192.0.2.1", 0, 0, 0))


@pytest.mark.parametrize(
    ("host", "address"),
    [("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "::1"), ("[::1]", "::1"), ("::", "::")],
)
def test_names_are_resolved_to_ipv4_where_they_have_it(host: str, address: str) -> None:
    assert resolve_host(host) == address


@pytest.mark.parametrize("host", ["no such name", "::1::", "a" * 300])
def test_an_unknown_host_is_refused(host: str) -> None:
    with pytest.raises(UserError, match=r"^--host .*: neither an address nor the name of one$"):
        resolve_host(host)


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("127.0.0.1", "127.0.0.1:2"),
        ("0.0.0.0", "127.0.0.1:2"),
        ("10.1.2.3", "10.1.2.3:2"),
        ("::1", "[::1]:2"),
        ("::", "[::1]:2"),
    ],
)
def test_where_this_machine_reaches_it(host: str, reachable: str) -> None:
    assert Address(host, 1, 2, 3).reach(2) == reachable


def test_an_address_with_a_zone_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--host fe80::1%eth0: an address with a zone"):
        resolve_host("fe80::1%eth0")


def test_a_machine_without_ipv6_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_family(*arguments: object) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("onetrunk.serving.command.socket", stand_in(socket, socket=no_such_family))
    with pytest.raises(UserError, match=r"^--host ::1: this machine cannot listen on it: Address family not supported"):
        choose_ports(Address("::1", 0, 0, 0))


def test_ports_of_ipv6_are_chosen() -> None:
    address = choose_ports(Address("::1", 0, 0, 0))
    assert len(address.ports) == 3
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", address.http_port))
        other.listen(1)
        with pytest.raises(PortTakenError, match=f"port {address.http_port} is in use"):
            choose_ports(address)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_named_with_its_option(port: int) -> None:
    with pytest.raises(UserError, match=rf"^--grpc-port {port}: .*65535$"):
        choose_ports(Address("127.0.0.1", 0, port, 0))
