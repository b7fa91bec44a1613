"""Two real servers on one folder: a head goes to both, although one dies, and back; a candidate answers for both."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from onetrunk.admin import AdminClient
from onetrunk.deploy import Deployer
from onetrunk.deploy.rollout import Rollout
from onetrunk.protocol.traffic_split import TrafficSplit
from onetrunk.serving import Server

# Both are started, and one of them again, on a machine that may have much else to do.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KEY = "a-key"
ROWS = [("the film was very good", ""), ("who is it", "")]


@pytest.fixture
def servers(repository):
    made = [Server(repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY) for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Server.__enter__, made))
        yield made
    finally:
        for server in made:
            server.stop()


def test_a_head_goes_to_both_servers_although_one_dies(servers, repository, tiny_trunk_folder, bundle, monkeypatch):
    addresses = [server.grpc_url for server in servers]
    victim = servers[1]

    def answers():
        found = []
        for address in addresses:
            with AdminClient(address, KEY) as client:
                client.wait_until_back(60)
                found.append(client.ask("multitask", ROWS, ["mood"])["mood"].round(4).tobytes())
        return found

    def die_in(name):
        """Kill one server's Triton when a step begins on it, once."""
        original, killed = getattr(Rollout, name), []

        def step(rollout, server, *rest):
            if server.url == victim.grpc_url and not killed:
                killed.append(victim.pid)
                os.kill(victim.pid, signal.SIGKILL)
            return original(rollout, server, *rest)

        monkeypatch.setattr(Rollout, name, step)

    before = answers()
    assert before[0] == before[1]
    with Deployer(repository, servers=",".join(addresses), trunk=tiny_trunk_folder, admin_key=KEY) as deployer:
        with monkeypatch.context() as monkeypatch:
            die_in("_ask_again")
            report = deployer.deploy(bundle())
        assert [one.state for one in report.replicas] == ["done", "done"]
        after = answers()
        assert after[0] == after[1] != before[0]
        assert [one.serves["mood"] for one in deployer.replicas()] == [report.to_version] * 2
        deployer.rollback("mood")
        assert answers() == before
        assert deployer.verify() == []
        # On a machine with much to do, a candidate may be slow without a fault.
        deployer.candidate(bundle(), TrafficSplit(share=1.0, errors=1.0, latency=None))
        deadline = time.monotonic() + 120
        while answers() != after:  # the fronts read the share within ten seconds
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (trials,) = [row.trials for row in deployer.tasks() if row.trials]
        assert sorted(trials) == sorted(addresses)
        # A Triton that starts loads no candidate by itself: its front has it follow the files, without --sync.
        os.kill(victim.pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while found := deployer.verify():
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        deployer.discard()
        assert answers() == before
        assert deployer.verify() == []
