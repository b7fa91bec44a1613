"""The benchmark's peers, as far as they can be tested without their packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.peer import PREPARED
from benchmarks.peers.peers import PEERS, REGRESSIONS, TASKS, Peer, PeerError, running_peer

ONE = PEERS["fastapi"]
INFINITY = PEERS["infinity-torch"]
# A server that speaks the protocol of serve_fastapi.py and knows one task; its arguments are --models M --port N ...
FAKE_SERVER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [{"label": "label_1", "score": 0.75}, {"label": "label_0", "score": 0.25}]
        answer = dict.fromkeys(asked["tasks"], scores)
        body = json.dumps(answer).encode()
        self.send_response(STATUS)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("127.0.0.1", int(sys.argv[4])), Handler).serve_forever()
"""
PREPARATION = """
import pathlib, sys
models = pathlib.Path(sys.argv[1])
# Fails where something is left of an earlier one.
(models / ".onnx").mkdir()
sys.exit((models / "fail").exists())
"""


def bodies(peer: Peer, *answers: object) -> dict[str, list[float]]:
    return peer.check([json.dumps(answer).encode() for answer in answers])


def test_the_eight_tasks_have_one_regression() -> None:
    assert len(TASKS) == 8
    assert {"stsb"} == REGRESSIONS


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_command_runs_a_script_that_is_there(peer: Peer) -> None:
    python, script, *rest = peer.command(Path("/venv/bin/python"), Path("/models"), 1234, 2)
    assert python == "/venv/bin/python"
    assert Path(script).is_file()
    assert rest[:6] == ["--models", "/models", "--port", "1234", "--threads", "2"]


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_nothing_calls_home_and_threads_are_said(peer: Peer) -> None:
    environment = peer.environment(3)
    assert environment["DO_NOT_TRACK"] == environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["OMP_NUM_THREADS"] == "3"


def test_only_a_peer_on_onnx_files_is_prepared_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola/config.json").touch()
    python = Path("python")
    assert not PEERS["infinity-torch"].preparation(python, tmp_path, 2)
    export, optimize = PEERS["infinity-optimum"].preparation(python, tmp_path, 2)
    assert Path(export[1]).is_file()
    assert optimize[-1] == "--preload-only"
    (tmp_path / ".onnx/cola").mkdir(parents=True)
    (tmp_path / ".onnx/cola/model_optimized.onnx").touch()
    # It may be half a file still.
    assert PEERS["infinity-optimum"].preparation(python, tmp_path, 2)
    (tmp_path / PREPARED).touch()
    assert not PEERS["infinity-optimum"].preparation(python, tmp_path, 2)


def test_one_request_asks_for_all_tasks() -> None:
    (request,) = ONE.requests("Ein schöner Film.", None, ["cola", "stsb"])
    assert request.path == "/predict"
    assert json.loads(request.body) == {"text": "Ein schöner Film.", "text_pair": None, "tasks": ["cola", "stsb"]}


def test_infinity_is_asked_task_by_task() -> None:
    cola, stsb = INFINITY.requests("A film.", None, ["cola", "stsb"])
    assert (cola.path, json.loads(cola.body)) == ("/classify", {"model": "cola", "input": ["A film."]})
    assert stsb.path == "/rerank"
    assert json.loads(stsb.body) == {"model": "stsb", "query": "A film.", "documents": [""], "raw_scores": True}


def test_infinity_gets_a_pair_as_one_text_or_as_a_document() -> None:
    mnli, stsb = INFINITY.requests("A film.", "A play.", ["mnli", "stsb"])
    assert json.loads(mnli.body)["input"] == ["A film. [SEP] A play."]
    assert json.loads(stsb.body)["documents"] == ["A play."]


def test_scores_are_read_in_the_order_of_the_outputs() -> None:
    scores = [
        {"label": "label_2", "score": 0.5},
        {"label": "label_0", "score": 0.3},
        {"label": "label_1", "score": 0.2},
    ]
    assert bodies(ONE, {"mnli": scores, "stsb": [{"label": "label_0", "score": -1.5}]}) == {
        "mnli": [0.3, 0.2, 0.5],
        "stsb": [-1.5],
    }
    assert bodies(
        INFINITY,
        {"object": "classify", "model": "mnli", "data": [scores]},
        {"object": "rerank", "model": "stsb", "results": [{"relevance_score": -1.5, "index": 0}]},
    ) == {"mnli": [0.3, 0.2, 0.5], "stsb": [-1.5]}


