"""Bundles out of a hub and a registry, and into a hub: without the network, and with a real MLflow where it is."""

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from onetrunk.cli.hub import pull_head
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.bundle_source import find_bundle, pull_bundle, push_bundle
from onetrunk.protocol.errors import OneTrunkError, UserError
from tests.fixtures.limbs import random_head_on, random_limb
from tests.fixtures.ports import free_port

COMMIT = "c" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_heads):
    """A hub with one bundle, whose client keeps files as links, as the real one does. Notes what was asked."""
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        if repository != "me/mood":
            raise OSError("404 Client Error\nand more")
        snapshot, blobs = tmp_path / "hub" / "snapshots" / COMMIT, tmp_path / "hub" / "blobs"
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)
        snapshot.mkdir(parents=True)
        shutil.copytree(tiny_heads / "mood", blobs)
        for name in allow_patterns:
            (snapshot / name).symlink_to(blobs / name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_bundle_of_a_hub_is_the_bundle(hub, cache, tiny_heads, tmp_path):
    found = find_bundle("hf:me/mood@main")
    assert load_bundle(found.folder, any_folder=True).spec == load_bundle(tiny_heads / "mood").spec
    assert found.about == {"source": f"hf:me/mood@{COMMIT}", "asked": "hf:me/mood@main"}
    assert hub == [("me/mood", "main")]
    target = pull_bundle("hf:me/mood", tmp_path / "heads")
    assert target == tmp_path / "heads" / "mood"
    assert load_bundle(target).spec.task == "mood"
    assert pull_bundle("hf:me/mood", tmp_path / "heads") == target  # again, over the old one
    assert sorted(path.name for path in (tmp_path / "heads").iterdir()) == ["mood"]


def test_a_head_on_a_limb_is_pulled_with_a_note(tiny_trunk, tmp_path):
    limb = random_limb(tiny_trunk, tmp_path / "limbs" / "pairs", tap=1)
    random_head_on(limb, tiny_trunk, tmp_path / "given", "urgent")
    result = CliRunner().invoke(pull_head, [str(tmp_path / "given" / "urgent"), "--heads", str(tmp_path / "heads")])
    assert result.exit_code == 0, result.output
    note = f"note: it stands on limb {limb.identity}: get that, too, as pairs in the folder --limbs"
    assert result.stderr.splitlines() == [note]


def test_what_is_no_bundle_is_not_replaced_by_one(hub, cache, tmp_path):
    (tmp_path / "heads" / "mood").mkdir(parents=True)
    (tmp_path / "heads" / "mood" / "head.toml").write_text("mine")
    with pytest.raises(UserError, match=r"mood is in the way: it has no head.json"):
        pull_bundle("hf:me/mood", tmp_path / "heads")
    assert (tmp_path / "heads" / "mood" / "head.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("me/urgent", "^me/urgent: no such folder; a repository of a hub is hf:me/urgent$"),
        ("hf:mood", "give hf:OWNER/NAME"),
        ("hf:../../x", "give hf:OWNER/NAME"),
        ("models:/mood", "give models:/NAME@ALIAS"),
        ("models:/../x@a", "give models:/NAME@ALIAS"),
    ],
)
def test_texts_that_name_nothing_are_refused(source, why):
    with pytest.raises(UserError, match=why):
        find_bundle(source)


def test_a_push_of_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UserError, match="heads/nope: no such folder; give the folder of a head"):
        push_bundle(tmp_path / "heads" / "nope", "hf:me/x")


def test_what_a_hub_does_not_have_is_told_in_one_line(hub, cache):
    with pytest.raises(OneTrunkError, match=r"^hf:me/other: the hub did not do it: 404 Client Error$"):
        find_bundle("hf:me/other")


