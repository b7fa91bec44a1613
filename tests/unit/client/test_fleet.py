"""One client, several servers: they are asked in turn, and one that is gone is done without until it is back."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import grpc
import pytest
import trustme

from onetrunk.client import AsyncClient, BadInput, Client, NotReady, Tls, TlsError
from onetrunk.client import core as client_core
from onetrunk.client.replicas import FIRST_REST_S, LONGEST_REST_S, Replicas
from onetrunk.client.retry import Deadline, Failure, RetryPolicy
from onetrunk.protocol.address import address_fault, client_addresses, stays_on_this_machine
from tests.fixtures.fake_triton import FakeTriton

UNAVAILABLE, OK = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK


@pytest.fixture
def three(start_fake: Callable[..., FakeTriton]) -> list[FakeTriton]:
    return [start_fake() for _ in range(3)]


def urls(fakes: list[FakeTriton]) -> list[str]:
    return [fake.url for fake in fakes]


def test_every_server_gets_its_share(three, make_client):
    with make_client(urls(three)) as client:
        for length in range(1, 31):
            (answer,) = client.predict("x" * length, tasks=["sst2"])
            assert answer["sst2"].scores["negative"] == pytest.approx(1 / (1 + length))
    assert sum(len(fake.requests) for fake in three) == 30
    assert max(len(fake.requests) for fake in three) - min(len(fake.requests) for fake in three) <= 1


def test_addresses_may_be_given_with_commas(three, make_client):
    with make_client(",".join(urls(three))) as client:
        client.predict(["x"] * 60, tasks=["sst2"])
    assert all(fake.requests for fake in three)


def test_one_dies_and_comes_back(three, start_fake, make_client):
    with make_client(urls(three), retries=0) as client:
        client.predict("before", tasks=["sst2"])
        three[0].stop()
        for _ in range(12):  # without a retry that counts, not one of them fails
            client.predict("meanwhile", tasks=["sst2"])
        back = start_fake(int(three[0].url.rpartition(":")[2]))
        ask_until(client, lambda: back.requests)


def test_a_server_that_cannot_answer_is_passed_over_at_once(three, make_client):
    three[0].faults.extend([(UNAVAILABLE, "the model server is not running")] * 99)
    with make_client(urls(three), retries=0) as client:
        began = time.monotonic()
        for _ in range(6):
            client.predict("text", tasks=["sst2"])
        # It is asked again when its rest is over, not with every request.
        assert len(three[0].requests) <= 1 + (time.monotonic() - began) / FIRST_REST_S


def test_none_left_is_one_line_with_every_address(three, make_client):
    for fake in three:
        fake.stop()
    with make_client(urls(three), retries=1) as client, pytest.raises(NotReady) as raised:
        client.predict("text")
    assert "\n" not in str(raised.value)
    assert all(fake.url in str(raised.value) for fake in three)


def test_one_server_without_tls_is_not_in_the_way_of_the_others(three, start_fake, make_client, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain = b"".join(one.bytes() for one in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    secure = start_fake(credentials=credentials)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = Tls(ca=tmp_path / "ca.pem")
    with make_client([three[0].url, secure.url], tls=tls) as client:
        for _ in range(4):
            client.predict("text", tasks=["sst2"])
    assert (len(three[0].requests), len(secure.requests)) == (0, 4)
    with make_client(urls(three[:2]), tls=tls) as client, pytest.raises(TlsError, match="does not speak TLS"):
        client.predict("text")


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url",
    [
        [],
        "",
        "a:1,",
        "a:1,,b:2",
        ["a:1", "a:1"],
        ["a:1", 7],
        ["a"],
        "dns:///a",
        "dns://8.8.8.8/a:1",
        "dns:///unix:/a:1",
    ],
)
def test_a_wrong_address_among_them_is_refused(client, url):
    with pytest.raises(BadInput):
        client(url)


def test_a_name_of_several_servers_is_only_for_clients():
    assert client_addresses("dns:///onetrunk-headless:8001") == ("dns:///onetrunk-headless:8001",)
    assert client_addresses("[::1]:8001,unix:/run/t:1") == ("[::1]:8001", "unix:/run/t:1")
    # What changes a server must go to the one that is meant.
    assert address_fault("dns:///onetrunk-headless:8001")
    assert address_fault("a:8001,b:8001")
    assert stays_on_this_machine("dns:///localhost:8001")
    assert not stays_on_this_machine("dns:///onetrunk-headless:8001")


def test_other_servers_are_tried_at_once_and_for_free():
    policy = RetryPolicy(retries=2, others=2)
    failure = Failure(NotReady("gone"), transient=True)
    deadline = Deadline(60)
    pauses = [policy.pause_s(failure, tries, deadline) for tries in (1, 2, 3, 4)]
    assert pauses[:2] == [0, 0]
    assert 0.05 <= pauses[2] <= 0.1 <= pauses[3] <= 0.2
    with pytest.raises(NotReady):
        policy.pause_s(failure, 5, deadline)


def test_rests_double_end_and_are_no_reason_to_ask_nobody():
    now = [100.0]
    channels = {address: grpc.insecure_channel(address) for address in ("a:1", "b:1")}
    replicas = Replicas(channels, clock=lambda: now[0])
    a, b = replicas.all
    replicas.note(a, UNAVAILABLE)
    assert {replicas.next() for _ in range(4)} == {b}
    now[0] += FIRST_REST_S
    assert {replicas.next() for _ in range(4)} == {a, b}
    for _ in range(2000):  # an hour of failures, after which the doubling is no power that a float holds
        replicas.note(b, UNAVAILABLE)
    assert b.rests_until == now[0] + LONGEST_REST_S
    replicas.note(a, UNAVAILABLE)
    assert a.rests_until == now[0] + 2 * FIRST_REST_S
    assert {replicas.next() for _ in range(4)} == {a}  # both rest, this one for less long
    replicas.note(a, grpc.StatusCode.INTERNAL)  # says nothing about whether it is there
    assert a.faults == 2
    replicas.note(a, OK)
    replicas.note(b, OK)
    assert Counter(replicas.next().address for _ in range(6)) == {"a:1": 3, "b:1": 3}


class Wire:
    """Passes bytes on between clients and a server, until it is cut without a word, as by a loss of power."""

    def __init__(self, url: str) -> None:
        host, _, port = url.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._cut = threading.Event()
        self._ends: list[socket.socket] = [self._listener]
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Pass nothing on any more, and close nothing."""
        self._cut.set()

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._ends += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._cut.is_set():
                    target.sendall(data)


