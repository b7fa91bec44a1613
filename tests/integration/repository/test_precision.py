"""build-repo --precision: what is reduced, what the gate refuses, and what is made anew."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.cli.build_repo import build_repo
from onetrunk.export import quantization, sessions
from onetrunk.export.chain import open_session
from onetrunk.export.errors import GateError
from onetrunk.export.runtime import Runtime
from onetrunk.export.sessions import asks_for_bf16
from onetrunk.machine import has_matrix_units, integer_unit
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import GateResult, GateRule, Precision, read_manifest
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository import build as build_module
from onetrunk.repository import plan as plan_module
from onetrunk.repository.configs import parameters_of
from onetrunk.repository.gate import build_remedy, judge
from tests.fixtures.gate import max_loss

INT8 = Precision(trunk="int8", heads="int8")
BF16 = Precision(trunk="bf16", heads="bf16")
ALL = {"grade", "match", "mood", "topic"}


@pytest.fixture
def build(tiny_heads, tiny_trunk_folder, tmp_path, gate):
    def run(**changes):
        settings = {"heads": tiny_heads, "trunk": tiny_trunk_folder, "max_length": 32, "gate": gate, **changes}
        return build_repository(BuildRequest(output=settings.pop("output", tmp_path / "repository"), **settings))

    return run


@pytest.fixture(scope="session")
def int8_built(tiny_heads, tiny_trunk_folder, tmp_path_factory, gate):
    output = tmp_path_factory.mktemp("int8") / "repository"
    report = build_repository(
        BuildRequest(output=output, heads=tiny_heads, trunk=tiny_trunk_folder, max_length=32, precision=INT8, gate=gate)
    )
    return output, report


@pytest.fixture
def repository(int8_built, tmp_path):
    return shutil.copytree(int8_built[0], tmp_path / "repository")


def parameter(repository, model):
    text = (repository / model / "config.pbtxt").read_text()
    return parameters_of(text_format.Parse(text, pb.ModelConfig()))["precision"]


def read_width(path):
    (state,) = (one for one in onnx.load(path).graph.input if one.name.startswith("hidden"))
    return state.type.tensor_type.shape.dim[2].dim_value


def is_int8(path):
    return b"MatMulIntegerToFloat" in path.read_bytes()


def coarse(monkeypatch):
    """Rounds weights and states to three values."""
    monkeypatch.setattr(quantization, "_HIGHEST", 1)


def test_all_parts_are_reduced_and_say_so(int8_built):
    output, _ = int8_built
    models = ["trunk_00_01", "trunk_01_03", *(f"head_{task}" for task in ALL)]
    assert {parameter(output, model) for model in models} == {"int8"}
    assert all(is_int8(output / model / "1/model.onnx") for model in models)
    assert parameter(output, "trunk_00_00") == "fp32"  # the embeddings alone
    assert read_manifest(output).precision == INT8
    assert not (output / ".staging").exists()


def test_in_bf16_the_files_stay_in_fp32_and_ask_for_it(build, tmp_path):
    report = build(precision=BF16, group_heads=True)
    folder = tmp_path / "repository"
    models = ["trunk_00_01", "trunk_01_03", "heads_03", *(f"head_{task}" for task in ALL)]
    files = {name: onnx.load(folder / name / "1/model.onnx") for name in models}
    assert all(map(asks_for_bf16, files.values()))
    types = {tensor.data_type for file in files.values() for tensor in file.graph.initializer}
    assert types <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    assert not asks_for_bf16(onnx.load(folder / "trunk_00_00/1/model.onnx"))  # it only looks up
    assert {result.loss <= max_loss() for result in report.gate.values()} == {True}
    assert {parameter(folder, name) for name in models if not name.startswith("heads")} == {"bf16"}
    assert not build(precision=BF16, group_heads=True).changed


def test_openvino_computes_such_a_file_where_there_are_units_for_it(build, tmp_path, monkeypatch):
    build(precision=BF16)
    path = tmp_path / "repository/trunk_01_03/1/model.onnx"
    state = np.random.default_rng(0).standard_normal((3, 7, read_width(path))).astype(np.float32)
    feeds = {"hidden_01": state, "attention_mask": np.ones((3, 7), np.int64)}
    here = open_session(path, "trunk")
    found = here.run(None, feeds)[0]
    # By an ONNX Runtime that has no such plugin, or one that does not load; and on a processor without units.
    for name in ("_openvino", "has_matrix_units"):
        with monkeypatch.context() as without:
            without.setattr(sessions, name, lambda: None)
            there = open_session(path, "trunk")
        assert there.get_providers() == ["CPUExecutionProvider"]
    difference = np.abs(found - there.run(None, feeds)[0]).max()
    if has_matrix_units():
        assert here.get_providers()[0] == "OpenVINOExecutionProvider"
        # Rounded to bf16, and no more: computed in fp32 it would be far less.
        assert 1e-4 < difference < 5e-2
    else:
        assert difference == 0


def test_without_units_for_bf16_a_build_says_so(build, monkeypatch):
    for module in (sessions, build_module, plan_module):
        monkeypatch.setattr(module, "has_matrix_units", lambda: False)
    # Not even the plugin is needed then.
    monkeypatch.setattr(sessions, "_openvino", lambda: None)
    report = build(precision=BF16)
    assert [note for note in report.notes if note.startswith("this processor has no matrix units for bf16 (AMX)")]
    assert {round(result.loss, 6) for result in report.gate.values()} == {0.0}
    assert {result.measured_by.partition(", ")[2] for result in report.gate.values()} == {"fp32 for bf16"}


def test_bf16_without_openvino_is_refused_at_once(build, monkeypatch, tmp_path):
    monkeypatch.setattr(plan_module, "has_matrix_units", lambda: True)
    monkeypatch.setattr(sessions, "_openvino", lambda: None)
    with pytest.raises(UserError, match=r"--precision bf16: OpenVINO .* pip install 'onetrunk\[openvino\]'"):
        build(precision=BF16)
    assert not (tmp_path / "repository").exists()


def test_bf16_for_a_gpu_or_by_the_releases_runtime_is_refused(build, gate):
    with pytest.raises(UserError, match="bf16 is made for CPUs"):
        build(precision=BF16, device="gpu")
    with pytest.raises(UserError, match=r"--gate release: Triton .* has no OpenVINO that computes in bf16"):
        build(precision=BF16, gate=dataclasses.replace(gate, runtime="release"))


def test_report_says_what_each_task_loses(int8_built):
    _, report = int8_built
    assert set(report.gate) == ALL
    assert report.gated
    for result in report.gate.values():
        assert (result.rows, round(result.fp32, 6)) == (120, 1.0)
        assert result.loss <= max_loss()
    assert report.differences["trunk_01_03"] > 1e-4
    assert np.isfinite(list(report.differences.values())).all()


def test_second_build_runs_no_gate_and_writes_nothing(build, repository, monkeypatch):
    monkeypatch.setattr(build_module, "measure_losses", lambda *_: pytest.fail("measured again"))
    report = build(precision=INT8)
    assert not report.changed
    assert set(report.gate) == ALL


def test_another_sample_is_measured_though_no_file_is_new(build, repository, gate):
    report = build(precision=INT8, gate=dataclasses.replace(gate, rows=50))
    assert report.written == ("manifest.json",)
    assert {result.rows for result in report.gate.values()} == {50}


def test_other_dev_data_are_measured_though_no_file_is_new(build, repository, gate, tmp_path):
    tasks = shutil.copytree(gate.task_dir, tmp_path / "tasks")
    lines = (tasks / "mood.jsonl").read_text().splitlines()
    (tasks / "mood.jsonl").write_text("\n".join(lines[:100]))
    report = build(precision=INT8, gate=dataclasses.replace(gate, task_dir=tasks))
    assert report.written == ("manifest.json",)
    assert {task: result.rows for task, result in report.gate.items()} == {**dict.fromkeys(ALL, 120), "mood": 100}


def test_other_fields_of_the_same_dev_data_are_measured(build, repository, gate, tmp_path):
    tasks = shutil.copytree(gate.task_dir, tmp_path / "tasks")
    with (tasks / "mood.toml").open("a") as file:
        file.write('text_field = "sentence2"\n')
    report = build(precision=INT8, gate=dataclasses.replace(gate, task_dir=tasks, max_loss=100))
    assert report.written == ("manifest.json",)


def test_without_the_gate_what_is_known_of_the_files_is_told(build, repository, gate, tmp_path):
    report = build(precision=INT8, gate=dataclasses.replace(gate, on=False, task_dir=tmp_path))
    assert report.written == ("manifest.json",)  # that there is no longer a gate
    assert set(read_manifest(repository).gate) == set(report.gate) == ALL
    assert report.gated


def test_another_rule_is_kept_though_no_file_is_new(build, repository, gate):
    assert read_manifest(repository).gate_rule == gate.rule
    report = build(precision=INT8, gate=dataclasses.replace(gate, max_loss=max_loss() + 1))
    assert report.written == ("manifest.json",)
    assert read_manifest(repository).gate_rule == dataclasses.replace(gate.rule, max_loss=max_loss() + 1)


def test_one_part_alone(build, repository):
    report = build(precision=Precision(heads="int8"))
    new = {model for model, state in report.models.items() if state == "version 2, new"}
    assert new == {"trunk_00_01", "trunk_01_03"}
    assert parameter(repository, "trunk_01_03") == "fp32"
    assert parameter(repository, "head_mood") == "int8"
    assert set(report.gate) == ALL


def test_back_to_fp32_has_no_gate_and_old_versions_come_back(build, repository):
    build(precision=Precision())
    report = build(precision=INT8)
    assert {state for model, state in report.models.items() if model != "tokenizer"} == {"version 1, kept"}


def test_fp32_repository_of_before_is_known_again(build, tiny_repository, tmp_path):
    shutil.copytree(tiny_repository, tmp_path / "repository")
    assert not build(precision=Precision()).changed
    manifest = (tmp_path / "repository/manifest.json").read_text()
    assert not {"precision", "gate", "gate_rule", "numbers"} & set(json.loads(manifest))


def test_fp16_keeps_its_form(build, tmp_path):
    report = build(precision=Precision(trunk="fp16", heads="fp16"))
    path = tmp_path / "repository/head_mood/1/model.onnx"
    assert {tensor.type for tensor in open_session(path, "mood").get_outputs()} == {"tensor(float)"}
    assert max(result.loss for result in report.gate.values()) <= 2
    assert parameter(tmp_path / "repository", "head_mood") == "fp16"


def test_fp16_on_a_cpu_is_told(build, gate):
    settings = {"precision": Precision(heads="fp16"), "gate": dataclasses.replace(gate, on=False), "dry_run": True}
    (note,) = build(**settings).notes
    assert note.startswith("fp16 is for GPUs (--device gpu)")
    assert build(**settings, device="gpu").notes == ()


@pytest.mark.parametrize("precision", [INT8, Precision(trunk="fp16", heads="int8")])
def test_int8_for_a_gpu_is_refused(build, precision):
    with pytest.raises(UserError, match="int8 is made for CPUs; give fp16 or fp32 with --device gpu") as raised:
        build(precision=precision, device="gpu")
    assert "\n" not in str(raised.value)


def test_refused_gate_publishes_nothing(build, tmp_path, monkeypatch):
    coarse(monkeypatch)
    with pytest.raises(GateError, match=r"points lost on dev data: .*; nothing was published") as raised:
        build(precision=INT8)
    assert set(raised.value.results) == ALL
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "repository").iterdir()) == []


def test_refused_gate_leaves_what_was_served(build, tiny_repository, tmp_path, monkeypatch):
    coarse(monkeypatch)
    repository = shutil.copytree(tiny_repository, tmp_path / "repository")
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    with pytest.raises(GateError):
        build(precision=INT8)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before


def test_what_was_allowed_once_is_judged_anew(build, gate, monkeypatch):
    coarse(monkeypatch)
    build(precision=INT8, gate=dataclasses.replace(gate, max_loss=300))
    with pytest.raises(GateError):
        build(precision=INT8)


def test_without_the_gate_the_report_says_so(build, gate, monkeypatch):
    coarse(monkeypatch)
    report = build(precision=INT8, gate=dataclasses.replace(gate, on=False))
    assert report.changed
    assert (report.gated, report.gate) == (False, {})


def test_task_without_dev_data_is_told_before_anything_is_exported(build, gate, tmp_path, monkeypatch):
    tasks = shutil.copytree(gate.task_dir, tmp_path / "tasks")
    (tasks / "mood.jsonl").unlink()
    monkeypatch.setattr(build_module, "Artifacts", lambda *_, **__: pytest.fail("exported"))
    with pytest.raises(UserError, match=r"task mood: no dev data .* or --gate off") as raised:
        build(precision=INT8, gate=dataclasses.replace(gate, task_dir=tasks))
    assert "\n" not in str(raised.value)


def test_dry_run_too_needs_dev_data(build, gate, tmp_path):
    settings = {"precision": INT8, "dry_run": True}
    with pytest.raises(UserError, match=r"task grade: no dev data .* or --gate off"):
        build(**settings, gate=dataclasses.replace(gate, task_dir=tmp_path))
    assert build(**settings, gate=dataclasses.replace(gate, task_dir=tmp_path, on=False)).changed


def test_task_file_of_another_task_is_told(build, gate, tmp_path):
    tasks = shutil.copytree(gate.task_dir, tmp_path / "tasks")
    text = (tasks / "mood.toml").read_text()
    (tasks / "mood.toml").write_text(text.replace('["bad", "good"]', '["good", "bad"]'))
    with pytest.raises(UserError, match=r"mood\.toml: kind, form, labels or range are not the head's"):
        build(precision=INT8, gate=dataclasses.replace(gate, task_dir=tasks))


@pytest.fixture
def command(tiny_heads, tiny_trunk_folder, tmp_path, gate):
    def run(*arguments):
        places = ["--heads", str(tiny_heads), "--trunk", str(tiny_trunk_folder), "--task-dir", str(gate.task_dir)]
        output = ["--output", str(tmp_path / "repository"), "--max-length", "32", "--tasks", "all"]
        return CliRunner().invoke(build_repo, [*places, *output, *arguments])

    return run


def test_command_reports_the_gate(command):
    result = command("--precision", "int8", "--max-loss", str(max_loss()), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["precision"] == {"trunk": "int8", "heads": "int8"}
    assert set(report["gate"]) == ALL
    assert set(report["gate"]["mood"]) == {"metric", "rows", "fp32", "reduced", "loss", "measured_by"}


def test_command_shows_what_was_refused(command, monkeypatch):
    coarse(monkeypatch)
    result = command("--precision", "int8")
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-7].split() == ["task", "metric", "rows", "fp32", "reduced", "loss"]
    assert [line.split()[0] for line in lines[-6:-2]] == sorted(ALL)
    assert lines[-2].strip() == f"by ONNX Runtime {onnxruntime.__version__}, {integer_unit()}"
    assert lines[-1].startswith("error: points lost on dev data: ")


@pytest.mark.parametrize(
    ("on_off", "told"), [("on", "would be found out by the gate"), ("off", "is not known: no gate, by --gate off")]
)
def test_command_says_what_a_build_would_find_out(command, on_off, told):
    result = command("--precision", "int8", "--gate", on_off, "--dry-run")
    assert f"precision int8: what tasks lose by it {told}\n" in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-loss", "0.5"], "--max-loss: nothing is lost with --precision fp32; give bf16, int8 or fp16, or"),
        (["--gate", "on", "--gate-rows", "9"], "--gate and --gate-rows: nothing is lost with --precision fp32"),
        (["--precision", "int8", "--gate", "off", "--max-loss", "1"], "--max-loss: there is no gate with --gate off"),
    ],
)
def test_command_refuses_options_of_a_gate_that_there_is_not(command, options, told):
    result = command(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {told}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("points", ["nan", "inf", "-1", "100.5"])
def test_command_refuses_points_that_are_none(command, points):
    result = command("--precision", "int8", "--max-loss", points)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: --max-loss {points}: give points from 0 to 100, as in 0.5\n"


def test_command_refuses_an_unknown_precision(command):
    result = command("--precision", "int4")
    assert result.exit_code == 2
    assert "error: --precision int4: 'int4' is not known" in result.stderr


def test_a_loss_that_is_nan_is_refused():
    results = {"mood": GateResult(metric="accuracy", rows=1, fp32=0.9, reduced=math.nan, key="")}
    with pytest.raises(GateError, match="mood nan"):
        judge(results, max_loss=100.0, remedy="")


def test_the_releases_onnx_runtime_measures_in_processes_of_its_own(build, gate, monkeypatch, tmp_path):
    # The installed package stands in for another version's.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "onnxruntime").symlink_to(Path(onnxruntime.__file__).parent)
    asked = []

    def fetch(runtime, progress):
        asked.append(runtime.version)
        return tmp_path / "other" if runtime.version == "1.19.2" else None

    monkeypatch.setattr(Runtime, "fetch", fetch)
    own = build(precision=INT8)
    release = dataclasses.replace(gate, runtime="release")
    build(precision=INT8, gate=release, dry_run=True)
    assert asked == [onnxruntime.__version__]
    theirs = build(precision=INT8, gate=release)
    assert asked == [onnxruntime.__version__, "1.19.2"]
    by = {task: result.measured_by for task, result in theirs.gate.items()}
    assert by == dict.fromkeys(ALL, f"ONNX Runtime 1.19.2, {integer_unit()}")
    # What one has measured is no result of the other.
    assert {result.measured_by for result in own.gate.values()}.isdisjoint(by.values())
    scores = {task: (result.fp32, result.reduced) for task, result in own.gate.items()}
    assert {task: (result.fp32, result.reduced) for task, result in theirs.gate.items()} == scores
    assert not build(precision=INT8, gate=release).changed
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("precision", "rows", "told"),
    [
        (Precision(trunk="int8", heads="int8"), 0, "keep a part in fp32, as by --precision trunk=fp32,heads=int8"),
        (Precision(trunk="fp32", heads="int8"), 1000, "measure on all rows by --gate-rows 0"),
        (Precision(trunk="fp32", heads="int8"), 0, "allow more by --max-loss"),
        # There are no more rows than were measured.
        (Precision(trunk="fp32", heads="int8"), 2000, "allow more by --max-loss"),
    ],
)
def test_a_refusal_does_not_advise_what_was_asked_for(precision, rows, told):
    results = {"mood": GateResult(metric="accuracy", rows=1000, fp32=0.9, reduced=0.8, key="")}
    remedy = build_remedy(precision, GateRule(rows=rows), results)
    assert remedy.startswith(told)
    assert ("trunk=fp32" in remedy) == (precision.trunk == "int8")
    assert ("--gate-rows" in remedy) == (rows == 1000)
