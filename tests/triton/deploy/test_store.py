"""From a build to a served answer by way of an object store: the commands of docs/stores.md, with a real Triton."""

import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from onetrunk.admin import AdminClient
from onetrunk.cli.build_repo import build_repo
from onetrunk.cli.deploy_head import deploy_head
from onetrunk.releases.cli import prune_releases, pull_repo
from onetrunk.releases.store import parse_store
from onetrunk.serving import Server
from onetrunk.serving.cli import find_repository
from tests.fixtures.releases import BUCKET, SECRET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "a-key"
STORE = f"s3://{BUCKET}/models/one"
ROWS = [("the film was very good", ""), ("who is it", "")]


def run(command, *arguments):
    done = CliRunner(env={"ONETRUNK_ADMIN_KEY": KEY}).invoke(command, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert SECRET not in done.output
    return done.output


def test_build_serve_and_deploy_by_way_of_a_store(
    s3_environment, tiny_heads, tiny_trunk_folder, bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    trunk = ("--trunk", tiny_trunk_folder)
    built = ("--heads", tiny_heads, "--tasks", "mood,topic", "--max-length", 32, *trunk)
    assert f"{STORE}: release " in run(build_repo, *built, "--output", STORE)

    console, local = Console(stderr=True), tmp_path / "served"
    served = find_repository(parse_store(STORE), local, None, console)
    with (
        Server(served, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY) as server,
        AdminClient(server.grpc_url, KEY) as client,
    ):

        def answer():
            return client.ask("multitask", ROWS, ["mood"])["mood"].round(4).tolist()

        def follow_the_store():
            run(pull_repo, STORE, local)
            run(deploy_head, "--sync", "--repository", local, "--url", server.grpc_url)

        first = answer()
        run(deploy_head, bundle(), "--repository", STORE, *trunk)
        assert answer() == first, "a server that runs does not look at the store"
        follow_the_store()
        second = answer()
        assert second != first
        run(deploy_head, "--rollback", "mood", "--repository", STORE)
        follow_the_store()
        assert answer() == first
        assert "agree" in run(deploy_head, "--verify", "--repository", local, "--url", server.grpc_url)
    kept = json.loads(run(prune_releases, STORE, "--keep", 1, "--json"))["kept"]
    assert len(kept) == 3, "what was written within the last day stays"
