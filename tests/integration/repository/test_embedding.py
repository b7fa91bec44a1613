"""An embedding goes the way of every head: built, checked, served from a repository, deployed, rolled back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel

from onetrunk.deploy import Deployer
from onetrunk.export.batches import padded_batches
from onetrunk.export.chain import Chain
from onetrunk.export.errors import ParityError
from onetrunk.nn.embedding import MeanHead
from onetrunk.protocol.ensemble_info import read_ensemble_info
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Precision, read_manifest
from onetrunk.protocol.names import Segment
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.repository.heads import load_head, make_embedding
from onetrunk.serving.repository import read_config

TEXTS = ["a good film", "no", "please turn on the red light in the house ! " * 3, "what music ?"]


@pytest.fixture(scope="module")
def built(tiny_heads, tiny_trunk_folder, tmp_path_factory) -> Path:
    """The tiny heads in groups, the deepest on tap 3 of 4, and an embedding at the last layer."""
    output = tmp_path_factory.mktemp("embedding") / "repository"
    build(output, tiny_heads, tiny_trunk_folder)
    return output


@pytest.fixture
def repository(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "repository")


def build(output, heads, trunk, **options):
    settings = {"embed": "last", "group_heads": True, "max_length": 32, **options}
    return build_repository(BuildRequest(output=output, heads=heads, trunk=trunk, **settings))


def info(repository, ensemble="multitask"):
    return read_ensemble_info(read_config(repository, ensemble, ensemble).parameters["onetrunk"].string_value)


def steps(repository):
    return {
        step.model_name: step for step in read_config(repository, "multitask", "multitask").ensemble_scheduling.step
    }


@pytest.mark.parametrize(("long_texts", "overlap"), [("cut", None), ("windows", 0.25)])
def test_long_texts_are_read_as_asked_and_a_build_says_what_is_cut(
    repository, tiny_heads, tiny_trunk_folder, long_texts, overlap
):
    report = build(repository, tiny_heads, tiny_trunk_folder, embed_long_texts=long_texts)
    task = info(repository).tasks["embedding"]
    assert (task.long_texts, task.window_overlap) == (long_texts, overlap)
    told = [note for note in report.notes if note.startswith("embeddings are those of the first 32 tokens")]
    assert len(told) == (long_texts == "cut")
    others = [note for note in report.notes if note.startswith("long texts are read in windows, but for")]
    assert len(others) == (long_texts == "windows")


def reference(trunk, texts, tap, max_length):
    """sentence-transformers' definition: the mean over the mask of transformers' own states, of length 1."""
    tokenizer = trunk.tokenizer()
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()
    rows = tokenizer.encode_batch(list(texts))
    ids, mask = (torch.tensor([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask"))
    model = BertModel.from_pretrained(trunk.folder, add_pooling_layer=False, attn_implementation="eager").eval()
    with torch.no_grad():
        state = model(ids, mask, output_hidden_states=True).hidden_states[tap]
    mean = (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=1).numpy()


def answered(trunk, repository, tap):
    """What the files answer in ONNX Runtime."""
    segments = {
        Segment(*map(int, path.name.split("_")[1:])): path / "1/model.onnx"
        for path in repository.glob("trunk_*")
        if int(path.name.split("_")[2]) <= tap
    }
    version = info(repository).tasks["embedding"].version
    chain = Chain(segments, {"embedding": repository / f"head_embedding/{version}/model.onnx"})
    spec = make_embedding(trunk, tap).spec
    return chain.scores(spec, list(padded_batches(trunk, TEXTS, (16, 32))))


def test_the_files_answer_as_sentence_transformers_defines_it(built, tiny_trunk):
    found = answered(tiny_trunk, built, 4)
    np.testing.assert_allclose(found, reference(tiny_trunk, TEXTS, 4, 32), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.05, "the texts differ"


def test_it_has_a_segment_of_its_own_and_is_in_no_group(built):
    task = info(built).tasks["embedding"]
    assert (task.kind, task.tap, task.layers, task.on_request) == ("embedding", 4, 0, True)
    assert task.labels is None
    assert task.width == 32
    assert "trunk_03_04" in steps(built)
    assert dict(steps(built)["head_embedding"].output_map) == {"embedding": "embedding"}
    assert "embedding" in info(built, "multitask_tokens").tasks
    assert not any(task.on_request for name, task in info(built).tasks.items() if name != "embedding")


def test_its_bundle_is_its_head_json_alone(built, tiny_trunk):
    folder = built / "head_embedding/1"
    values = json.loads((folder / "head.json").read_text())
    assert (values["kind"], values["layers"], values["labels"], values["query"]) == ("embedding", 0, None, "mean")
    bundle = load_head(folder, tiny_trunk, any_folder=True)
    assert bundle.weights == {}
    assert isinstance(bundle.head(tiny_trunk), MeanHead)


def test_a_second_build_writes_nothing_and_one_without_it_takes_it_out(repository, tiny_heads, tiny_trunk_folder):
    assert not build(repository, tiny_heads, tiny_trunk_folder).changed
    report = build(repository, tiny_heads, tiny_trunk_folder, embed=None)
    assert set(report.removed) == {"head_embedding", "trunk_03_04"}
    assert "embedding" not in info(repository).tasks


def test_at_a_tap_of_other_heads_it_shares_their_trunk(tmp_path, tiny_heads, tiny_trunk, tiny_trunk_folder):
    build(tmp_path / "out", tiny_heads, tiny_trunk_folder, tasks=["mood"], embed=3)
    assert "trunk_03_04" not in steps(tmp_path / "out")
    found = answered(tiny_trunk, tmp_path / "out", 3)
    np.testing.assert_allclose(found, reference(tiny_trunk, TEXTS, 3, 32), atol=1e-5)


def test_bundles_give_it_other_names_and_several(tmp_path, built, tiny_trunk_folder):
    heads = tmp_path / "heads"
    for name, tap in (("shallow", 0), ("sentence", 4)):
        write_bundle(heads / name, built, task=name, tap=tap)
    build(tmp_path / "out", heads, tiny_trunk_folder, embed=None)
    tasks = info(tmp_path / "out").tasks
    assert (tasks["shallow"].tap, tasks["sentence"].tap) == (0, 4)


def write_bundle(folder, built, **changes):
    values = json.loads((built / "head_embedding/1/head.json").read_text())
    folder.mkdir(parents=True)
    (folder / "head.json").write_text(json.dumps({**values, **changes}))
    return folder


def test_a_head_of_its_name_is_no_surprise(tmp_path, built, tiny_heads, tiny_trunk_folder):
    heads = tmp_path / "heads"
    write_bundle(heads / "embedding", built)
    shutil.copytree(tiny_heads / "topic", heads / "topic")
    with pytest.raises(UserError, match="has this name"):
        build(tmp_path / "out", heads, tiny_trunk_folder)
    build(tmp_path / "out", heads, tiny_trunk_folder, tasks=["topic"], embed=1)
    assert info(tmp_path / "out").tasks["embedding"].tap == 1
    build(tmp_path / "out", heads, tiny_trunk_folder, embed=None)
    assert info(tmp_path / "out").tasks["embedding"].tap == 4


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": 1}, "1 layers"),
        ({"layers": -1}, "layers"),
        ({"query": "cls"}, "'mean'"),
        ({"labels": ["a", "b"]}, "has no labels"),
        ({"range": [0, 1]}, "has no range"),
        ({"options": {"width": 3}}, "width"),
        ({"width": 64}, "width 64"),
        ({"tap": 5}, "tap 5"),
        ({"tap": 10**9}, "tap"),
        ({"trunk": "bert-4x32@000000000000"}, "trained on trunk"),
        ({"task": "token_count"}, "name of a tensor"),
    ],
)
def test_a_head_json_that_contradicts_itself_is_refused(tmp_path, built, tiny_trunk, changes, says):
    folder = write_bundle(tmp_path / "it", built, **changes)
    with pytest.raises(UserError, match=says) as refused:
        load_head(folder, tiny_trunk, any_folder=True)
    assert "\n" not in str(refused.value)


@pytest.mark.hostile
def test_weights_beside_it_are_refused(tmp_path, built, tiny_heads, tiny_trunk):
    folder = write_bundle(tmp_path / "embedding", built)
    shutil.copy(tiny_heads / "mood/head.safetensors", folder)
    with pytest.raises(UserError, match="no weights"):
        load_head(folder, tiny_trunk)


def test_a_trained_head_still_needs_layers(tmp_path, tiny_heads, tiny_trunk):
    folder = shutil.copytree(tiny_heads / "mood", tmp_path / "mood")
    values = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**values, "layers": 0}))
    with pytest.raises(UserError, match="0 layers"):
        load_head(folder, tiny_trunk)


def test_an_export_that_answers_otherwise_is_not_published(monkeypatch, tmp_path, tiny_heads, tiny_trunk_folder):
    monkeypatch.setattr(MeanHead, "forward_whole", lambda self, state, mask: state[:, 0])
    with pytest.raises(ParityError, match="head_embedding"):
        build(tmp_path / "out", tiny_heads, tiny_trunk_folder, tasks=["mood"])
    assert not (tmp_path / "out/multitask").exists()


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_in_fewer_bits_it_stays_as_it_is_and_its_cosine_is_judged(tmp_path, tiny_trunk_folder, built, dtype):
    write_bundle(tmp_path / "heads/embedding", built)
    report = build(
        tmp_path / "out",
        tmp_path / "heads",
        tiny_trunk_folder,
        embed=None,
        precision=Precision(trunk=dtype, heads=dtype),
        gate=GateSettings(max_loss=100),
        device="cpu",
    )
    manifest = read_manifest(tmp_path / "out")
    assert manifest.models["head_embedding"].versions[1].dtype == "fp32"
    assert manifest.models["trunk_00_04"].versions[1].dtype == dtype
    result = report.gate["embedding"]
    assert (result.metric, result.fp32) == ("cosine", pytest.approx(1, abs=1e-6))
    assert 0.9 < result.reduced < 1
    assert not build(
        tmp_path / "out",
        tmp_path / "heads",
        tiny_trunk_folder,
        embed=None,
        precision=Precision(trunk=dtype, heads=dtype),
        gate=GateSettings(max_loss=100),
    ).changed


def test_it_is_deployed_moved_rolled_back_and_removed(tiny_repository, tiny_trunk_folder, tiny_trunk, tmp_path):
    from onetrunk.deploy.operations import Embed

    repository = shutil.copytree(tiny_repository, tmp_path / "repository")
    deployer = Deployer(repository, url=None, trunk=tiny_trunk_folder)
    assert deployer.run(Embed("last")).to_version == 1
    np.testing.assert_allclose(answered(tiny_trunk, repository, 4), reference(tiny_trunk, TEXTS, 4, 32), atol=1e-5)
    assert deployer.run(Embed(0)).to_version == 2
    assert info(repository).tasks["embedding"].tap == 0
    deployer.rollback("embedding")
    assert (info(repository).tasks["embedding"].tap, info(repository).tasks["embedding"].version) == (4, 1)
    deployer.remove("embedding")
    assert "embedding" not in info(repository).tasks
    assert "trunk_03_04" not in steps(repository)
    assert deployer.deploy(repository / "head_embedding/1").to_version == 1
    assert deployer.verify() == []
    with pytest.raises(UserError, match="tap 5"):
        deployer.run(Embed(5))


def test_a_task_of_its_name_is_not_replaced(repository, tiny_trunk_folder, bundle):
    from onetrunk.deploy.operations import Embed

    deployer = Deployer(repository, url=None, trunk=tiny_trunk_folder)
    with pytest.raises(UserError, match="kind embedding"):
        deployer.deploy(bundle(task="embedding"))
    deployer.run(Embed("last"))
    assert info(repository).tasks["embedding"].kind == "embedding"
