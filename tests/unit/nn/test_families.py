"""Every family: Hugging Face's states at every tap, an exact fold, and exported files that compute the same."""

from typing import get_args

import pytest
import torch

from onetrunk.export.chain import open_session
from onetrunk.export.onnx_file import export_head, export_segment
from onetrunk.export.release import get_release
from onetrunk.nn.bundle import Bundle
from onetrunk.nn.embedding import embedding_spec
from onetrunk.nn.families import FAMILIES, find_family
from onetrunk.nn.head import empty_head, new_head
from onetrunk.nn.whole_model import new_whole_model
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.protocol.names import cut_trunk
from onetrunk.tasks.head_spec import HeadSpec
from tests.fixtures.families import SHAPES

RELEASE = get_release("24.10")
QUERIES = get_args(Query)
# A head on a tap whose own layers are the trunk's lowest, its highest, and some between.
PLACES = [(0, 1), (1, 2), (3, 1)]
EVERY_HEAD = [(query, *place) for query in QUERIES for place in PLACES]
# Each query once, and each place.
SOME_HEADS = [(query, *place) for query, place in zip(QUERIES, PLACES, strict=True)]


def tokens(trunk, batch=3, length=14):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, trunk.vocab_size, (batch, length), generator=generator)
    lengths = torch.tensor([length, length // 2, 3])[:batch]
    mask = (torch.arange(length) < lengths[:, None]).long()
    types = torch.zeros_like(ids)
    types[:, length // 3 :] = 1
    return torch.where(mask.bool(), ids, trunk.pad_token_id), types * mask, mask


def huggingface_states(folder, trunk, ids, types, mask):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    given = {"token_type_ids": types} if trunk.reads_types else {}
    with torch.no_grad():
        return model(ids, attention_mask=mask, output_hidden_states=True, **given).hidden_states


def make_head(trunk, query="cls", tap=1, layers=2, outputs=3):
    head = new_head(trunk, outputs=outputs, tap=tap, layers=layers, query=query).eval()
    if head.pool is not None:
        torch.nn.init.normal_(head.pool, std=0.5)
    return head


def make_spec(trunk, query="cls", tap=1, layers=2):
    return HeadSpec(
        task="mood",
        kind="classification",
        form="single",
        labels=("a", "b", "c"),
        tap=tap,
        layers=layers,
        query=query,
        trunk=trunk.identity,
        width=trunk.width,
        max_length=32,
        metric="accuracy",
        scores={},
        created="2026-01-01",
        onetrunk_version="0",
    )


def test_every_family_has_a_tiny_trunk():
    assert set(SHAPES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_at_every_tap_are_huggingfaces(family_folder, family_trunk, family):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk)
    expected = huggingface_states(family_folder(family), trunk, ids, types, mask)
    states = trunk.states(ids, types, mask, range(trunk.depth + 1))
    # After the last layer, Hugging Face norms the state if the layers only add to it; a tap is what they add to.
    closed = {**states, trunk.depth: trunk.shared.close(states[trunk.depth])}
    assert len(expected) == trunk.depth + 1
    for tap, state in closed.items():
        torch.testing.assert_close(state[mask.bool()], expected[tap][mask.bool()], atol=1e-6, rtol=1e-6)
    spread = states[trunk.depth][mask.bool()].std(dim=0)
    assert spread.min() > 1e-2, "the states of a random trunk hardly depend on the text"


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "eurobert"])
def test_an_embedding_is_the_mean_of_huggingfaces_last_state(family_folder, family_trunk, family):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk)
    last = huggingface_states(family_folder(family), trunk, ids, types, mask)[-1]
    head = Bundle(family_folder(family), embedding_spec(trunk), {}).head(trunk)
    expected = torch.stack([row[real.bool()].mean(dim=0) for row, real in zip(last, mask, strict=True)])
    found = head(trunk.states(ids, types, mask, [trunk.depth])[trunk.depth], mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_before_they_are_created(family_folder, family_trunk, family):
    import json

    trunk = family_trunk(family)
    config = json.loads((family_folder(family) / "config.json").read_text())
    created = sum(parameter.numel() for parameter in trunk.encoder._model.parameters())
    assert find_family(family).count_parameters(config) == created
    assert sum(parameter.numel() for parameter in trunk.parameters()) == created, "the trunk does not hold all of it"


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_head_equals_whole_head(family_trunk, family, query):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk, length=20)
    for tap, layers in PLACES:
        head = make_head(trunk, query, tap, layers)
        state = trunk.states(ids, types, mask, [tap])[tap]
        with torch.no_grad():
            folded, whole = head(state, mask), head.forward_whole(state, mask)
            torch.testing.assert_close(folded, whole, atol=2e-5, rtol=1e-5)
            assert not torch.allclose(folded[0], folded[1], atol=1e-3), "the head does not read the text"
            # A text alone, without padding, answers as in a batch.
            alone = head(state[1:2, :10], mask[1:2, :10])
            torch.testing.assert_close(alone, folded[1:2], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "heads", [pytest.param(SOME_HEADS, id="some"), pytest.param(EVERY_HEAD, id="every", marks=pytest.mark.exhaustive)]
)
def test_exported_chain_computes_the_same(family_trunk, tmp_path, family, heads):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk, batch=2, length=23)
    arrays = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": types.numpy()}
    expected = trunk.states(ids, types, mask, [0, 1, 3])
    for segment in cut_trunk({0, 1, 3}):
        path = tmp_path / f"{segment.name}.onnx"
        export_segment(trunk, segment, path, RELEASE)
        session = open_session(path, segment.name)
        names = [tensor.name for tensor in session.get_inputs()]
        assert set(names) == set(segment.inputs(token_types=trunk.reads_types))
        arrays[segment.output] = session.run(None, {name: arrays[name] for name in names})[0]
        found, state = torch.from_numpy(arrays[segment.output]), expected[segment.stop]
        # What layers only add to is not normed, and may be large.
        limit = 1e-5 * max(2.0, state.abs().max().item())
        torch.testing.assert_close(found[mask.bool()], state[mask.bool()], atol=limit, rtol=0)
    for query, tap, layers in heads:
        head, path = make_head(trunk, query, tap, layers), tmp_path / "head.onnx"
        export_head(head, make_spec(trunk, query, tap, layers), path, RELEASE)
        state = arrays[f"hidden_{tap:02d}"]
        feeds = {"hidden_state": state, "attention_mask": arrays["attention_mask"]}
        found = torch.from_numpy(open_session(path, "head").run(None, feeds)[0])
        with torch.no_grad():
            expected_scores = head(torch.from_numpy(state), mask).softmax(-1)
        torch.testing.assert_close(found, expected_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_restored_from_its_weights(family_trunk, family):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk)
    for tap, layers in PLACES:
        head = make_head(trunk, "learned", tap, layers)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        again = empty_head(trunk, outputs=3, tap=tap, layers=layers, query="learned")
        again.load_state_dict(head.state_dict())
        state = trunk.states(ids, types, mask, [tap])[tap]
        with torch.no_grad():
            assert torch.equal(again(state, mask), head(state, mask))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_head_learns_and_the_trunk_does_not(family_trunk, family):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk)
    before = {name: value.clone() for name, value in trunk.named_parameters()}
    head = make_head(trunk, "learned", tap=1, layers=2)
    state = trunk.states(ids, types, mask, [1])[1]
    targets = torch.tensor([0, 1, 2])
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(state, mask), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    without = {name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()}
    assert not {name for name in without if "key" not in name and ".k" not in name}
    assert all(torch.equal(value, before[name]) for name, value in trunk.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_encoder_reads_a_part_of_the_vocabulary_as_all_of_it(family_trunk, family):
    trunk = family_trunk(family)
    ids, types, mask = tokens(trunk)
    torch.manual_seed(0)
    whole = new_whole_model(trunk, outputs=2).eval()
    torch.manual_seed(0)
    reduced = new_whole_model(trunk, outputs=2, vocabulary=ids.unique()).eval()
    assert sum(p.numel() for p in reduced.parameters()) < sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        assert torch.equal(whole(ids, types, mask), reduced(ids, types, mask))
    whole(ids, types, mask).sum().backward()
    assert whole.embeddings.state_dict().keys() == trunk.embeddings.state_dict().keys()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in whole.embeddings.parameters())


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "mpnet"])
def test_positions_counted_from_the_padding_are_not_tokens(family_trunk, family):
    trunk = family_trunk(family)
    assert (trunk.pad_token_id, trunk.max_positions) == (1, 64)
    ids = torch.full((1, 64), 7)
    states = trunk.states(ids, None, torch.ones_like(ids), [0])[0]
    assert not torch.equal(states[0, -1], states[0, -2]), "the last token has a position of its own"
    with pytest.raises(IndexError):
        trunk.states(torch.full((1, 65), 7), None, torch.ones(1, 65, dtype=torch.long), [0])


