"""Where models run and with how many threads: what it changes in a repository, what it leaves, and who keeps it."""

import hashlib
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.cli.build_repo import build_repo
from onetrunk.deploy import Deployer
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.nn.head import new_head
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import CPU, Placement, Threads, read_manifest
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.buckets import Buckets
from onetrunk.repository.model_times import Measurement, ModelTime
from onetrunk.repository.state import changed_texts, read_state
from onetrunk.serving.repository import read_repository

GPU, ON_CPU = pb.ModelInstanceGroup.KIND_GPU, pb.ModelInstanceGroup.KIND_CPU


def hashes(repository):
    return {
        str(path.relative_to(repository)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.rglob("*"))
        if path.is_file() and path.name != "deployments.jsonl"
    }


def configs(repository):
    """Model -> its config, as everybody reads it."""
    texts = {path.parent.name: path.read_text() for path in sorted(repository.glob("*/config.pbtxt"))}
    return {name: text_format.Parse(text, pb.ModelConfig()) for name, text in texts.items()}


def threads(repository):
    """ONNX model -> the threads in its config."""
    return {
        name: int(config.parameters["intra_op_thread_count"].string_value)
        for name, config in configs(repository).items()
        if config.backend == "onnxruntime"
    }


@pytest.fixture
def repository(tiny_repository, tmp_path):
    return shutil.copytree(tiny_repository, tmp_path / "repository")


@pytest.fixture
def build(tiny_heads, tiny_trunk_folder, repository):
    def run(**changes):
        return build_repository(
            BuildRequest(output=repository, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, **changes)
        )

    return run


@pytest.fixture
def measured(monkeypatch):
    """What was measured, without measuring: a segment is worth two threads, anything else one. Gives the calls."""
    calls = []

    def measure(files, tokens, vocab_size, cores, progress):
        calls.append((sorted(files), tokens))
        assert all(file.is_file() for file in files.values())
        slow = {1: ModelTime(30.0, 30.0), 2: ModelTime(16.0, 31.0)}
        fast = {1: ModelTime(0.2, 0.2), 2: ModelTime(0.3, 0.4)}
        return Measurement({name: slow if name == "trunk_01_03" else fast for name in files}, idle_fraction=0.6)

    monkeypatch.setattr("onetrunk.repository.tuning.measure_models", measure)
    monkeypatch.setattr("onetrunk.repository.tuning.usable_cores", lambda: 2)
    monkeypatch.setattr("onetrunk.repository.tuning.processor_model", lambda: "Abacus 3")
    return calls


