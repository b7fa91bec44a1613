"""Several servers on one repository: all change or none, whatever fails where."""

import json
import shutil
import socket

import pytest
from click.testing import CliRunner

from onetrunk.cli.deploy_head import deploy_head
from onetrunk.deploy import Deployer, rollout
from onetrunk.deploy import deployer as deployer_module
from onetrunk.deploy.artifacts import ReleaseArtifacts
from onetrunk.deploy.fleet import FleetError
from onetrunk.protocol.errors import NotReady, ServerError, UserError
from onetrunk.repository import artifacts
from onetrunk.repository.state import read_state
from tests.fixtures.fake_server import FakeServer
from tests.fixtures.stand_ins import stand_in

ADDRESSES = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
FAULTY = ADDRESSES[1]
# The calls of a deployment, in order: what is called, and how often it was called before.
PROVING = {
    "load": ("load head_mood", 0),
    "load the proof": ("load onetrunk_proof", 0),
    "ask the proof": ("ask onetrunk_proof", 0),
    "unload the proof": ("unload onetrunk_proof", 0),
    "ask what is live": ("ask multitask", 0),
}
SWITCHING = {
    "switch texts": ("load multitask", 0),
    "switch tokens": ("load multitask_tokens", 0),
    "ask texts again": ("ask multitask", 1),
    "ask tokens again": ("ask multitask_tokens", 0),
}


class Crash(BaseException):
    """Stands for a killed process: no handler for ordinary errors catches it."""


class FleetOfFakes:
    """Three servers on a repository, and how to deploy to them."""

    def __init__(self, repository, trunk):
        self.repository, self.trunk = repository, trunk
        self.servers = {address: FakeServer(address, repository) for address in ADDRESSES}

    def deployer(self, servers=None):
        return Deployer(self.repository, servers=servers or ",".join(ADDRESSES), trunk=self.trunk, admin_key="k")

    @property
    def faulty(self):
        return self.servers[FAULTY]

    def fail_at(self, call, act, address=FAULTY):
        """Do something on a server when a call comes to it."""
        what, before = call
        server = self.servers[address]

        def fault(server):
            if server.calls[-1] == what and server.calls.count(what) == before + 1:
                act(server)

        server.fault = fault

    def heal(self):
        for server in self.servers.values():
            server.fault = lambda server: None
            server.calls.clear()
            if server.is_down:
                server.restart()

    @property
    def pinned(self):
        """The versions of the head that the servers serve."""
        return {server.pins["head_mood"] for server in self.servers.values()}

    @property
    def served(self):
        """The version that the files say."""
        return read_state(self.repository).heads["mood"].served


@pytest.fixture
def fleet(repository, tiny_trunk_folder, monkeypatch):
    fakes = FleetOfFakes(repository, tiny_trunk_folder)
    monkeypatch.setattr(deployer_module, "AdminClient", lambda address, *rest, **options: fakes.servers[address])
    # The numbers of these servers are no answers of a head; that they are right is the proof's to find out.
    monkeypatch.setattr(ReleaseArtifacts, "expected", lambda self: {})
    monkeypatch.setattr(artifacts, "check_parity", lambda *args, **settings: {})
    return fakes


@pytest.fixture(scope="module")
def exported():
    return {}


@pytest.fixture
def new(bundle, exported, monkeypatch):
    """A bundle, which is exported once for all tests."""
    original = artifacts.export_head

    def export(*args):
        path = next(one for one in args if hasattr(one, "write_bytes"))
        if "head" not in exported:
            original(*args)
            exported["head"] = path.read_bytes()
        path.write_bytes(exported["head"])

    monkeypatch.setattr(artifacts, "export_head", export)
    return bundle()


def refuse(server):
    raise ServerError(f"{server.url}: refused")


def states(answers):
    return [answer.state for answer in answers]


def test_all_replicas_change_and_go_back(fleet, new):
    deployer = fleet.deployer()
    report = deployer.deploy(new)
    assert states(report.replicas) == ["done"] * 3
    assert list(report.replicas[0].seconds) == ["follow the files", "load", "prove", "switch", "ask again"]
    assert fleet.pinned == {2}
    assert deployer.verify() == []
    assert [replica.serves["mood"] for replica in deployer.replicas()] == [2, 2, 2]
    deployer.rollback("mood")
    assert fleet.pinned == {1}
    assert list(deployer.history.entries())[-2]["servers"] == list(ADDRESSES)
    deployer.remove("mood")
    assert all("head_mood" not in server.pins for server in fleet.servers.values())
    deployer.rollback("mood")
    deployer.prune(1)
    assert deployer.verify() == []


