"""What a comparison keeps: only whole, and only as long as the same code would make it again."""

import shutil

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.compare import kept, shapes, whole_models
from benchmarks.compare.kept import kept_folder, whole_folder
from benchmarks.compare.whole_models import WholeModel, empty_file, single_file, token_inputs, write_repository
from onetrunk.protocol.errors import OneTrunkError
from tests.fixtures.stand_ins import stand_in


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def root(tmp_path):
    for source in kept._SOURCES:
        (tmp_path / "root" / source).mkdir(parents=True)
    (tmp_path / "root" / "builder/onetrunk/nn/trunk.py").write_text("layers = 12")
    return tmp_path / "root"


def test_what_is_kept_is_deleted_when_the_code_changes(root, tmp_path):
    work = tmp_path / "work"
    folder = kept_folder(work, root)
    (folder / "model.onnx").touch()
    (work / "results").mkdir()
    assert kept_folder(work, root) == folder
    assert (folder / "model.onnx").exists()
    (root / "builder/onetrunk/nn/trunk.py").write_text("layers = 6")
    changed = kept_folder(work, root)
    assert sorted(work.iterdir()) == sorted([changed, work / "results"])
    assert not any(changed.iterdir())


def test_another_version_of_a_library_is_another_folder(root, tmp_path, monkeypatch):
    folder = kept_folder(tmp_path / "work", root)
    monkeypatch.setattr(onnx, "__version__", "0.0")
    assert kept_folder(tmp_path / "work", root) != folder


def test_sources_are_where_they_are_looked_for():
    assert all(any((kept.ROOT / source).glob("*.py")) for source in kept._SOURCES)


def test_a_folder_that_cannot_be_made_is_named(root, tmp_path):
    (tmp_path / "work").touch()
    with pytest.raises(OneTrunkError, match=r"made_.* cannot be written"):
        kept_folder(tmp_path / "work", root)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def half():
        with whole_folder(tmp_path / "trunk") as aside:
            (aside / "half").touch()
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not (tmp_path / "trunk").exists()
    with whole_folder(tmp_path / "trunk") as aside:
        (aside / "whole").touch()
    assert [file.name for file in (tmp_path / "trunk").iterdir()] == ["whole"]
    assert [file.name for file in tmp_path.iterdir()] == ["trunk"]


def test_a_trunk_that_was_not_finished_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "_BASE", {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8})
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "shutil", stand_in(shutil, copyfile=interrupt))
        with pytest.raises(KeyboardInterrupt):
            shapes.distil_trunk(tmp_path)
    names = {file.name for file in shapes.distil_trunk(tmp_path).iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_half_an_exported_file_is_not_kept(tiny_trunk, tmp_path, monkeypatch):
    file = tmp_path / "files" / "single.onnx"

    def export(trunk, head, spec, path, release):
        path.write_bytes(b"half")
        interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(whole_models, "export_single", export)
        with pytest.raises(KeyboardInterrupt):
            single_file(tiny_trunk, "task", file)
    assert not any(file.parent.iterdir())
    single_file(tiny_trunk, "task", file)
    onnx.checker.check_model(file)


def test_a_file_made_anew_leaves_the_links_to_the_old_one_alone(tmp_path):
    empty_file("old", tmp_path / "model.onnx")
    (tmp_path / "linked.onnx").hardlink_to(tmp_path / "model.onnx")
    empty_file("new", tmp_path / "model.onnx")
    names = [onnx.load(tmp_path / name).graph.output[0].name for name in ("linked.onnx", "model.onnx")]
    assert names == ["old", "new"]


@pytest.mark.parametrize(("family", "inputs"), [("bert", 3), ("mpnet", 2)])
def test_whole_models_have_token_types_only_if_the_trunk_reads_them(family_trunk, tmp_path, family, inputs):
    trunk, file = family_trunk(family), tmp_path / "model.onnx"
    single_file(trunk, "task", file)
    names = [tensor.name for tensor in onnx.load(file).graph.input]
    assert set(token_inputs(trunk)) == set(names)
    write_repository(tmp_path / "repository", trunk, [WholeModel("whole", file, {"task": 2}, 1)], 32)
    config = text_format.Parse((tmp_path / "repository/whole/config.pbtxt").read_text(), ModelConfig())
    assert [tensor.name for tensor in config.input] == list(token_inputs(trunk))
    ensemble = text_format.Parse((tmp_path / "repository/multitask/config.pbtxt").read_text(), ModelConfig())
    tokenizer, whole = ensemble.ensemble_scheduling.step
    assert len(names) == inputs
    assert set(tokenizer.output_map.values()) == set(whole.input_map.values())


def test_every_folder_that_what_is_kept_depends_on_exists():
    for source in kept._SOURCES:
        assert list((kept.ROOT / source).rglob("*.py")), source