class TestTune:
    def test_only_configs_and_manifest_change(self, build, repository, measured):
        before = hashes(repository)
        report = build(tune="throughput")
        after = hashes(repository)
        assert {name for name in after if after[name] != before[name]} == set(report.written)
        assert {name.rsplit("/")[-1] for name in report.written} == {"config.pbtxt", "manifest.json"}
        assert {name.split("/")[0] for name in report.written}.isdisjoint(
            {"tokenizer", "multitask", "multitask_tokens"}
        )
        assert all(state == "version 1, kept" for state in report.models.values())
        assert threads(repository) == {
            name: 2 if name == "trunk_01_03" else 1
            for name in configs(repository)
            if name.startswith(("head", "trunk"))
        }

    def test_without_it_each_model_has_one_thread(self, build, repository):
        build()
        assert set(threads(repository).values()) == {1}

    def test_a_note_tells_of_the_other_backend(self, build, measured):
        notes = build(tune="throughput").notes
        assert any("(trunk_01_03); in NVIDIA's own ONNX Runtime backend" in note for note in notes)

    def test_config_says_why(self, build, repository, measured):
        build(tune="throughput")
        reason, by, first, *_ = (repository / "trunk_01_03/config.pbtxt").read_text().splitlines()
        assert reason.startswith("# 2 threads: 16.0 ms a text of 32 tokens; with 1 thread it takes 30.0 ms and holds")
        assert by == "# Measured by build-repo --tune on Abacus 3, 2 cores."
        assert first == 'name: "trunk_01_03"'

    def test_everybody_reads_the_comments(self, build, repository, measured, tiny_trunk_folder):
        build(tune="latency")
        assert read_repository(repository).tasks.keys() == {"grade", "match", "mood", "topic"}
        assert changed_texts(repository, read_state(repository).texts) == {}
        assert Deployer(repository, url=None, trunk=tiny_trunk_folder).verify() == []

    def test_a_build_without_it_goes_back(self, build, repository, measured):
        before = hashes(repository)
        build(tune="throughput")
        assert build().changed
        assert hashes(repository) == before

    def test_the_same_again_writes_the_same(self, build, repository, measured):
        build(tune="throughput")
        before = hashes(repository)
        build(tune="throughput")
        assert len(measured) == 2
        assert hashes(repository) == before

    def test_a_group_is_measured_in_place_of_its_heads(self, build, measured):
        build(tune="throughput", group_heads=True)
        parts, tokens = measured[0]
        assert parts == ["head_match", "head_topic", "heads_03", "trunk_00_00", "trunk_00_01", "trunk_01_03"]
        assert tokens == 32

    def test_report_has_threads_reasons_and_that_the_machine_was_busy(self, build, measured):
        report = build(tune="throughput")
        assert report.placement.threads["trunk_01_03"].count == 2
        assert "other programs took 40% of the cores" in report.notes[0]

    @pytest.mark.parametrize(
        ("changes", "message"), [({"device": "gpu"}, "--device gpu needs none"), ({"dry_run": True}, "--dry-run")]
    )
    def test_what_it_does_not_go_with(self, build, changes, message):
        with pytest.raises(UserError, match=message) as raised:
            build(tune="latency", **changes)
        assert "\n" not in str(raised.value)

    def test_for_real(self, build, repository, monkeypatch):
        monkeypatch.setattr("onetrunk.repository.model_times._TIME_LIMIT_S", 1.0)
        report = build(tune="latency")
        assert report.placement.threads.keys() == threads(repository).keys()
        assert all(1 <= one.count == threads(repository)[name] for name, one in report.placement.threads.items())

    @pytest.mark.parametrize(
        ("buckets", "typical"),
        [
            (Buckets((16, 32, 64, 128)), 64),
            (Buckets((24, 56, 128)), 56),
            (Buckets((96, 128)), 96),
            (Buckets((16, 32, 64, 128), median_length=17), 32),
            (Buckets((16, 32, 64, 128), median_length=100), 128),
        ],
    )
    def test_bucket_to_measure_at(self, buckets, typical):
        assert buckets.typical == typical


class TestDeploying:
    @pytest.fixture
    def deployer(self, repository, tiny_trunk_folder):
        return Deployer(repository, url=None, trunk=tiny_trunk_folder)

    @pytest.fixture
    def bundle(self, tiny_heads, tiny_trunk, tmp_path):
        def make(**changes):
            spec = load_bundle(tiny_heads / "mood").spec.model_copy(update=changes)
            with torch.random.fork_rng():
                torch.manual_seed(9)
                head = new_head(tiny_trunk, outputs=2, tap=spec.tap, layers=spec.layers)
            save_bundle(tmp_path / "bundle", spec, head)
            return tmp_path / "bundle"

        return make

    def test_an_update_loses_what_was_measured_of_the_version_before(
        self, build, repository, measured, deployer, bundle
    ):
        build(tune="throughput")
        assert "# Measured by" in (repository / "head_mood/config.pbtxt").read_text()
        deployer.candidate(bundle())
        assert "# Measured by" in (repository / "head_mood/config.pbtxt").read_text()
        deployer.promote("mood")
        assert not (repository / "head_mood/config.pbtxt").read_text().startswith("#")
        others = read_manifest(repository).placement
        assert others.threads.keys() == threads(repository).keys() - {"head_mood"}
        assert others.measured == "Measured by build-repo --tune on Abacus 3, 2 cores."
        assert deployer.verify() == []
        deployer.rollback("mood")
        assert deployer.verify() == []

    def test_a_new_head_and_its_segments_have_the_usual_threads(self, build, repository, measured, deployer, bundle):
        build(tune="throughput")
        deployer.deploy(bundle(task="urgent", tap=2))
        found = threads(repository)
        assert (found["head_urgent"], found["trunk_01_02"], found["trunk_00_01"]) == (1, 1, 1)
        assert not (repository / "head_urgent/config.pbtxt").read_text().startswith("#")
        assert deployer.verify() == []

    def test_a_new_head_runs_where_the_others_do(self, build, repository, deployer, bundle):
        build(device="gpu")
        deployer.deploy(bundle(task="urgent", tap=2))
        for name in ("head_urgent", "trunk_01_02", "head_mood"):
            assert [group.kind for group in configs(repository)[name].instance_group] == [GPU]
        assert deployer.verify() == []