def test_nobody_switches_before_all_have_proved(fleet, new):
    seen = []
    for server in fleet.servers.values():
        server.fault = lambda server: seen.append((server.url, server.calls[-1]))
    fleet.deployer().deploy(new)
    last_proof = max(at for at, (_, call) in enumerate(seen) if call == "unload onetrunk_proof")
    first_switch = min(at for at, (_, call) in enumerate(seen) if call == "load multitask")
    assert last_proof < first_switch


@pytest.mark.parametrize("call", [*PROVING.values(), *SWITCHING.values()], ids=[*PROVING, *SWITCHING])
def test_a_refusal_takes_all_back(fleet, new, visible, call):
    before = visible(fleet.repository)
    fleet.fail_at(call, refuse)
    deployer = fleet.deployer()
    with pytest.raises(FleetError, match=r"1 of 3 replicas failed to .*refused; what was served before is served") as e:
        deployer.deploy(new)
    assert states(e.value.replicas) == ["back", "failed", "back"]
    assert e.value.replicas[1].reason.endswith(": refused")
    assert str(e.value).count(FAULTY) == 1
    assert fleet.pinned == {1}
    fleet.heal()
    assert deployer.verify() == []
    if call in PROVING.values():
        assert visible(fleet.repository) == before
    deployer.deploy(new)
    assert fleet.pinned == {2}


@pytest.mark.parametrize("call", PROVING.values(), ids=PROVING)
def test_a_replica_that_dies_while_it_proves_takes_all_back(fleet, new, call):
    fleet.fail_at(call, lambda server: server.die(returns=True))
    deployer = fleet.deployer()
    with pytest.raises(FleetError, match="no answer; what was served before is served again") as e:
        deployer.deploy(new)
    assert states(e.value.replicas) == ["back", "failed", "back"]
    assert fleet.pinned == {1}
    fleet.heal()
    assert deployer.verify() == []


@pytest.mark.parametrize("call", SWITCHING.values(), ids=SWITCHING)
def test_a_replica_that_dies_while_it_switches_comes_back_with_the_new_version(fleet, new, call):
    fleet.fail_at(call, lambda server: server.die(returns=True))
    deployer = fleet.deployer()
    assert states(deployer.deploy(new).replicas) == ["done"] * 3
    assert fleet.pinned == {2}
    assert deployer.verify() == []


@pytest.mark.parametrize("call", [*PROVING.values(), *SWITCHING.values()], ids=[*PROVING, *SWITCHING])
def test_a_replica_that_dies_for_good_takes_all_back_and_is_told_of(fleet, new, call):
    fleet.fail_at(call, lambda server: server.die(returns=False))
    deployer = fleet.deployer()
    with pytest.raises(FleetError, match=f"what {FAULTY} serves is not known: once it answers, run .*--sync") as e:
        deployer.deploy(new)
    assert states(e.value.replicas) == ["back", "unknown", "back"]
    assert fleet.served == 1
    assert {server.pins["head_mood"] for server in fleet.servers.values() if not server.is_down} == {1}
    (line,) = deployer.verify()
    assert line.startswith(f"{FAULTY}: no answer")
    with pytest.raises(FleetError, match="1 of 3 replicas failed to follow the files"):
        deployer.rollback("grade")
    fleet.heal()
    assert fleet.pinned == {1}
    deployer.sync()
    assert deployer.verify() == []


