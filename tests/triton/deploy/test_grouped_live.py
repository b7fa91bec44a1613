"""Grouped heads on a running server: subsets, an update that leaves the group under load, and the way back."""

import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from onetrunk.admin import AdminClient
from onetrunk.deploy import Deployer
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from tests.fixtures.limbs import random_head_on, random_limb

pytestmark = pytest.mark.slow

KEY = "a-key"
ROWS = [("the film was very good", ""), ("turn the light off", "turn it on"), ("a", "")]
TASKS = ("grade", "match", "mood", "topic")


@pytest.fixture
def repository(tiny_heads, tiny_trunk_folder, tmp_path):
    build_repository(
        BuildRequest(
            output=tmp_path / "grouped", heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, group_heads=True
        )
    )
    return tmp_path / "grouped"


def test_groups_answer_as_separate_heads_and_a_deployment_goes_by_without_a_failure(
    repository, served, tiny_trunk_folder, bundle
):
    with AdminClient(served.grpc_url) as separate:
        expected = separate.ask("multitask", ROWS, TASKS)
    failures, seen, stop = [], set(), threading.Event()

    def client(url):
        with AdminClient(url) as asking:
            while not stop.is_set():
                try:
                    answers = asking.ask("multitask", ROWS, ("grade", "mood"))
                    seen.add(answers["mood"].round(3).tobytes())
                    if not np.allclose(answers["grade"], expected["grade"], atol=1e-5):
                        failures.append("grade changed")
                except Exception as error:
                    failures.append(str(error))

    with (
        Server(repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY, probe_interval_s=None) as server,
        Deployer(repository, url=server.grpc_url, trunk=tiny_trunk_folder, admin_key=KEY) as deployer,
        AdminClient(server.grpc_url, KEY) as live,
    ):
        assert "head_mood" not in live.loaded_versions()
        for subset in (TASKS, *((task,) for task in TASKS), ("mood", "topic")):
            for task, scores in live.ask("multitask", ROWS, subset).items():
                np.testing.assert_allclose(scores, expected[task], atol=1e-5)
        threads = [threading.Thread(target=client, args=(server.grpc_url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            deployer.deploy(bundle(shift=2.0))
            updated = live.ask("multitask", ROWS, ["mood"])["mood"]
            assert live.loaded_versions()["head_mood"] == {1, 2}
            deployer.rollback("mood")
            deployer.deploy(bundle(like="grade", task="grade", shift=0.0, folder="same", layers=1))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert not np.allclose(updated, expected["mood"], atol=1e-3)
        assert seen == {expected["mood"].round(3).tobytes(), updated.round(3).tobytes()}
        assert deployer.verify() == []


def test_a_limb_in_a_group_is_loaded_for_a_head_that_left_it(tiny_heads, tiny_trunk, tiny_trunk_folder, tmp_path):
    heads, limbs = shutil.copytree(tiny_heads, tmp_path / "heads"), tmp_path / "limbs"
    limb = random_limb(tiny_trunk, limbs / "pairs", tap=1, layers=1)
    for seed, task in enumerate(("urgent", "polite")):
        random_head_on(limb, tiny_trunk, heads, task, seed=seed)
    random_head_on(limb, tiny_trunk, tmp_path / "new", "urgent", seed=9)
    request = BuildRequest(output=tmp_path / "apart", heads=heads, limbs=limbs, trunk=tiny_trunk_folder, max_length=32)
    build_repository(request)
    build_repository(replace(request, output=tmp_path / "grouped", group_heads=True))
    segment, tasks = limb.identity.segment.name, ("mood", "urgent", "polite")
    settings = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "admin_key": KEY, "probe_interval_s": None}
    with Server(tmp_path / "apart", **settings) as server, AdminClient(server.grpc_url, KEY) as admin:
        expected = admin.ask("multitask", ROWS, tasks)
        assert segment in admin.loaded_versions()
    with (
        Server(tmp_path / "grouped", **settings) as server,
        Deployer(
            tmp_path / "grouped", url=server.grpc_url, trunk=tiny_trunk_folder, limbs=limbs, admin_key=KEY
        ) as deployer,
        AdminClient(server.grpc_url, KEY) as admin,
    ):
        for task, scores in admin.ask("multitask", ROWS, tasks).items():
            np.testing.assert_array_equal(scores, expected[task])
        assert segment not in admin.loaded_versions()
        deployer.deploy(tmp_path / "new" / "urgent")
        assert segment in admin.loaded_versions()
        found = admin.ask("multitask", ROWS, tasks)
        np.testing.assert_array_equal(found["polite"], expected["polite"])
        assert not np.allclose(found["urgent"], expected["urgent"], atol=1e-3)
        assert deployer.verify() == []
        deployer.rollback("urgent")
        np.testing.assert_array_equal(admin.ask("multitask", ROWS, ["urgent"])["urgent"], expected["urgent"])
        deployer.candidate(tmp_path / "new" / "urgent")
        deployer.promote("urgent")
        np.testing.assert_array_equal(admin.ask("multitask", ROWS, ["urgent"])["urgent"], found["urgent"])
        assert deployer.verify() == []
