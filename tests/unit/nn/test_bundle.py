"""Bundles: what is saved is loaded, and what is broken is refused before it is used."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from onetrunk.nn.bundle import card_text, load_bundle, save_bundle
from onetrunk.nn.head import new_head
from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.head_spec import find_bundles


@pytest.mark.parametrize("query", ["cls", "mean", "learned"])
def test_saved_head_answers_as_before_but_for_fp16(tiny_heads, tiny_trunk, tmp_path, query):
    spec = load_bundle(tiny_heads / "mood").spec.model_copy(update={"query": query})
    head = new_head(tiny_trunk, outputs=2, tap=spec.tap, layers=spec.layers, query=query).eval()
    if head.pool is not None:
        torch.nn.init.normal_(head.pool)
    save_bundle(tmp_path / "mood", spec, head)
    loaded = load_bundle(tmp_path / "mood")
    assert loaded.spec == spec
    state, mask = torch.randn(2, 5, tiny_trunk.width), torch.ones(2, 5, dtype=torch.long)
    with torch.no_grad():
        torch.testing.assert_close(loaded.head(tiny_trunk)(state, mask), head(state, mask), atol=5e-2, rtol=0)
    stored = load_file(tmp_path / "mood" / "head.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert ("pool" in stored) == (query == "learned")


def test_bundle_of_before_there_were_queries_is_one_of_cls(tiny_heads, tiny_trunk, tmp_path):
    shutil.copytree(tiny_heads / "mood", tmp_path / "mood")
    spec = json.loads((tmp_path / "mood" / "head.json").read_text())
    del spec["query"]
    (tmp_path / "mood" / "head.json").write_text(json.dumps(spec))
    bundle = load_bundle(tmp_path / "mood")
    assert bundle.spec == load_bundle(tiny_heads / "mood").spec
    assert (bundle.spec.query, bundle.head(tiny_trunk).query) == ("cls", "cls")


def test_saving_again_replaces_the_bundle_and_leaves_nothing_else(tiny_heads, tiny_trunk, tmp_path):
    spec = load_bundle(tiny_heads / "mood").spec
    for created in ("2026-01-01", "2026-01-02"):
        head = new_head(tiny_trunk, outputs=2, tap=spec.tap, layers=1)
        save_bundle(tmp_path / "mood", spec.model_copy(update={"created": created}), head)
    assert load_bundle(tmp_path / "mood").spec.created == "2026-01-02"
    assert [path.name for path in tmp_path.iterdir()] == ["mood"]
    assert sorted(path.name for path in (tmp_path / "mood").iterdir()) == ["README.md", "head.json", "head.safetensors"]


@pytest.mark.parametrize("there", ["a file of mine", "a file", "a link"])
def test_what_is_no_bundle_is_not_replaced(tiny_heads, tiny_trunk, tmp_path, there):
    place = tmp_path / "mood"
    if there == "a file of mine":
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    elif there == "a file":
        place.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    bundle, before = load_bundle(tiny_heads / "mood"), sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="mood is in the way: it "):
        save_bundle(place, bundle.spec, bundle.head(tiny_trunk))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tiny_heads, tiny_trunk, tmp_path):
    (tmp_path / "mood").mkdir()
    bundle = load_bundle(tiny_heads / "mood")
    save_bundle(tmp_path / "mood", bundle.spec, bundle.head(tiny_trunk))
    assert load_bundle(tmp_path / "mood").spec == bundle.spec


def test_card_says_what_it_answers(tiny_heads):
    assert "a pair of texts: a number from 0 to 5" in (tiny_heads / "grade" / "README.md").read_text()
    assert "one text: `film`, `house`, `music`" in (tiny_heads / "topic" / "README.md").read_text()


def test_card_says_a_query_that_is_not_cls(tiny_heads):
    spec = load_bundle(tiny_heads / "topic").spec
    assert "query" not in card_text(spec)
    assert "query of its last layer is the mean of the states" in card_text(spec.model_copy(update={"query": "mean"}))
    assert "a learned, weighted mean" in card_text(spec.model_copy(update={"query": "learned"}))


def test_other_trunk_is_refused(tiny_heads, tiny_trunk_folder, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(tiny_trunk_folder, copy)
    with (copy / "config.json").open("a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match=r"trained on trunk bert-4x32@\w+, but this trunk is bert-4x32@\w+"):
        load_bundle(tiny_heads / "mood").head(load_trunk(copy))


def edit_spec(**values):
    def change(folder):
        spec = json.loads((folder / "head.json").read_text())
        (folder / "head.json").write_text(json.dumps({**spec, **values}))

    return change


def edit_weights(edit):
    def change(folder):
        weights = load_file(folder / "head.safetensors")
        edit(weights)
        save_file(weights, folder / "head.safetensors")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_spec(kind="poetry"), "kind 'poetry' is not known; allowed are classification, regression"),
        (edit_spec(labels=["one"]), "labels needs at least two"),
        (edit_spec(labels=["a", "a"]), "all different"),
        (edit_spec(labels=["a", "b\nc"]), "line break"),
        (edit_spec(task="../evil"), "task"),
        (edit_spec(task="another"), "folder is named after its task"),
        (edit_spec(schema_version=9), "schema_version"),
        (edit_spec(surprise=1), "surprise"),
        (edit_spec(fitted={"temperature": 0}), "head.json: fitted.temperature must be .* found 0$"),
        (lambda folder: (folder / "head.json").write_text("[" * 9999), "not JSON"),
        (lambda folder: (folder / "head.json").write_text("[]"), "head.json"),
        (lambda folder: (folder / "head.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "head.json").unlink(), "not a bundle"),
        (lambda folder: (folder / "head.safetensors").unlink(), "no head.safetensors"),
        (lambda folder: (folder / "head.safetensors").write_bytes(b"\0" * 64), "broken"),
        (edit_weights(lambda weights: weights["output.bias"].fill_(float("nan"))), "output.bias contains NaN"),
        (edit_weights(lambda weights: weights.pop("output.bias")), "does not fit head.json"),
        (edit_spec(labels=["a", "b", "c"]), "does not fit head.json"),
        (edit_spec(layers=2), "found 2 layers of width 32 on tap 3; .* are 4 at most"),
        (edit_spec(tap=2, layers=2), "does not fit head.json"),
        (edit_spec(query="last"), "query: Input should be 'cls', 'mean' or 'learned'"),
        (edit_spec(query="learned"), "does not fit head.json: .*pool"),
    ],
)
def test_broken_bundle_is_refused_in_one_line(tiny_heads, tiny_trunk, tmp_path, change, message):
    shutil.copytree(tiny_heads / "mood", tmp_path / "mood")
    change(tmp_path / "mood")
    with pytest.raises(UserError, match=message) as raised:
        load_bundle(tmp_path / "mood").head(tiny_trunk)
    assert "\n" not in str(raised.value)


def test_missing_folder_of_heads_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder of heads"):
        find_bundles(tmp_path / "nothing")


def test_missing_heads_say_how_to_get_some(tmp_path):
    with pytest.raises(UserError) as raised:
        find_bundles(tmp_path / "heads")
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in (str(tmp_path / "heads"), "train-head", "--heads FOLDER", "checkout"))