@pytest.mark.parametrize("call", [*PROVING.values(), *SWITCHING.values()], ids=[*PROVING, *SWITCHING])
def test_after_a_crash_of_the_deployer_the_next_run_ends_the_mixture(fleet, new, call, monkeypatch):
    """A dead process asks nobody anything more, and writes nothing."""
    crashed = []

    def crash(server):
        crashed.append(True)
        raise Crash

    def unless_crashed(original):
        def call(*args, **options):
            if crashed:
                raise Crash
            return original(*args, **options)

        return call

    fleet.fail_at(call, crash)
    for server in fleet.servers.values():
        server._called = unless_crashed(server._called)
    with monkeypatch.context() as patch:
        for owner, name in ((rollout, "commit_state"), (rollout, "Transaction")):
            patch.setattr(owner, name, unless_crashed(getattr(owner, name)))
        patch.setattr(deployer_module.History, "add", unless_crashed(deployer_module.History.add))
        with pytest.raises(Crash):
            fleet.deployer().deploy(new)
    crashed.clear()
    fleet.heal()
    assert fleet.served == (2 if call in SWITCHING.values() else 1)
    deployer = fleet.deployer()
    mixed = len(fleet.pinned) > 1 or fleet.pinned != {fleet.served}
    assert bool(deployer.verify()) >= mixed
    report = deployer.sync()
    assert report.settled[0].startswith("finished or took back deploy mood, which was cut off at ")
    assert fleet.pinned == {fleet.served}
    assert deployer.verify() == []
    assert not deployer.sync().changed


def test_a_replica_that_is_down_when_a_change_begins_ends_it_and_nobody_is_said_to_serve_the_change(fleet, new):
    fleet.faulty.is_down, fleet.faulty.returns = True, False
    with pytest.raises(FleetError, match=f"1 of 3 replicas failed to follow the files: {FAULTY}: no answer") as raised:
        fleet.deployer().deploy(new)
    assert states(raised.value.replicas) == ["back", "failed", "back"]
    assert fleet.served == 1
    with pytest.raises(FleetError) as raised:
        fleet.deployer().sync()
    assert states(raised.value.replicas) == ["done", "failed", "done"], "each follows the files by itself"


def test_replicas_that_the_next_run_does_not_name_are_told_of(fleet, new):
    deployer = fleet.deployer()
    deployer.history.add(action="deploy", task="mood", result="begun", servers=list(ADDRESSES))
    report = fleet.deployer(",".join(ADDRESSES[:2])).sync()
    assert f"was also for {ADDRESSES[2]}, not among --servers now" in report.settled[1]


def test_a_replica_that_comes_late_follows_the_others(fleet, new, monkeypatch):
    hosts = ["127.0.0.1", "127.0.0.2"]
    fleet.servers = {f"127.0.0.{n}:8001": FakeServer(f"127.0.0.{n}:8001", fleet.repository) for n in (1, 2, 3)}

    def resolve(host, port, **options):
        assert (host, port) == ("onetrunk-headless", 8001)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr("onetrunk.deploy.fleet.socket", stand_in(socket, getaddrinfo=resolve))
    fleet.fail_at(("load multitask", 0), lambda server: hosts.append("127.0.0.3"), "127.0.0.1:8001")
    report = fleet.deployer("dns:onetrunk-headless:8001").deploy(new)
    assert [answer.address for answer in report.replicas] == [f"127.0.0.{n}:8001" for n in (1, 2, 3)]
    assert states(report.replicas) == ["done"] * 3
    assert fleet.pinned == {2}


def test_a_replica_with_other_files_is_found_before_anything_is_switched(fleet, new, tmp_path):
    other = fleet.faulty
    other.repository = shutil.copytree(fleet.repository, tmp_path / "copy")
    fleet.fail_at(
        ("load head_mood", 0),
        lambda server: (
            shutil.copytree(fleet.repository, other.repository, dirs_exist_ok=True)
            and (other.repository / "head_mood/2/model.onnx").write_bytes(b"another head")
        ),
    )
    with pytest.raises(FleetError, match=f"{FAULTY}: it does not answer as the other replicas do"):
        fleet.deployer().deploy(new)
    assert fleet.served == 1