def test_a_server_that_vanishes_without_a_word_is_noticed(three, make_client, monkeypatch):
    names = [name for name, _ in client_core.FLEET_OPTIONS]
    monkeypatch.setattr(client_core, "FLEET_OPTIONS", tuple((name, 300) for name in names))
    wire = Wire(three[0].url)
    try:
        with make_client([wire.url, three[1].url], timeout_s=60, retries=0) as client:
            for _ in range(4):
                client.predict("before", tasks=["sst2"])
            assert three[0].requests
            wire.cut()
            for _ in range(4):
                client.predict("after", tasks=["sst2"])
    finally:
        wire.close()


@contextlib.contextmanager
def name_server(addresses: list[str]) -> Iterator[int]:
    """A name server on the loopback, whose every name has these addresses, as a headless service has its pods'."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    query, peer = server.recvfrom(512)
                    end = query.index(b"\0", 12) + 5
                    (kind,) = struct.unpack_from(">H", query, end - 4)
                    found = list(addresses) if kind == 1 else []  # A; there is no AAAA, SRV or TXT
                    head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
                    records = [struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(one) for one in found]
                    server.sendto(head + query[12:end] + b"".join(records), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            thread.join()


def test_a_new_server_behind_a_name_is_found_once_connections_age(start_fake, make_client, monkeypatch):
    aging = [("grpc.max_connection_age_ms", 500), ("grpc.max_connection_age_grace_ms", 5000)]
    first = start_fake(options=aging)
    port = first.url.rpartition(":")[2]
    addresses = ["127.0.0.1"]
    with name_server(addresses) as dns:
        # A client takes no name server of one's own; this machine has no other that would say what it should here.
        target = f"dns://127.0.0.1:{dns}/onetrunk-headless.example:{port}"
        for transport in (grpc, grpc.aio):
            opened = transport.insecure_channel
            monkeypatch.setattr(
                transport, "insecure_channel", lambda _, options, opened=opened: opened(target, options)
            )
        with make_client(f"dns:///onetrunk-headless.example:{port}") as client:
            client.predict("text", tasks=["sst2"])
            second = start_fake(url=f"127.0.0.2:{port}", options=aging)
            addresses.append("127.0.0.2")
            ask_until(client, lambda: second.requests)
            asked = len(first.requests)
            ask_until(client, lambda: len(first.requests) > asked)  # in turn
            first.stop()
            addresses.remove("127.0.0.1")
            for _ in range(5):
                client.predict("text", tasks=["sst2"])


def ask_until(client: Client, done: Callable[[], object]) -> None:
    """Ask, without one failure, until something has happened."""
    ends = time.monotonic() + 60
    while not done():
        assert time.monotonic() < ends
        client.predict("text", tasks=["sst2"])
        time.sleep(0.05)
