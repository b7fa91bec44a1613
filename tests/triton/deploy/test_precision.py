"""A head deployed into a running server of int8: proved by its own files."""

import pytest

from onetrunk.admin import AdminClient
from onetrunk.deploy import Deployer
from onetrunk.deploy.artifacts import ReleaseArtifacts
from onetrunk.deploy.proof import ProofError, smoke_rows
from onetrunk.serving import Server

KEY = "a-key"


@pytest.mark.slow
def test_running_server_takes_it_and_a_wrong_one_not(int8_repository, tiny_trunk_folder, bundle, monkeypatch):
    server = Server(int8_repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY, probe_interval_s=None)
    with (
        server as running,
        Deployer(int8_repository, url=running.grpc_url, trunk=tiny_trunk_folder, admin_key=KEY) as deployer,
        AdminClient(running.grpc_url) as client,
    ):
        before = client.ask("multitask", smoke_rows(), ["mood"])["mood"]
        assert deployer.deploy(bundle(shift=-3.0)).to_version == 2
        assert abs(client.ask("multitask", smoke_rows(), ["mood"])["mood"] - before).max() > 0.1
        real = ReleaseArtifacts.expected
        monkeypatch.setattr(
            ReleaseArtifacts, "expected", lambda made: {name: s + 0.2 for name, s in real(made).items()}
        )
        with pytest.raises(ProofError, match="allowed is 2e-02"):
            deployer.deploy(bundle(shift=3.0))
        assert deployer.verify() == []