@pytest.mark.parametrize(
    ("family", "values", "found"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "'relative_key'; allowed is 'absolute'"),
        ("bert", {"auto_map": {"AutoModel": "owner/code--modeling_bert.JinaBertModel"}}, "allowed is .*BertModel"),
        ("roberta", {"is_decoder": True}, "is_decoder"),
        ("distilbert", {"hidden_size": 48}, "dim and hidden_size"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "'yarn'"),
        ("gte", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "'linear'; allowed is 'default'"),
        ("nomic_bert", {"n_embd": 32}, "n_embd .*NomicBertModel"),
        ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size"),
        ("deberta-v2", {"relative_attention": False}, "relative_attention"),
        ("eurobert", {"num_key_value_heads": 3}, "num_key_value_heads is 3; allowed are divisors of .* 4"),
        ("roberta", {"pad_token_id": -3}, "pad_token_id is -3; allowed are ids from 0 to 49"),
    ],
)
def test_a_form_that_would_be_another_model_is_refused(family, values, found):
    with pytest.raises(ValueError, match=found) as raised:
        find_family(family).from_config({**SHAPES[family], "vocab_size": 50, **values})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [-1, 2**40, "many", 1.5])
def test_sizes_are_bounded_before_anything_is_created(family, size):
    numbers = {name: value for name, value in SHAPES[family].items() if type(value) is int and "token" not in name}
    small = {"position_buckets", "max_relative_positions", "local_attention"}
    for name in numbers.keys() - (small if size == -1 else {"local_attention"}):
        with pytest.raises(ValueError, match=name):
            find_family(family).count_parameters({**SHAPES[family], name: size})


def test_an_older_transformers_is_told(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.19.2")
    assert find_family("bert").family == "bert"
    with pytest.raises(UserError, match=r"'mpnet' needs transformers 5.20 or newer, and 5.19.2 is installed"):
        find_family("mpnet")