def test_a_push_is_one_commit_with_card_weights_and_trunk(monkeypatch, tiny_heads, tiny_trunk):
    calls = []

    class Api:
        def create_repo(self, repository, *, private, exist_ok):
            calls.append(("repo", repository, private, exist_ok))

        def create_commit(self, repository, *, operations, commit_message):
            calls.append({one.path_in_repo: one.path_or_fileobj for one in operations})
            return type("Commit", (), {"commit_url": f"https://hub/{repository}/commit/1"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_bundle(tiny_heads / "mood", "hf:me/mood", private=True) == "https://hub/me/mood/commit/1"
    assert calls[0] == ("repo", "me/mood", True, True)
    assert set(calls[1]) == {"README.md", "head.json", "head.safetensors"}
    card = calls[1]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: onetrunk\ntags: [onetrunk, classification]\n")
    assert f'trunk: "{tiny_trunk.identity}"' in card
    assert "# Head `mood`" in card
    with pytest.raises(UserError, match="leave @v1 out"):
        push_bundle(tiny_heads / "mood", "hf:me/mood@v1")
    with pytest.raises(UserError, match=r"no such folder|head\.json"):
        push_bundle(tiny_heads / "nothing", "hf:me/mood")


class Faults(dict):
    """Path -> what a registry does with a request for it, in place of what it should; and the requests it has seen."""

    seen: list


ALIAS = "/api/2.0/mlflow/registered-models/alias?name=mood&alias=champion"
FILES = "/api/2.0/mlflow-artifacts/artifacts/1/r1/artifacts/head/"


@pytest.fixture
def registry(monkeypatch, tiny_heads, cache):
    """What answers as an MLflow server does: mood@champion is version 3."""
    seen, faults = [], Faults()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path in faults:
                return faults[self.path](self)
            seen.append((self.path, self.headers.get("Authorization")))
            parts = urlsplit(self.path)
            query = {name: value[0] for name, value in parse_qs(parts.query).items()}
            api, version = "/api/2.0/mlflow", {"name": "mood", "version": "3", "user_id": "ada", "run_id": "r1"}
            files = "/api/2.0/mlflow-artifacts/artifacts/1/r1/artifacts/head/"
            if parts.path == f"{api}/registered-models/alias" and query["alias"] == "champion":
                return self.answer(json.dumps({"model_version": version}).encode())
            if parts.path == f"{api}/registered-models/alias" and query["alias"] == "moved":
                return self.answer(b"", 302, Location="http://127.0.0.1:9/stolen")
            if parts.path == f"{api}/model-versions/get-download-uri":
                return self.answer(json.dumps({"artifact_uri": "mlflow-artifacts:/1/r1/artifacts/head"}).encode())
            name = parts.path.removeprefix(files)
            if parts.path.startswith(files) and (tiny_heads / "mood" / name).exists():
                return self.answer((tiny_heads / "mood" / name).read_bytes())
            return self.answer(b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}', 404)

        def answer(self, body, status=200, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "geheim")
    faults.seen = seen
    yield faults
    server.shutdown()
    server.server_close()


def test_what_an_alias_names_is_fetched_and_who_registered_it_is_known(registry, tiny_heads):
    found = find_bundle("models:/mood@champion")
    assert load_bundle(found.folder, any_folder=True).spec == load_bundle(tiny_heads / "mood").spec
    assert found.about == {
        "source": "models:/mood/3",
        "asked": "models:/mood@champion",
        "registered_by": "ada",
        "run": "r1",
    }
    assert {token for _, token in registry.seen} == {"Bearer geheim"}
    with pytest.raises(UserError, match="the registry has no name mood, alias other"):
        find_bundle("models:/mood@other")


def test_a_model_that_was_registered_anew_is_fetched_anew(registry):
    """MLflow counts versions of a name from 1 again once the model was deleted."""
    first = find_bundle("models:/mood@champion").folder
    fetched = len(registry.seen)
    assert find_bundle("models:/mood@champion").folder == first
    assert len(registry.seen) == fetched + 1, "only what the alias names was asked"
    version = {"name": "mood", "version": "3", "user_id": "ada", "run_id": "r2"}
    registry[ALIAS] = lambda request: request.answer(json.dumps({"model_version": version}).encode())
    assert find_bundle("models:/mood@champion").folder != first


@pytest.mark.hostile
def test_a_token_follows_no_redirect_and_is_in_no_message(registry, monkeypatch):
    with pytest.raises(OneTrunkError, match="status 302") as caught:
        find_bundle("models:/mood@moved")
    assert "geheim" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:geheim@127.0.0.1:1")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME") as caught:
        find_bundle("models:/mood@champion")
    assert "geheim" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(OneTrunkError, match="does not answer"):
        find_bundle("models:/mood@champion")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="needs MLFLOW_TRACKING_URI"):
        find_bundle("models:/mood@champion")


@pytest.mark.hostile
def test_a_file_that_is_cut_off_or_broken_is_told_and_not_kept(registry, tiny_heads, cache):
    content = (tiny_heads / "mood" / "head.safetensors").read_bytes()

    def cut_off(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:100])

    registry[FILES + "head.safetensors"] = cut_off
    with pytest.raises(OneTrunkError, match=f"head.safetensors was not received: .*100 of {len(content):,} bytes"):
        find_bundle("models:/mood@champion")
    registry[FILES + "head.safetensors"] = lambda request: request.answer(content[:-1])
    with pytest.raises(UserError, match=r"^models:/mood@champion/head.safetensors"):
        find_bundle("models:/mood@champion")
    registry.clear()
    found = find_bundle("models:/mood@champion").folder
    (found / "head.safetensors").write_bytes(content[:7])  # as after a power cut
    assert load_bundle(find_bundle("models:/mood@champion").folder, any_folder=True).spec.task == "mood"


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"[" * 100_000, "does not answer"),
        (b"[]", "the answer is no object"),
        (b'{"model_version": {"version": "../../x"}}', "has no version"),
        (b"x" * (4 * 2**20 + 1), "it is larger than 4,194,304 bytes"),
    ],
)
def test_answers_of_a_registry_that_are_none_are_refused(registry, answer, why):
    registry[ALIAS] = lambda request: request.answer(answer)
    with pytest.raises(OneTrunkError, match=why):
        find_bundle("models:/mood@champion")


