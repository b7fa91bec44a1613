"""Deployments on a running server: what clients get before, during and after, and what happens when something dies."""

import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import psutil
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from onetrunk.admin import AdminClient
from onetrunk.deploy import Deployer, proof
from onetrunk.deploy import change as change_module
from onetrunk.deploy.artifacts import reference_answers
from onetrunk.deploy.proof import ProofError
from onetrunk.deploy.rollout import Rollout
from onetrunk.export.onnx_file import ServedHead
from onetrunk.export.parity import HeadFile
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import NotReady, OneTrunkError, UserError
from onetrunk.releases.release import publish, pull
from onetrunk.releases.store import open_store, parse_store
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from tests.fixtures.stand_ins import stand_in

pytestmark = pytest.mark.slow

KEY = "a-key"
ROWS = [
    ("the film was very good", ""),
    ("turn the light off", "turn it on"),
    ("who is it", "what music is it"),
    ("a", ""),
]


@pytest.fixture(scope="module")
def served_folder(tiny_repository, tmp_path_factory):
    """The folder that all tests of this module share: a copy of the tiny repository."""
    return shutil.copytree(tiny_repository, tmp_path_factory.mktemp("live") / "repository")


@pytest.fixture(scope="module")
def server(served_folder):
    """A real Triton on it. Starting one takes longer than most of these tests."""
    with Server(
        served_folder, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY, probe_interval_s=None
    ) as running:
        yield running


@pytest.fixture
def repository(served_folder, tiny_repository):
    """The shared folder, with the files that it had at first."""
    restore(served_folder, tiny_repository)
    return served_folder


def restore(folder, original):
    """Make a folder's files equal to those of another. Byte code stays: Triton writes it once, when it starts."""
    for path in sorted(folder.rglob("*")):
        is_byte_code = "__pycache__" in (path.name, path.parent.name)
        if path.exists() and not is_byte_code and not (original / path.relative_to(folder)).exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for source in sorted(original.rglob("*")):
        target = folder / source.relative_to(original)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif not (target.exists() and filecmp.cmp(source, target, shallow=False)):
            # A new time of change, by which Triton sees that a file is another one.
            shutil.copyfile(source, target)


@pytest.fixture
def live(server, repository, tiny_trunk_folder):
    """A deployer on it, and the server serves what the files say."""
    with Deployer(repository, url=server.grpc_url, trunk=tiny_trunk_folder, admin_key=KEY) as deployer:
        deployer.sync()
        assert deployer.verify() == []
        yield deployer


@pytest.fixture
def ask(server):
    """Asks the ensemble of all tasks, or another one, about ROWS."""
    with AdminClient(server.grpc_url) as client:

        def ask(*outputs, ensemble="multitask", rows=ROWS):
            return client.ask(ensemble, rows, outputs)

        yield ask


@pytest.fixture
def reference(tiny_trunk):
    """What a bundle must answer about ROWS, by torch."""

    def answers(folder):
        bundle = load_bundle(folder, any_folder=True)
        module = ServedHead(bundle.head(tiny_trunk), bundle.spec)
        return reference_answers(tiny_trunk, HeadFile("", folder, bundle.spec, module), ROWS, 32)

    return answers


def near(found, expected):
    return found.shape == expected.shape and float(np.abs(found - expected).max()) < 1e-4


