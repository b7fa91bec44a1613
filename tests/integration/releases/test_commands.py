"""deploy-head and serve-repo on a store: what is deployed is a new release, and a failed command publishes nothing."""

import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from onetrunk.cli.deploy_head import deploy_head
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.integrity import check_files
from onetrunk.protocol.manifest import read_manifest
from onetrunk.protocol.names import ENSEMBLES
from onetrunk.releases.release import publish, pull, read_pointer
from onetrunk.releases.store import open_store, parse_store
from onetrunk.serving.cli import find_repository


@pytest.fixture
def published(repository, tmp_path, monkeypatch):
    """A store in a folder whose release is the tiny repository."""
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    store = open_store(parse_store(f"file://{tmp_path / 'store'}"))
    publish(repository, store)
    return store


def deploy(store, *arguments):
    return CliRunner().invoke(deploy_head, [*map(str, arguments), "--repository", str(store.url)])


def test_a_deployment_is_a_release_and_what_fails_is_none(
    published, bundle, tiny_trunk_folder, tmp_path, repository, visible
):
    before = read_pointer(published)
    trunk = ("--trunk", tiny_trunk_folder)
    refused = deploy(published, bundle(labels=("bad", "good", "other")), *trunk)
    assert refused.exit_code != 0
    dry = deploy(published, bundle(), *trunk, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert read_pointer(published) == before

    done = deploy(published, bundle(), *trunk)
    assert done.exit_code == 0, done.output
    release = read_pointer(published).pointer.release
    assert f"{published.url}: release {release[:12]} is current; sent " in done.output
    pull(published, served := tmp_path / "served")
    check_files(served, ENSEMBLES)
    assert read_manifest(served).models["head_mood"].served == 2
    log = deploy(published, "--log", "--json")
    assert [entry["result"] for entry in json.loads(log.output)] == ["begun", "done"]

    back = deploy(published, "--rollback", "mood")
    assert back.exit_code == 0, back.output
    pull(published, served)
    assert read_manifest(served).models["head_mood"].served == 1
    unchanged = read_pointer(published)
    assert deploy(published, "--list").exit_code == 0
    assert read_pointer(published) == unchanged
    assert visible(repository)  # the source was only read


@pytest.mark.parametrize(
    "arguments", [["--sync"], ["--compare", "texts.jsonl"], ["--remove", "mood", "--url", "127.0.0.1:8001"]]
)
def test_what_asks_a_server_is_refused(published, arguments):
    done = deploy(published, *arguments)
    assert done.exit_code == 2
    assert f"pull-repo {published.url} FOLDER, then deploy-head --sync" in done.output


def test_a_folder_is_served_where_it_is_and_a_store_can_be_served_from_a_copy(published, tmp_path):
    console = Console(stderr=True)
    release = read_pointer(published).pointer.release
    folder = published.folder / "releases" / release
    assert find_repository(published.url, None, None, console) == folder
    check_files(folder, ENSEMBLES)
    assert find_repository(published.url, tmp_path / "local", None, console) == tmp_path / "local"
    check_files(tmp_path / "local", ENSEMBLES)
    with pytest.raises(UserError, match="another serve-repo serves from it: end that one, or give another by --local"):
        find_repository(published.url, tmp_path / "local", None, console)
    assert find_repository(tmp_path, None, None, console) == tmp_path
    with pytest.raises(UserError, match="--local is for an object store"):
        find_repository(tmp_path, tmp_path / "local", None, console)
