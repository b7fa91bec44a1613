"""TLS of the clients, against gRPC servers with certificates that are made here."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import grpc
import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from onetrunk.admin import AdminClient
from onetrunk.cli.deploy_head import deploy_head
from onetrunk.client import AsyncClient, BadInput, Client, Tls, TlsError
from onetrunk.client.cli import ask_repo
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.tls import tls_fault


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of two authorities that know nothing of each other, and of what they have issued."""
    folder = tmp_path_factory.mktemp("certificates")
    made = SimpleNamespace(folder=folder, server={})
    for name in ("ours", "theirs"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
        client = authority.issue_cert("client")
        client.private_key_pem.write_to_path(folder / f"{name}.key")
        client.cert_chain_pems[0].write_to_path(folder / f"{name}.client.pem")
        setattr(made, name, authority)
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    made.server["good"] = made.ours.issue_cert("127.0.0.1")
    made.server["of another name"] = made.ours.issue_cert("triton.example")
    made.server["expired"] = made.ours.issue_cert("127.0.0.1", not_after=yesterday)
    return made


@pytest.fixture
def serve(files, start_fake):
    """Starts a fake Triton with TLS."""

    def start(certificate="good", *, mutual=False, **where):
        issued = files.server[certificate]
        pair = (issued.private_key_pem.bytes(), b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        trusted = files.ours.cert_pem.bytes() if mutual else None
        return start_fake(credentials=grpc.ssl_server_credentials([pair], trusted, mutual), **where)

    return start


@pytest.fixture
def tls(files):
    """Makes a client's side of TLS from the files of an authority."""

    def make(ca="ours", client=None, **others):
        pair = (files.folder / f"{client}.client.pem", files.folder / f"{client}.key") if client else (None, None)
        return Tls(files.folder / f"{ca}.pem" if ca else None, *pair, **others)

    return make


def test_clients_and_server_with_tls(make_client, serve, tls):
    url = serve().url
    with make_client(url, tls=tls()) as client, AdminClient(url, "key", tls=tls()) as admin:
        assert client.predict("abc", tasks=["sst2"])[0]["sst2"].scores["negative"] == pytest.approx(1 / 4)
        assert admin.config("multitask").max_batch_size == 8


def test_a_server_that_knows_its_clients(make_client, serve, tls):
    url = serve(mutual=True).url
    with make_client(url, tls=tls(client="ours")) as client, AdminClient(url, tls=tls(client="ours")) as admin:
        assert "sst2" in client.tasks()
        assert admin.config("multitask") is not None


def test_a_server_behind_another_address_than_its_name(make_client, serve, tls):
    url = serve("of another name").url
    with make_client(url, tls=tls(server_name="triton.example")) as client:
        assert "sst2" in client.tasks()


@pytest.mark.parametrize("secure", [False, True])
def test_a_unix_socket_as_triton_names_it(make_client, start_fake, serve, tls, tmp_path, secure):
    url = f"unix:{tmp_path}/t.sock:8001"
    server = serve(url=url) if secure else start_fake(url=url)
    side = tls(server_name="127.0.0.1") if secure else None
    with make_client(server.url, tls=side) as client, AdminClient(server.url, "key", tls=side) as admin:
        assert client.predict("abc", tasks=["sst2"])
        assert admin.config("multitask") is not None


FAULTS = {
    "server with TLS, client without": ({}, None, "speaks TLS, and this client does not: give --tls"),
    "server without TLS, client with": (None, {}, "does not speak TLS on this port: leave TLS out"),
    "another authority": ({}, {"ca": "theirs"}, r"is not accepted \(.*; trusted: .*theirs\.pem\)"),
    "the system's authorities": ({}, {"ca": None}, r"is not accepted \(.*; trusted: the system's authorities\)"),
    "another name": ({"certificate": "of another name"}, {}, r"is not accepted \(.*'127\.0\.0\.1'"),
    "expired": ({"certificate": "expired"}, {}, r"is not accepted \(certificate has expired"),
    "no client certificate": ({"mutual": True}, {}, "wants a certificate of the client, and none was given"),
    "a foreign client certificate": (
        {"mutual": True},
        {"client": "theirs"},
        r"wants a certificate of the client, and does not accept .*theirs\.client\.pem",
    ),
    "TLS at both ends, and still no certificate": ({"mutual": True}, None, "speaks TLS, and this client does not"),
}


@pytest.mark.parametrize(("server", "client", "message"), FAULTS.values(), ids=FAULTS)
def test_a_disagreement_is_said_in_one_line_and_not_tried_again(
    make_client, start_fake, serve, tls, server, client, message
):
    url = start_fake().url if server is None else serve(**server).url
    side = tls(**client) if client is not None else None
    with make_client(url, tls=side, retries=50) as asking, pytest.raises(TlsError, match=message) as of_client:
        asking.predict("abc")
    with AdminClient(url, tls=side) as admin, pytest.raises(TlsError, match=message) as of_admin:
        admin.config("multitask")
    for raised in (of_client, of_admin):
        assert url in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_server_that_is_not_there_and_one_that_is_well_are_no_fault_of_tls(serve, tls, tmp_path):
    reason = "failed to connect to all addresses"
    for url in ("127.0.0.1:1", f"unix:{tmp_path}/no.sock"):
        for side in (None, tls()):
            assert tls_fault(url, side, reason) is None
    assert tls_fault(serve().url, tls(), reason) is None


def broken_files(files):
    """Fault of a client's files -> the files, and what is said."""
    folder = files.folder
    (folder / "garbage.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (folder / "text.pem").write_bytes("gr\u00fcn".encode())
    key = load_pem_private_key((folder / "ours.key").read_bytes(), None)
    (folder / "locked.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
    )
    mine, key = folder / "ours.client.pem", folder / "ours.key"
    return {
        "missing": (Tls(folder / "no.pem"), r"no\.pem: No such file or directory"),
        "a folder": (Tls(folder), "Is a directory"),
        "garbage": (Tls(folder / "garbage.pem"), r"garbage\.pem: .* does not hold certificates in PEM"),
        "text": (Tls(folder / "text.pem"), r"text\.pem: .* does not hold certificates in PEM"),
        "a key as authority": (Tls(key), r"ours\.key: .* does not hold certificates in PEM"),
        "a key as certificate": (Tls(None, key, key), r"ours\.key: .* does not hold certificates in PEM"),
        "a certificate as key": (Tls(None, mine, mine), r"ours\.client\.pem: .* does not hold a private key in PEM"),
        "another's key": (Tls(None, mine, folder / "theirs.key"), "is not the private key of the certificate in"),
        "a passphrase": (Tls(None, mine, folder / "locked.key"), "passphrase"),
        "no key": (Tls(None, mine), "certificate was given without its key"),
        "no certificate": (Tls(None, None, key), "key was given without its certificate"),
    }


def test_files_that_cannot_be_used_are_named_before_anything_is_sent(files):
    for case, (tls, message) in broken_files(files).items():
        for make in (Client, AsyncClient, AdminClient):
            with pytest.raises(TlsError, match=message) as raised:
                make("127.0.0.1:1", tls=tls)
            assert "\n" not in str(raised.value), case


def test_anything_else_than_a_tls_is_refused():
    with pytest.raises(BadInput, match="tls is bool, expected a Tls"):
        Client("127.0.0.1:1", tls=True)


def ask(url, *options):
    return CliRunner().invoke(ask_repo, ["abc", "--tasks", "sst2", "--json", "--url", url, *map(str, options)])


def test_ask_repo(files, serve):
    url, folder = serve(mutual=True).url, files.folder
    pair = ("--tls-cert", folder / "ours.client.pem", "--tls-key", folder / "ours.key")
    result = ask(url, "--tls-ca", folder / "ours.pem", *pair)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == "abc"
    named = ask(serve("of another name").url, "--tls-ca", folder / "ours.pem", "--tls-server-name", "triton.example")
    assert named.exit_code == 0, named.output
    for options in ((), ("--tls",), pair, ("--tls-ca", folder / "no.pem")):
        result = ask(url, *options)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1, "there is a server, so nobody is told to start one"


@pytest.mark.parametrize(
    "command",
    [
        "client.cli import ask_repo; ask_repo(['abc', *sys.argv[1:]])",
        "client.cli import bench_repo; bench_repo(sys.argv[1:])",
    ],
    ids=["ask-repo", "bench-repo"],
)
def test_a_command_of_its_own_process_says_one_line_and_grpc_none(serve, files, command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from onetrunk.{command}", "--url", serve().url, "--tls"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"},
    )
    assert done.returncode == 2
    assert "is not accepted" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.hostile
@pytest.mark.parametrize(
    "url", ["gpu1:8001", "10.0.0.7:8001", "[2001:db8::1]:8001", "localhost.example:1", "0.0.0.0:1"]
)
def test_the_admin_key_is_not_sent_in_clear_to_another_machine(url, tls):
    with pytest.raises(UserError, match="could read the admin key: give --tls, or --insecure"):
        AdminClient(url, "key")
    for harmless in ({"tls": tls()}, {"insecure": True}):
        AdminClient(url, "key", **harmless).close()
    AdminClient(url).close()


@pytest.mark.parametrize("url", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/triton.sock:8001"])
def test_it_is_sent_in_clear_to_this_machine(url):
    AdminClient(url, "key").close()


@pytest.mark.hostile
def test_deploy_head_keeps_the_key_to_itself(monkeypatch, tmp_path):
    monkeypatch.delenv("ONETRUNK_ADMIN_KEY_FILE", raising=False)
    monkeypatch.setenv("ONETRUNK_ADMIN_KEY", "the-key")
    result = CliRunner().invoke(deploy_head, ["--log", "--repository", str(tmp_path), "--url", "192.0.2.1:8001"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --url 192.0.2.1:8001: everybody between")
    assert result.stderr.count("\n") == 1
    assert "the-key" not in result.output
    told = CliRunner().invoke(
        deploy_head, ["--log", "--repository", str(tmp_path), "--url", "192.0.2.1:8001", "--insecure"]
    )
    assert told.exit_code == 0, told.output
