"""Every form in which an encoder is published loads as transformers loads it, or is refused in one line."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from onetrunk.nn.families.bert import BertEncoder
from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol.errors import UserError
from tests.conftest import VOCAB

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_trunk_folder, tmp_path):
    return shutil.copytree(tiny_trunk_folder, tmp_path / "trunk")


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def in_shards(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Replace the one file by two, and return the tensors of each."""
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    halves = [{name: weights[name] for name in list(weights)[part::2]} for part in range(2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, metadata={"format": "pt"})
    places = {tensor: name for name, half in zip(names, halves, strict=True) for tensor in half}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return halves


def zeros(tensors):
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def shards_beside_a_stale_one(folder):
    halves = in_shards(folder)
    save_file(zeros({**halves[0], **halves[1]}), folder / "model-00001-of-00003.safetensors")


def one_file_beside_a_stale_index(folder):
    whole = weights_of(folder)
    for half, name in zip(in_shards(folder), ("a", "b"), strict=True):
        save_file(zeros(half), folder / f"{name}.safetensors")
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def stored_as(dtype):
    def change(folder):
        weights = {name: tensor.to(dtype) for name, tensor in weights_of(folder).items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def as_bert_was_published(folder):
    """Names of 2018, as bert-base-uncased has them: a prefix, gamma and beta, and the heads of pre-training."""
    old = {}
    for name, tensor in weights_of(folder).items():
        for new, before in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            name = name.replace(new, before)
        old[f"bert.{name}"] = tensor
    heads = {"cls.predictions.bias": (len(VOCAB),), "cls.seq_relationship.weight": (2, 32)}
    heads |= {"bert.pooler.dense.weight": (32, 32), "bert.pooler.dense.bias": (32,)}
    old |= {name: torch.ones(shape) for name, shape in heads.items()}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", architectures=["BertForPreTraining"])


def as_a_classifier(folder):
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    model.save_pretrained(folder)


def with_one_token_type(folder):
    weights = weights_of(folder)
    weights["embeddings.token_type_embeddings.weight"] = weights["embeddings.token_type_embeddings.weight"][:1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", type_vocab_size=1)


def of_config(**values):
    return lambda folder: change_json(folder / "config.json", **values)


FORMS = {
    "one file": lambda folder: None,
    "one token type": with_one_token_type,
    "chunks of a feed-forward block": of_config(chunk_size_feed_forward=9),
    "names of a classifier's labels": of_config(num_labels=3, id2label={"0": "a", "1": "b", "2": "c"}),
    "shards": in_shards,
    "shards of other names": lambda folder: in_shards(folder, ("first.safetensors", "second.safetensors")),
    "shards beside a stale one": shards_beside_a_stale_one,
    "one file beside a stale index": one_file_beside_a_stale_index,
    "fp16": stored_as(torch.float16),
    "bf16": stored_as(torch.bfloat16),
    "published in 2018": as_bert_was_published,
    "a fine-tuned classifier": as_a_classifier,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_states_that_transformers_has(folder, form):
    from transformers import BertModel

    FORMS[form](folder)
    trunk = load_trunk(folder)
    ids = torch.randint(5, len(VOCAB), (2, 9), generator=torch.Generator().manual_seed(0))
    types, mask = torch.zeros_like(ids), torch.ones_like(ids)
    model = BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    states = trunk.states(ids, types, mask, [0, 4])
    for tap, state in states.items():
        assert state.dtype == torch.float32
        torch.testing.assert_close(state, expected[tap], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("form", "left_out"),
    [
        ("one file", []),
        ("published in 2018", ["cls.predictions.bias", "cls.seq_relationship.weight"]),
        ("a fine-tuned classifier", ["classifier.bias", "classifier.weight"]),
    ],
)
def test_a_head_that_is_left_out_is_named(folder, form, left_out):
    FORMS[form](folder)
    found = [name for note in load_trunk(folder).notes for name in re.findall(r"\bcl[\w.]+", note.partition(": ")[2])]
    assert sorted(found) == left_out


def test_the_identity_is_that_of_the_shards_which_the_index_names(folder):
    in_shards(folder)
    identity = load_trunk(folder).identity
    save_file({"zero": torch.zeros(1)}, folder / "model-00001-of-00003.safetensors")
    assert load_trunk(folder).identity == identity


# Refusals.


def change_index(change):
    def make(folder):
        in_shards(folder)
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")

    return make


def outside(folder):
    in_shards(folder)
    shutil.move(folder / "model-00001-of-00002.safetensors", folder.parent / "model.safetensors")
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace("model-00001-of-00002", "../model"), encoding="utf-8")


def lost_shard(folder):
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def lost_index(folder):
    in_shards(folder)
    (folder / INDEX).unlink()


def in_two_shards(folder):
    first, second = in_shards(folder)
    name = next(iter(first))
    save_file({**second, name: first[name]}, folder / "model-00002-of-00002.safetensors")


def large_index(folder):
    in_shards(folder)
    with (folder / INDEX).open("r+b") as stream:
        stream.truncate(2**40)


def pickled(folder):
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_model_type(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def third_token_type(folder):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace('"type_id": 1', '"type_id": 2'), encoding="utf-8")


def special_token_beyond(folder):
    # In the template of a single text alone.
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    post = tokenizer["post_processor"]
    post["special_tokens"]["[X]"] = {"id": "[X]", "ids": [9999], "tokens": ["[X]"]}
    post["single"][0]["SpecialToken"]["id"] = "[X]"
    change_json(folder / "tokenizer.json", post_processor=post)


def not_a_number(folder):
    weights = weights_of(folder)
    weights["encoder.layer.2.output.dense.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors")


def more_tokens(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": len(VOCAB), "content": "[NEW]", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    change_json(folder / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], {**token, **flags}])


def empty_map(folder):
    lost_index(folder)
    (folder / INDEX).write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (change_index(lambda places: places.update(extra="model-00001-of-00002.safetensors")), "extra"),
        (change_index(lambda places: places.update(extra=3)), "'3'"),
        (change_index(lambda places: places.update(extra="/etc/x.safetensors")), "/etc/x.safetensors"),
        (change_index(dict.clear), "weight_map"),
        (empty_map, "weight_map"),
        (outside, "../model.safetensors"),
        (lost_shard, "model-00002-of-00002.safetensors"),
        (lost_index, INDEX),
        (in_two_shards, "model-00002-of-00002.safetensors"),
        (large_index, "1,099,511,627,776 bytes"),
        (pickled, "pytorch_model.bin"),
        (without_model_type, "no model_type"),
        (of_config(model_type=["bert"]), "['bert']"),
        (of_config(transformers_weights="x.safetensors"), "transformers_weights"),
        (of_config(num_attention_heads=5), "bert encoder"),
        (of_config(num_labels=10**9), "num_labels is 1000000000; allowed are 0 to"),
        (of_config(num_labels="many"), "num_labels is 'many'"),
        (of_config(pad_token_id=-1), "pad_token_id is -1; allowed are ids from 0 to"),
        (of_config(pad_token_id=len(VOCAB)), f"pad_token_id is {len(VOCAB)}; allowed"),
        (of_config(pad_token_id="0"), "pad_token_id is '0'"),
        (special_token_beyond, "id 9999 ('a special token')"),
        (not_a_number, "not finite"),
        (third_token_type, "token type 2"),
        (more_tokens, f"id {len(VOCAB)} ('[NEW]')"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_cannot_be_loaded_is_refused_in_one_line(folder, make, found):
    make(folder)
    with pytest.raises(UserError) as raised:
        load_trunk(folder)
    message = str(raised.value)
    assert "\n" not in message
    assert str(folder) in message
    assert found in message


@pytest.mark.parametrize(
    ("family", "changes", "found"),
    [
        ("modernbert", {"local_attention": -4}, "key local_attention: found -4: input should be greater"),
        ("modernbert", {"local_attention": 0}, "key local_attention: found 0: input should be greater"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "key global_attn_every_n_layers: found 0: input should be"),
        ("modernbert", {"layer_types": "x"}, "made of it: Validation error for field 'layer_types': "),
        ("roberta", {"pad_token_id": None}, "pad_token_id is null; positions are counted from it"),
    ],
)
def test_a_number_that_no_encoder_can_have_is_named_with_what_is_wrong(family_folder, tmp_path, family, changes, found):
    folder = shutil.copytree(family_folder(family), tmp_path / "trunk")
    change_json(folder / "config.json", **changes)
    with pytest.raises(UserError) as raised:
        load_trunk(folder)
    message = str(raised.value)
    assert found in message
    assert "\n" not in message
    assert not message.rstrip().endswith(":")


@pytest.mark.parametrize("family", ["electra", "albert", "nomic_bert"])
def test_a_token_type_without_an_embedding_is_refused_in_every_family(family_folder, tmp_path, family):
    folder = shutil.copytree(family_folder(family), tmp_path / "trunk")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(re.sub(r'"type_id": ?1', '"type_id":3', text), encoding="utf-8")
    with pytest.raises(UserError, match=r"token type 3 .* types 0 to 1"):
        load_trunk(folder)


def test_what_fails_only_when_it_runs_is_told_when_a_trunk_is_loaded(folder, monkeypatch):
    def broken(*states):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)\nat some place")

    monkeypatch.setattr(BertEncoder, "run_layer", broken)
    with pytest.raises(UserError, match=r"the encoder cannot read a text: The size of tensor a \(3\) .* b \(4\)$"):
        load_trunk(folder)


def test_the_command_in_the_message_converts_a_pickle(folder):
    before = load_trunk(folder).states(*[torch.ones(1, 4, dtype=torch.long)] * 3, [4])[4]
    pickled(folder)
    with pytest.raises(UserError) as raised:
        load_trunk(folder)
    code = re.search(r'python -c "(.*)"', str(raised.value))
    exec(code[1], {})
    after = load_trunk(folder).states(*[torch.ones(1, 4, dtype=torch.long)] * 3, [4])[4]
    torch.testing.assert_close(before, after)