def test_the_command_shows_a_table_and_ends_with_1_if_replicas_differ(fleet, new):
    def run(*arguments):
        where = ["--repository", fleet.repository, "--servers", ",".join(ADDRESSES), "--trunk", fleet.trunk]
        return CliRunner().invoke(deploy_head, [*map(str, (*arguments, *where))], env={"ONETRUNK_ADMIN_KEY": "k"})

    done = run(new)
    assert done.exit_code == 0, done.output
    assert [line.split()[:2] for line in done.stdout.splitlines()[-3:]] == [[address, "done"] for address in ADDRESSES]
    assert run("--verify").exit_code == 0
    fleet.heal()
    fleet.fail_at(("load multitask", 0), refuse)
    failed = run("--rollback", "mood", "--json")
    assert failed.exit_code == 1
    assert [one["state"] for one in json.loads(failed.stdout)["replicas"]] == ["back", "failed", "back"]
    fleet.heal()
    fleet.faulty.versions["head_mood"] = {2}
    listed = run("--list")
    assert listed.exit_code == 1
    assert "head_mood version 1 is not loaded" in " ".join(listed.stdout.split())
    assert run("--list", "--json").exit_code == 1
    assert json.loads(run("--list", "--json").stdout)["replicas"][0]["serves"]["mood"] == 2
    assert run("--verify").exit_code == 1
    assert run("--sync").exit_code == 0
    assert run("--list").exit_code == 0


def drop_head(server):
    server.versions["head_mood"] = {2}


def go_down(server):
    server.is_down = True


def ask_for_a_key(server):
    def refuse(server):
        raise ServerError(f"{server.url}: this server asks for a key")

    server.fault = refuse


@pytest.mark.parametrize(
    ("happens", "arguments", "note", "serves"),
    [
        (None, None, "", 1),
        (None, ["--remove", "mood"], "the server at {} serves mood 1, the files say none: run deploy-head --sync", 1),
        (drop_head, None, "the server at {} differs from the files (head_mood version 1 is not loaded, and 1 more): "
         "run deploy-head --sync", 1),
        (go_down, None, "no server answers at {}; this is what the files say", None),
        (ask_for_a_key, None, "the server at {} does not say what it serves (this server asks for a key); this is what "
         "the files say", None),
    ],
)  # fmt: skip
def test_the_list_tells_where_the_single_server_differs(fleet, happens, arguments, note, serves):
    def run(*arguments):
        return CliRunner().invoke(deploy_head, [*arguments, "--repository", str(fleet.repository)])

    if arguments is not None:
        assert run("--offline", *arguments).exit_code == 0
    if happens is not None:
        happens(fleet.faulty)
    listed = run("--list", "--url", FAULTY)
    told = f"note: {note.format(FAULTY)}\n" if note else ""
    assert (listed.exit_code, listed.stderr) == (0, told)
    told_json = run("--list", "--json", "--url", FAULTY)
    assert told_json.stderr == told
    (mood,) = [row for row in json.loads(told_json.stdout) if row["task"] == "mood"]
    assert mood["serves"] == ({} if serves is None else {FAULTY: serves})


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ("", "not a host and a port"),
        ("a:8001,,b:8001", "not a host and a port"),
        ("a:8001,a:8001", "is given twice"),
        ("http://a:8001", "names a protocol"),
        ("dns:headless", "not a host and a port"),
        ("@nowhere.txt", "no such file"),
    ],
)
def test_mistaken_servers_are_one_line(repository, servers, message):
    with pytest.raises(UserError, match=message) as error:
        Deployer(repository, servers=servers)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("--servers ")


def test_servers_of_a_file_and_a_name_without_address(repository, tmp_path, monkeypatch):
    (tmp_path / "servers").write_text("# two\n127.0.0.1:1  # one\n\n127.0.0.1:2\n")
    with Deployer(repository, servers=f"@{tmp_path / 'servers'}", admin_key="k") as deployer:
        assert [replica.url for replica in deployer.fleet.replicas] == ["127.0.0.1:1", "127.0.0.1:2"]

    def nothing(*args, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("onetrunk.deploy.fleet.socket", stand_in(socket, getaddrinfo=nothing))
    with (
        Deployer(repository, servers="dns:nobody:8001", admin_key="k") as deployer,
        pytest.raises(NotReady, match="nobody has no address"),
    ):
        deployer.replicas()


def test_servers_and_offline_exclude_each_other(repository):
    for options, message in ((["--offline"], "--servers and --offline"), (["--url", "a:1"], "--servers and --url")):
        arguments = ["--list", "--servers", "a:1", "--repository", str(repository), *options]
        result = CliRunner().invoke(deploy_head, arguments)
        assert result.exit_code == 2
        assert message in result.stderr
