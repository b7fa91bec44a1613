"""Choosing ports, and saying which one is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.serving.command import Address, PortTakenError, choose_ports, listens_on, resolve_host


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener.getsockname()[1]


def test_free_ports_are_chosen_and_named_ones_kept() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
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


def test_names_are_resolved_to_ipv4() -> None:
    assert resolve_host("localhost") == "127.0.0.1"
    assert resolve_host("0.0.0.0") == "0.0.0.0"
    with pytest.raises(UserError, match=r"--host ::1: not an IPv4 address"):
        resolve_host("::1")


@pytest.mark.parametrize(
    ("host", "reachable"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3")],
)
def test_where_this_machine_reaches_it(host: str, reachable: str) -> None:
    address = Address(host, 1, 2, 3)
    assert address.reachable_host == reachable


def test_listening_is_asked_of_the_process_itself(taken: int) -> None:
    assert listens_on(os.getpid(), {taken})
    assert not listens_on(os.getpid(), {taken, 1})
    assert not listens_on(os.getppid(), {taken})


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_named_with_its_option(port: int) -> None:
    with pytest.raises(UserError, match=rf"^--grpc-port {port}: .*65535$"):
        choose_ports(Address("127.0.0.1", 0, port, 0))