def test_the_whole_life_of_a_head(live, ask, bundle, reference, tiny_heads):
    others = ("grade", "match", "topic")
    before = ask(*others)

    def rest_is_bit_equal():
        return all(np.array_equal(scores, before[task]) for task, scores in ask(*others).items())

    old, new = reference(tiny_heads / "mood"), bundle(shift=1.5)
    assert near(ask("mood")["mood"], old)
    live.deploy(new)
    assert near(ask("mood")["mood"], reference(new))
    assert rest_is_bit_equal()
    live.rollback("mood")
    assert near(ask("mood")["mood"], old)
    assert rest_is_bit_equal()
    tried = bundle(shift=-2.0, folder="mood_new", tap=2, layers=2)
    live.candidate(tried)
    assert near(ask("mood")["mood"], old)
    both = ask("mood", "mood_candidate", ensemble="candidate_mood")
    assert near(both["mood"], old)
    assert near(both["mood_candidate"], reference(tried))
    live.promote()
    assert near(ask("mood")["mood"], reference(tried))
    with pytest.raises(OneTrunkError):
        ask("mood", ensemble="candidate_mood")
    live.remove("mood")
    with pytest.raises(OneTrunkError, match="mood"):
        ask("mood")
    live.rollback("mood")
    assert near(ask("mood")["mood"], reference(tried))
    added = bundle(shift=0.5, task="urgent", like="topic")
    live.deploy(added)
    assert near(ask("urgent")["urgent"], reference(added))
    live.prune(1)
    assert live.verify() == []
    for task, scores in ask(*others).items():
        assert near(scores, before[task]), "the trunk was cut anew, so not to the last bit"


def test_candidate_on_a_tap_of_its_own_and_a_proof_that_was_left_behind(live, repository, ask, bundle, reference):
    before = ask("grade", "match", "mood", "topic")
    for task in ("topic", "grade", "mood"):
        live.remove(task)
    for tap in (0, 3):
        tried = bundle(task=f"deep{tap}", tap=tap, layers=1)
        live.candidate(tried)
        found = ask(f"deep{tap}_candidate", ensemble=f"candidate_deep{tap}")
        assert near(found[f"deep{tap}_candidate"], reference(tried))
        assert near(ask("match")["match"], before["match"])
    live.server.load_ensemble(proof_of(repository))
    live.discard("deep0")
    live.promote("deep3")
    live.rollback("topic")
    assert near(ask("topic")["topic"], before["topic"])
    assert "onetrunk_proof" not in live.server.running_models()
    assert live.verify() == []