@pytest.mark.parametrize(
    ("peer", "body"),
    [
        (ONE, b"Internal Server Error"),
        (ONE, b'{"detail": "no such tasks"}'),
        (ONE, b'{"cola": [{"label": "label_1", "score": 0.5}]}'),
        (INFINITY, b'{"error": {"message": "Invalid model", "code": 400}}'),
        (INFINITY, b'{"object": "classify", "model": "cola", "data": []}'),
    ],
)
def test_what_is_no_answer_is_refused(peer: Peer, body: bytes) -> None:
    with pytest.raises(ValueError, match=f"{peer.name} answered"):
        peer.check([body])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder that looks like one checkpoint."""
    (tmp_path / "models/cola").mkdir(parents=True)
    (tmp_path / "models/cola/config.json").touch()
    return tmp_path / "models"


def fake(folder: Path, source: str) -> Peer:
    (folder / "serve.py").write_text(source)
    return Peer("fake", str(folder / "serve.py"))


def test_a_running_peer_answers_is_measured_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    peer = fake(tmp_path, FAKE_SERVER.replace("STATUS", "200"))
    with running_peer(peer, Path(sys.executable), models, 1) as running:
        assert running.ask("A film.") == {"cola": [0.25, 0.75]}
        assert running.rss_bytes() > 2**20
        (process,) = running.processes()
    assert not process.is_running()
    assert running.rss_bytes() == 0


def test_a_peer_that_ends_says_why(models: Path, tmp_path: Path) -> None:
    peer = fake(tmp_path, "raise SystemExit('no memory left')")
    with pytest.raises(PeerError, match="no memory left"), running_peer(peer, Path(sys.executable), models, 1):
        pass


def test_a_peer_that_refuses_the_request_is_not_waited_for(models: Path, tmp_path: Path) -> None:
    peer = fake(tmp_path, FAKE_SERVER.replace("STATUS", "422"))
    with pytest.raises(PeerError, match="answered 422"), running_peer(peer, Path(sys.executable), models, 1):
        pass


class Prepared(Peer):
    """Prepared by a command that writes a file and then fails where the file ``fail`` is there."""

    def preparation(self, python: Path, models: Path, threads: int) -> list[list[str]]:
        if (models / PREPARED).exists():
            return []
        return [[str(python), "-c", PREPARATION, str(models)]]


def test_a_preparation_that_ended_early_starts_anew(models: Path, tmp_path: Path) -> None:
    peer = Prepared("fake", str(fake(tmp_path, FAKE_SERVER.replace("STATUS", "200")).script))
    (models / "fail").touch()
    with pytest.raises(PeerError, match="failed"), running_peer(peer, Path(sys.executable), models, 1):
        pass
    assert not (models / PREPARED).exists()
    (models / "fail").unlink()
    with running_peer(peer, Path(sys.executable), models, 1):
        assert (models / PREPARED).is_file()


def test_a_python_that_is_not_there_is_named(models: Path) -> None:
    with pytest.raises(PeerError, match="/nowhere/python"), running_peer(ONE, Path("/nowhere/python"), models, 1):
        pass


def test_a_peer_ends_with_its_user_however_that_ends(models: Path, tmp_path: Path) -> None:
    fake(tmp_path, FAKE_SERVER.replace("STATUS", "200"))
    source = f"""
import sys, time
from pathlib import Path
from benchmarks.peers.peers import Peer, running_peer
peer = Peer("fake", {str(tmp_path / "serve.py")!r})
with running_peer(peer, Path(sys.executable), Path({str(models)!r}), 1) as running:
    print(running.pid, flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", source], cwd=root, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        server = psutil.Process(int(user.stdout.readline()))
        user.kill()
    server.wait(60)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no checkpoints"), running_peer(ONE, Path(sys.executable), tmp_path, 1):
        pass