@pytest.mark.hostile
def test_what_a_registry_tells_commands_no_terminal_and_its_time_may_be_none(registry):
    version = {"version": "3", "user_id": "\x1b[2Jada\nroot", "last_updated_timestamp": 10**30}
    registry[ALIAS] = lambda request: request.answer(json.dumps({"model_version": version}).encode())
    assert find_bundle("models:/mood@champion").about["registered_by"] == "?[2Jada root"
    assert "changed" not in find_bundle("models:/mood@champion").about
    registry[ALIAS] = lambda request: request.wfile.write(b"\x1b[2J this is no HTTP\r\n\r\n")
    with pytest.raises(OneTrunkError, match="does not answer"):
        find_bundle("models:/mood@champion")


@pytest.mark.hostile
def test_a_hub_that_names_no_commit_is_refused(monkeypatch, cache, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "snapshots" / ".."))
    with pytest.raises(OneTrunkError, match=r"named the commit '\.\.', which is none"):
        find_bundle("hf:me/mood")


def test_the_log_of_a_deployment_tells_the_version_and_who_registered_it(
    registry, repository, tiny_trunk_folder, tiny_heads, bundle, log_of, monkeypatch
):
    from click.testing import CliRunner

    from onetrunk.cli.deploy_head import deploy_head

    other = bundle()  # what is served is another version of mood, so that there is something to deploy
    local = ["--repository", str(repository), "--offline", "--trunk", str(tiny_trunk_folder)]
    assert CliRunner().invoke(deploy_head, [str(other), *local]).exit_code == 0
    done = CliRunner().invoke(deploy_head, ["models:/mood@champion", *local])
    assert done.exit_code == 0, done.output
    where = log_of(repository)[-1]["from_where"]
    assert (where["source"], where["registered_by"]) == ("models:/mood/3", "ada")
    shown = CliRunner().invoke(deploy_head, ["--log", "--repository", str(repository), "--offline"]).output
    assert "asked models:/mood@champion, registered_by ada" in shown


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_mlflow_server(monkeypatch, cache, tiny_heads, tmp_path):
    """Registered by its REST API, as its client does it: run, files, model, version, alias."""
    program = os.environ.get("ONETRUNK_MLFLOW") or shutil.which("mlflow")
    if program is None:
        pytest.skip("there is no program mlflow; ONETRUNK_MLFLOW names one")
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        options = [
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/mlflow.db",
            "--artifacts-destination",
            tmp_path / "files",
        ]
        process = subprocess.Popen(
            [program, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *map(str, options)],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 400
        while not _healthy(url):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.5)

        def post(what, **body):
            data = json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/api/2.0/mlflow/{what}", data, headers)
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.loads(response.read())

        run = post("runs/create", experiment_id="0", user_id="ada")["run"]["info"]
        path = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for file in (tiny_heads / "mood").iterdir():
            place = f"{url}/api/2.0/mlflow-artifacts/artifacts/{path}/head/{file.name}"
            put = urllib.request.Request(place, file.read_bytes(), {"Content-Type": "application/octet-stream"})
            put.method = "PUT"
            urllib.request.urlopen(put, timeout=120).close()
        post("registered-models/create", name="mood")
        source = f"{run['artifact_uri']}/head"
        post("model-versions/create", name="mood", source=source, run_id=run["run_id"])
        request = urllib.request.Request(
            f"{url}/api/2.0/mlflow/registered-models/alias",
            json.dumps({"name": "mood", "alias": "champion", "version": "1"}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=120).close()

        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = find_bundle("models:/mood@champion")
        assert load_bundle(found.folder, any_folder=True).spec == load_bundle(tiny_heads / "mood").spec
        assert found.about["source"] == "models:/mood/1"
        assert find_bundle("models:/mood/1").folder == found.folder
        with pytest.raises(UserError, match="the registry has no name mood, alias other"):
            find_bundle("models:/mood@other")
    finally:
        with suppress(ProcessLookupError):  # it has ended, as its log tells
            os.killpg(process.pid, 15)
        process.wait(60)


def _healthy(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as response:
            return response.status == 200
    except OSError:
        return False