class TestDevice:
    @pytest.mark.parametrize("group_heads", [False, True])
    def test_all_onnx_models_and_no_other_run_on_the_gpu(self, build, repository, group_heads):
        report = build(device="gpu", group_heads=group_heads)
        kinds = {
            name: [(group.count, group.kind) for group in config.instance_group]
            for name, config in configs(repository).items()
            if not config.platform
        }
        assert kinds.pop("tokenizer") == [(1, ON_CPU)]
        assert set(map(tuple, kinds.values())) == {((1, GPU),)}
        assert len(kinds) == 7 + group_heads
        assert set(threads(repository).values()) == {1}
        assert report.placement.device == "gpu"

    def test_models_stay_as_they_are(self, build, repository):
        before = hashes(repository)
        report = build(device="gpu")
        assert {name.rsplit("/")[-1] for name in report.written} == {"config.pbtxt", "manifest.json"}
        assert read_repository(repository).tasks
        assert changed_texts(repository, read_state(repository).texts) == {}
        build()
        assert hashes(repository) == before

    def test_threads_measured_before_do_not_come_along(self, build, repository, measured):
        build(tune="throughput")
        build(device="gpu")
        assert read_manifest(repository).placement == Placement(device="gpu")
        build(tune="throughput")
        assert read_manifest(repository).placement.device == "cpu"


class TestManifest:
    def test_has_nothing_of_it_by_default(self, repository):
        assert "placement" not in json.loads((repository / "manifest.json").read_text())
        assert read_manifest(repository).placement == CPU

    @pytest.mark.parametrize("reason", ["two\nlines", "a\rb", "x\u2028y", ""])
    def test_reason_is_a_line(self, reason):
        with pytest.raises(ValidationError):
            Threads(count=1, reason=reason)


class TestCommand:
    @pytest.fixture
    def command(self, tiny_heads, tiny_trunk_folder, repository):
        def run(*arguments):
            places = ["--heads", str(tiny_heads), "--trunk", str(tiny_trunk_folder), "--output", str(repository)]
            return CliRunner().invoke(build_repo, [*places, "--max-length", "32", *arguments])

        return run

    def test_tune_alone_means_throughput(self, command, measured):
        result = command("--tune", "--tasks", "all", "--json")
        placement = json.loads(result.stdout)["placement"]
        assert placement["measured"] == "Measured by build-repo --tune on Abacus 3, 2 cores."
        assert placement["threads"]["trunk_01_03"]["count"] == 2

    def test_table_has_the_reasons(self, command, measured):
        result = command("--tasks", "all", "--tune", "latency")
        assert "trunk_01_03: 2 threads: 16.0 ms a text of 32 tokens, with 1 thread 30.0 ms.\n" in result.stdout
        assert "Measured by build-repo --tune latency on Abacus 3, 2 cores.\n" in result.stdout
        assert "note: other programs took 40% of the cores" in result.stderr

    def test_device_is_told(self, command):
        result = command("--tasks", "all", "--device", "gpu")
        assert "segments and heads run on the GPU, the tokenizer on the CPU" in result.stdout

    def test_tune_for_a_gpu_is_refused(self, command):
        result = command("--tasks", "all", "--device", "gpu", "--tune")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "error: --tune measures threads on the CPU" in result.stderr