def proof_of(repository):
    """The ensemble that a deployer would leave loaded that is killed while it proves."""
    config = text_format.Parse((repository / "multitask/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    config.name = proof.PROOF
    for output in config.output:
        output.label_filename = ""
    return config


def test_no_request_fails_and_no_answer_is_a_mixture_under_load(live, server, bundle, reference, tiny_heads):
    updates = {f"update {i}": bundle(shift=1.0 + i) for i in range(3)}
    known = {task: {"old": reference(tiny_heads / task)} for task in ("grade", "match", "mood", "topic")}
    known["mood"] |= {name: reference(path) for name, path in updates.items()}
    extra = [bundle(shift=0.5, task=f"extra{i}", like="topic", tap=tap) for i, tap in enumerate((0, 2))]
    known |= {f"extra{i}": {"new": reference(path)} for i, path in enumerate(extra)}
    tasks, stop, failures, seen = ["grade", "match", "mood", "topic"], threading.Event(), Counter(), Counter()

    def client(seed):
        generator = random.Random(seed)
        with AdminClient(server.grpc_url) as connection:
            while not stop.is_set():
                rows = generator.sample(range(len(ROWS)), 2)
                wanted = generator.sample(tasks, generator.randint(1, 3))
                try:
                    answers = connection.ask("multitask", [ROWS[row] for row in rows], wanted)
                except OneTrunkError as error:
                    failures[str(error)] += 1
                    continue
                for task in wanted:
                    versions = [name for name, scores in known[task].items() if near(answers[task], scores[rows])]
                    seen[task, versions[0] if versions else "mixture"] += 1

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in clients:
        thread.start()
    try:
        for name, path in updates.items():
            live.deploy(path)
            time.sleep(0.2)
            live.rollback("mood", to=1)
            assert seen["mood", name] > 0
        for path in extra:
            live.deploy(path)
            tasks.append(path.name.split("_")[0])
            time.sleep(0.2)
        tasks.remove("extra0")
        time.sleep(0.5)
        live.remove("extra0")
        live.prune(1)
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert failures == Counter()
    assert sum(seen.values()) > 100
    assert not [task for task, version in seen if version == "mixture"]
    assert live.verify() == []


def test_a_proof_that_fails_leaves_no_trace(live, repository, ask, bundle, visible, monkeypatch):
    before, answers = visible(repository), ask("mood")["mood"]
    monkeypatch.setattr(change_module, "TOLERANCE", -1.0)
    for call in (lambda: live.deploy(bundle()), lambda: live.deploy(bundle(task="urgent", tap=2))):
        with pytest.raises(ProofError, match=r"the server's answers are .* from those expected"):
            call()
        assert visible(repository) == before
    monkeypatch.undo()
    assert np.array_equal(ask("mood")["mood"], answers)
    assert live.verify() == []


def test_answers_that_are_wrong_after_the_switch_are_switched_back(live, repository, ask, bundle, chain, monkeypatch):
    def wrong(*args):
        raise ProofError("mood: answers something else")

    before, answers = chain(repository, "multitask"), ask("mood")["mood"]
    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "_ask_again", wrong)
        with pytest.raises(OneTrunkError, match="answers something else; what was served before is served again"):
            live.deploy(bundle())
    assert chain(repository, "multitask") == before
    assert np.array_equal(ask("mood")["mood"], answers)
    assert live.verify() == []


def test_wrong_key_and_no_server_are_told_before_anything_is_touched(
    server, repository, bundle, visible, tiny_trunk_folder
):
    before = visible(repository)
    for key, url, error, message in (
        ("wrong", server.grpc_url, UserError, "the key that was given is not its key"),
        ("wrong", "127.0.0.1:1", NotReady, "127.0.0.1:1: no answer"),
    ):
        deployer = Deployer(repository, url=url, trunk=tiny_trunk_folder, admin_key=key)
        with deployer, pytest.raises(error, match=message):
            deployer.deploy(bundle())
    assert visible(repository) == before


def test_sync_brings_a_server_up_to_date_after_a_build(
    live, repository, ask, bundle, reference, tiny_heads, tiny_trunk_folder, tmp_path
):
    heads = shutil.copytree(tiny_heads, tmp_path / "heads")
    shutil.rmtree(heads / "mood")
    shutil.copytree(bundle(shift=1.5), heads / "mood")
    build_repository(BuildRequest(output=repository, heads=heads, trunk=tiny_trunk_folder, max_length=32))
    assert live.verify() == [
        "server: head_mood version 2 is not loaded",
        "server: multitask serves head_mood 1 instead of 2",
        "server: multitask_tokens serves head_mood 1 instead of 2",
        "server: head_mood version 1 is still loaded",
    ]
    live.sync()
    assert near(ask("mood")["mood"], reference(heads / "mood"))
    assert live.verify() == []
    assert not live.sync().changed


def test_sync_loads_a_version_whose_number_a_store_has_given_twice(
    live, repository, ask, bundle, reference, tiny_trunk_folder, tmp_path
):
    earlier = shutil.copytree(repository, tmp_path / "earlier")
    first, second = (shutil.copytree(bundle(shift=shift), tmp_path / f"of {shift}") for shift in (1.5, -1.5))
    assert live.deploy(first).to_version == 2
    assert near(ask("mood")["mood"], reference(first))
    with Deployer(earlier, url=None, trunk=tiny_trunk_folder) as offline:
        assert offline.deploy(second).to_version == 2
    store = open_store(parse_store(f"file://{tmp_path / 'store'}"))
    publish(earlier, store)
    pull(store, repository)
    live.sync()
    assert near(ask("mood")["mood"], reference(second))
    assert live.verify() == []


def test_killed_deployers_are_cleaned_up_after(server, live, repository, ask, bundle, chain, tiny_trunk_folder):
    """kill -9 at many moments of a deployment, the server under it; then one more deployment."""
    new = bundle(shift=2.0)
    code = f"""
import os, sys
from pathlib import Path
from onetrunk.deploy import Deployer

repository, new, trunk = (Path(name) for name in ({str(repository)!r}, {str(new)!r}, {str(tiny_trunk_folder)!r}))
Deployer(repository, url=None, trunk=trunk).deploy(new, dry_run=True)  # imports everything, once for all
for line in sys.stdin:
    child = os.fork()
    if not child:
        Deployer(repository, url={server.grpc_url!r}, trunk=trunk, admin_key={KEY!r}).deploy(new)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""
    before = chain(repository, "multitask")
    live.deploy(new)
    after = chain(repository, "multitask")
    live.rollback("mood")
    live.prune(1)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as deployers:
        for delay in (0.05, 0.25, 0.6):
            deployers.stdin.write("go\n")
            process = int(deployers.stdout.readline())
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):  # on a fast machine it is done by then
                os.kill(process, signal.SIGKILL)
            assert deployers.stdout.readline() == "ended\n"
            assert chain(repository, "multitask")["head_mood"] in (before["head_mood"], after["head_mood"])
            assert len(ask("mood", "grade")["mood"]) == len(ROWS), "what was served goes on being served"
            live.sync()
            assert live.verify() == []
        deployers.stdin.close()


def test_server_that_dies_in_the_middle_comes_back_with_the_new_head(
    server, live, repository, ask, bundle, reference, monkeypatch
):
    """Its launcher starts it anew, from files that are switched already."""
    new, killed = bundle(shift=2.0), []

    def die(*args):
        if not killed:
            killed.append(server.pid)
            os.kill(server.pid, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [], timeout=60)
        return original(*args)

    original = Rollout._ask_again
    monkeypatch.setattr(Rollout, "_ask_again", die)
    live.deploy(new)
    assert killed
    assert near(ask("mood")["mood"], reference(new))
    assert live.verify() == []


def test_process_of_a_model_that_dies_does_not_stop_a_deployment(server, live, ask, bundle, reference, tiny_heads):
    stubs = [p for p in psutil.Process(server.pid).children(recursive=True) if "head_mood" in " ".join(p.cmdline())]
    assert stubs
    stubs[0].kill()
    new = bundle(shift=2.0)
    until = time.monotonic() + 60
    while True:  # the watchdog brings it back within a second or two; until then the proof refuses
        try:
            live.deploy(new)
            break
        except OneTrunkError:
            assert time.monotonic() < until
            time.sleep(0.5)
    assert near(ask("mood")["mood"], reference(new))
    assert live.verify() == []


def test_what_a_dead_deployer_left_loads_on_a_fresh_server(
    repository, deployer, bundle, reference, tiny_heads, monkeypatch
):
    """After the files of step 1, and between the switches of both ensembles: Triton itself starts on what is there."""
    from onetrunk.protocol import transaction

    new = bundle(shift=2.0)
    expected = {"old": reference(tiny_heads / "mood"), "new": reference(new)}

    class Dead(BaseException):
        pass

    for last in ("head_mood/config.pbtxt", "multitask/config.pbtxt"):
        original = os.replace

        def replace(source, target, original=original, last=last):
            original(source, target)
            if str(target).endswith(f"/{last}"):
                raise Dead

        with monkeypatch.context() as patch:
            patch.setattr(transaction, "os", stand_in(os, replace=replace))
            with pytest.raises(Dead):
                deployer.deploy(new)
        server = Server(repository, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None)
        with server, AdminClient(server.grpc_url) as client:
            scores = client.ask("multitask", ROWS, ["mood"])["mood"]
        assert near(scores, expected["new" if last.startswith("multitask") else "old"])
    deployer.remove("grade")
    assert deployer.verify() == []
