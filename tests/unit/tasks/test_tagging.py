"""Spans as tags, and the CRF: against every sequence there is, and against a decoder written for reading."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score as seqeval_f1
from tokenizers import Tokenizer

from onetrunk.export.onnx_file import export_module
from onetrunk.export.precision import halve_file
from onetrunk.export.release import DEFAULT_RELEASE, get_release
from onetrunk.tasks.examples import Examples, in_windows, token_offsets
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.crf import TokenOutput, decode, negative_log_likelihood
from onetrunk.tasks.kinds.span_tags import bio_tags, forbidden_transitions, read_spans, spans_of, tag_indices
from onetrunk.tasks.metrics import span_f1, token_accuracy
from tests.fixtures.tokenizers import FORMS, tokenizer_json_of

TYPES = ("artist", "album")
KIND = get_kind("tagging")


def space(**options):
    return SimpleNamespace(labels=TYPES, range=None, options=options, fitted={})


def reference_viterbi(emissions, transitions):
    """The likeliest sequence, by trying each of them."""
    best = max(
        itertools.product(range(emissions.shape[1]), repeat=len(emissions)),
        key=lambda tags: score_of(emissions, transitions, tags),
    )
    return list(best)


def reference_chances(emissions, transitions, tags):
    """The probability of each of these tags, by adding up all sequences."""
    every = np.array(list(itertools.product(range(emissions.shape[1]), repeat=len(emissions))))
    scores = np.array([score_of(emissions.astype(np.float64), transitions, some) for some in every])
    weights = np.exp(scores - scores.max())
    return [weights[every[:, place] == tag].sum() / weights.sum() for place, tag in enumerate(tags)]


def score_of(emissions, transitions, tags):
    moves = zip((0, *tags), tags, strict=False)
    return sum(transitions[before, now] + emissions[place, now] for place, (before, now) in enumerate(moves))


def chains(count, tokens, tags, seed):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, tokens, tags)), 2 * draw.normal(size=(tags, tags))


def test_viterbi_finds_the_best_of_all_sequences():
    emissions, transitions = chains(6, 5, 4, 0)
    lengths = [5, 1, 3, 5, 2, 4]
    real = torch.tensor([[place < length for place in range(5)] for length in lengths])
    found = decode(torch.from_numpy(emissions), torch.from_numpy(transitions), real)[0].numpy()
    for row, length in enumerate(lengths):
        assert found[row, :length].tolist() == reference_viterbi(emissions[row, :length], transitions), row


def test_a_tags_probability_is_over_all_sequences():
    emissions, transitions = chains(3, 5, 4, 3)
    lengths = [5, 1, 3]
    real = torch.tensor([[place < length for place in range(5)] for length in lengths])
    found = decode(torch.from_numpy(emissions), torch.from_numpy(transitions), real)[1].numpy()
    for row, length in enumerate(lengths):
        expected = np.zeros((length, 4))
        for tags in itertools.product(range(4), repeat=length):
            expected[range(length), tags] += np.exp(score_of(emissions[row], transitions, tags))
        np.testing.assert_allclose(found[row, :length], expected / expected.sum(axis=1, keepdims=True), atol=1e-9)


def test_texts_without_tokens_and_tags_that_cannot_be_are_decoded():
    emissions, transitions = (torch.from_numpy(some).float() for some in chains(3, 4, 3, 7))
    real = torch.tensor([[True, True, False, False], [False] * 4, [True, False, False, False]])
    emissions[0, 1, 2] = -torch.inf
    tags, chances = decode(emissions, transitions, real)
    assert tags.shape == (3, 4)
    assert chances.shape == (3, 4, 3)
    assert chances[0, 1, 2] == 0
    torch.testing.assert_close(chances.sum(dim=2)[real], torch.ones(3))
    assert tags[0, 1] != 2
    for texts, tokens in ((0, 4), (2, 1)):
        tags, chances = decode(emissions[:texts, :tokens], transitions, real[:texts, :tokens])
        assert tags.shape == (texts, tokens)
        assert chances.shape == (texts, tokens, 3)


def test_likelihoods_of_all_sequences_sum_to_one():
    emissions, transitions = (torch.from_numpy(some) for some in chains(1, 4, 3, 1))
    total = sum(
        torch.exp(-negative_log_likelihood(emissions, transitions, torch.tensor([tags])))
        for tags in itertools.product(range(3), repeat=4)
    )
    assert total.item() == pytest.approx(1)


def test_likelihood_and_its_gradient_are_those_of_logarithms_of_sums():
    """Also where scores are so far apart that most sequences are next to impossible."""
    for factor in (1.0, 30.0):
        emissions, transitions = (factor * torch.from_numpy(some).float() for some in chains(3, 6, 5, 4))
        transitions[1, 2] = -1e4
        tags = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
        tags[:, 1:] = torch.where(tags[:, 1:] == 2, torch.zeros_like(tags[:, 1:]), tags[:, 1:])
        found = []
        for likelihood in (negative_log_likelihood, plain_likelihood):
            inputs = [emissions.clone().requires_grad_(), transitions.clone().requires_grad_()]
            value = likelihood(*inputs, tags)
            found.append([value, *torch.autograd.grad(value, inputs)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def plain_likelihood(emissions, transitions, tags):
    alpha = transitions[0] + emissions[:, 0]
    before, score = torch.zeros_like(tags[:, 0]), 0.0
    for step in range(tags.shape[1]):
        if step:
            alpha = torch.logsumexp(alpha[:, :, None] + transitions, dim=1) + emissions[:, step]
        now = tags[:, step]
        score = score + (transitions[before, now] + emissions[:, step].gather(1, now[:, None])[:, 0]).sum()
        before = now
    return torch.logsumexp(alpha, dim=1).sum() - score


def test_a_great_score_of_a_move_is_a_number_all_the_same():
    """Powers of e end at 88."""
    transitions, emissions, tags = torch.full((2, 2), 95.0), torch.zeros(1, 4, 2), torch.tensor([[0, 1, 0, 1]])
    found, plain = (some(emissions, transitions, tags) for some in (negative_log_likelihood, plain_likelihood))
    torch.testing.assert_close(found, plain)


def test_padding_changes_no_likelihood():
    emissions, transitions = (torch.from_numpy(some) for some in chains(2, 5, 3, 2))
    tags = torch.tensor([[0, 1, 2, -1, -1], [2, 2, 0, 1, 1]])
    together = negative_log_likelihood(emissions, transitions, tags)
    alone = negative_log_likelihood(emissions[:1, :3], transitions, tags[:1, :3])
    alone = alone + negative_log_likelihood(emissions[1:], transitions, tags[1:])
    torch.testing.assert_close(together, alone)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What is exported of a CRF head: raw outputs to tags and probabilities."""

    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.output = TokenOutput(4, len(bio_tags(TYPES)), transitions=True)
            torch.nn.init.normal_(self.output.transitions, std=2.0)

        def forward(self, raw):
            return KIND.output.scores(raw, space(), self.output)

    module, path = Scores().eval(), tmp_path_factory.mktemp("crf") / "crf.onnx"
    export_module(module, (torch.ones(2, 5, 5),), path, ["raw"], "scores", get_release(DEFAULT_RELEASE))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(raw):
        return session.run(None, {"raw": raw.astype(np.float32)})[0]

    run.path = path
    return module, run


@pytest.mark.parametrize("case", ["random", "ties", "forbidden is likeliest", "huge", "beyond all bounds", "padding"])
def test_the_exported_decoder_equals_the_reference(exported, case):
    module, run = exported
    draw = np.random.default_rng(3)
    raw = draw.normal(size=(4, 6, 5)).astype(np.float32)
    if case == "ties":
        raw = np.ones_like(raw)
    elif case == "forbidden is likeliest":
        raw[..., 2] += 9  # I- of one type everywhere, and then of the other: neither can follow what is before it
        raw[:, 3:, 4] += 18
    elif case == "huge":
        raw *= 1e3
    elif case == "beyond all bounds":
        raw *= 1e6
    elif case == "padding":
        raw[1, 2:], raw[2, 1:] = 0, 0
    found, forbidden = run(raw), forbidden_transitions(2)
    moves = np.where(forbidden, -np.inf, module.output.transitions.detach().numpy())
    for row, emissions in enumerate(raw):
        real = np.abs(emissions).sum(-1) > 0
        tags = found[row, real, 0].astype(int).tolist()
        expected = reference_viterbi(emissions[real].astype(np.float64), moves)
        # Equally good sequences may differ.
        scores = [score_of(emissions[real], moves, some) for some in (tags, expected)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)
        assert case == "ties" or tags == expected
        assert not any(forbidden[before, now] for before, now in zip((0, *tags), tags, strict=False))
        assert (found[row, ~real] == [-1, 0]).all()
        assert ((found[row, real, 1] >= 0) & (found[row, real, 1] <= 1)).all()
        if case not in ("huge", "beyond all bounds"):
            np.testing.assert_allclose(found[row, real, 1], reference_chances(emissions[real], moves, tags), atol=1e-5)


def test_an_exported_decoder_reads_any_number_of_tokens_and_texts(exported):
    module, run = exported
    for texts, tokens in ((1, 1), (1, 40), (3, 2)):
        raw = np.random.default_rng(tokens).normal(size=(texts, tokens, 5)).astype(np.float32)
        with torch.no_grad():
            np.testing.assert_allclose(run(raw), module(torch.from_numpy(raw)).numpy(), atol=1e-6)


@pytest.mark.parametrize("ahead", [0, 6])
def test_in_fp16_a_long_text_is_decoded_as_in_fp32(exported, tmp_path, ahead):
    """Where the best sequence is ahead by a little at each token, of sums that fp16 has no room for."""
    _, run = exported
    run_halved = halved(run, tmp_path)
    raw = np.random.default_rng(5).normal(size=(4, 512, 5)).astype(np.float32)
    raw += ahead * np.eye(5, dtype=np.float32)[run(raw)[..., 0].astype(int)]
    found, forbidden = run_halved(raw), forbidden_transitions(2)
    assert (found[..., 0] != run(raw)[..., 0]).mean() < 0.002
    for tags in found[..., 0].astype(int).tolist():
        assert not any(forbidden[before, now] for before, now in zip((0, *tags), tags, strict=False))


@pytest.mark.parametrize("spread", [1, 6, 10, 20])
def test_in_fp16_probabilities_are_those_of_fp32(exported, tmp_path, spread):
    """Also where most tags are next to impossible, which must not come back as likely as fp16's smallest number."""
    _, run = exported
    raw = spread * np.random.default_rng(0).normal(size=(4, 128, 5)).astype(np.float32)
    one, other = run(raw), halved(run, tmp_path)(raw)
    same = one[..., 0] == other[..., 0]
    assert same.mean() > 0.99
    np.testing.assert_allclose(other[same][:, 1], one[same][:, 1], atol=0.02)


def test_the_file_knows_what_is_impossible_as_torch_does(exported):
    module, run = exported
    raw = np.random.default_rng(0).normal(size=(4, 40, 5)).astype(np.float32)
    raw[:, ::3, 0] += 60
    raw[:, 1::3, 1] += 55
    with torch.no_grad():
        np.testing.assert_allclose(run(raw), module(torch.from_numpy(raw)).numpy(), atol=1e-5)


def test_an_exported_decoder_needs_no_operators_but_those_of_onnx(exported):
    _, run = exported
    assert {entry.domain for entry in onnx.load(run.path).opset_import} == {""}


def halved(run, folder):
    halve_file(run.path, folder / "fp16.onnx")
    session = onnxruntime.InferenceSession(str(folder / "fp16.onnx"), providers=["CPUExecutionProvider"])
    return lambda raw: session.run(None, {"raw": raw})[0]


@given(
    st.lists(st.sampled_from([None, "artist", "album"]), max_size=8), st.lists(st.booleans(), min_size=8, max_size=8)
)
@settings(max_examples=200, deadline=None)
def test_spans_come_back_from_tags_of_either_scheme(kinds, joined):
    spans = []
    for place, kind in enumerate(kinds):
        if kind and spans and joined[place] and spans[-1][1:] == (place - 1, kind):
            spans[-1] = (spans[-1][0], place, kind)
        elif kind:
            spans.append((place, place, kind))
    for scheme in ("BIO", "BILOU"):
        assert read_spans(written(spans, len(kinds), scheme), TYPES, scheme) == spans
    assert spans_of(tag_indices(len(kinds), spans, TYPES).tolist(), TYPES) == spans


def written(spans, count, scheme):
    tags = ["O"] * count
    for first, last, kind in spans:
        for place in range(first, last + 1):
            letter = "B" if place == first else "I"
            if scheme == "BILOU" and place == last:
                letter = "U" if place == first else "L"
            tags[place] = f"{letter}-{kind}"
    return tags


@pytest.mark.parametrize(
    ("tags", "scheme", "values"),
    [
        ("O I-artist", "BIO", ["tag 2:", "'I-artist'", "'O'", "B-artist"]),
        ("I-artist", "BIO", ["tag 1:", "'I-artist'", "beginning", "B-artist"]),
        ("B-artist I-album", "BIO", ["tag 2:", "'I-album'", "'B-artist'", "B-album"]),
        ("B-artist O", "BILOU", ["tag 1:", "B-artist", "'O'", "BILOU"]),
        ("O B-artist", "BILOU", ["tag 2:", "B-artist", "end", "BILOU"]),
        ("B-artist L-album", "BILOU", ["tag 1:", "B-artist", "'L-album'"]),
        ("B-poet", "BIO", ["tag 1:", "'B-poet'", "O, and B-..., I-...", "artist, album"]),
        ("U-artist", "BIO", ["tag 1:", "'U-artist'"]),
        ("artist", "BIO", ["tag 1:", "'artist'"]),
    ],
)
def test_impossible_tags_are_refused_with_their_place(tags, scheme, values):
    with pytest.raises(ValueError, match=r"^tag \d") as error:
        KIND.codec.encode(tags, space(scheme=scheme), " ".join("w" for _ in tags.split()))
    for value in values:
        assert value in str(error.value)


@pytest.mark.parametrize("tags", ["B-" + "x" * 999, "B-artist " + "x" * 999, "B-artist B-" + "x" * 999])
@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_long_tag_is_shortened_in_the_message(tags, scheme):
    with pytest.raises(ValueError, match="is not known; allowed are O, and ") as raised:
        KIND.codec.encode(tags, space(scheme=scheme), " ".join("w" for _ in tags.split()))
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("O", "labels of a tagging task are types of spans, such as artist; 'O' is a tag"),
        ("B-artist", "'B-artist' is a tag"),
        ("I-artist", "is a tag"),
        ("L-artist", "is a tag"),
        ("U-artist", "is a tag"),
        ("song name", "labels of a tagging task must not contain spaces; found 'song name'"),
        ("song\u00a0name", "must not contain spaces"),
        (" artist", "must not contain spaces"),
    ],
)
def test_labels_are_types_and_no_tags(label, message):
    with pytest.raises(ValueError, match=message):
        KIND.check(SimpleNamespace(labels=("artist", label), range=None, options={}, fitted={}))


@pytest.mark.parametrize("label", ["OUT", "Band", "B", "b-side", "sub-I-type", "\u6b4c"])
def test_labels_that_are_no_tags_are_types(label):
    KIND.check(SimpleNamespace(labels=("artist", label), range=None, options={}, fitted={}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", ""], "has '' as word 2: it is empty"),
        (["a b"], "has 'a b' as word 1: it is empty or contains a space"),
        (["a", 3], "has 3 as word 2"),
        (7, "is 7"),
    ],
)
def test_impossible_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        KIND.codec.read_text(words)


def test_words_and_tags_must_be_as_many():
    with pytest.raises(ValueError, match="2 tags for 3 words"):
        KIND.codec.encode(["O", "O"], space(), "one two three")


def test_every_piece_gets_the_tag_of_its_word(tiny_trunk):
    """`zyx` is no word of the tiny tokenizer, and falls into three pieces; `don't` into four at its apostrophe."""
    words, tags = ["play", "zyx", "zyx", "don't", "you"], ["O", "B-album", "I-album", "B-album", "B-artist"]
    text = KIND.codec.read_text(words)
    tokenizer = tiny_trunk.tokenizer()
    found = KIND.codec.targets([KIND.codec.encode(tags, space(), text)], space(), token_offsets(tokenizer, [text], 32))[
        0
    ]
    pieces = tokenizer.encode(text).tokens
    named = [bio_tags(TYPES)[number] for number in found[:, 0]]
    by_word = [[named[at] for at in range(len(pieces)) if found[at, 1] == word] for word in range(5)]
    assert by_word[0] == ["O"]
    assert by_word[1] == ["B-album", "I-album", "I-album"]
    assert by_word[2] == ["I-album"] * 3
    assert by_word[3][0] == "B-album"
    assert set(by_word[3][1:]) == {"I-album"}
    assert by_word[4] == ["B-artist"]
    assert (named[0], named[-1], found[0, 1], found[-1, 1]) == ("O", "O", -1, -1)


@pytest.mark.parametrize("gone", ["\ufffd", "\u200b", "\u0301"])
def test_a_span_begins_at_the_first_word_that_the_tokenizer_leaves(tiny_trunk, gone):
    """So that no sequence of the data is one that cannot be."""
    words, tags = ["play", gone, "zyx", "zyx", gone, "you", "you"], "O B-album I-album I-album B-album I-album B-album"
    text = KIND.codec.read_text(words)
    found = KIND.codec.targets(
        [KIND.codec.encode(tags, space(), text)], space(), token_offsets(tiny_trunk.tokenizer(), [text], 32)
    )[0]
    named = [bio_tags(TYPES)[number] for number, word in found if word >= 0]
    # `zyx` falls into three pieces.
    assert named == ["O", "B-album", *["I-album"] * 5, "B-album", "B-album"]


def test_what_is_cut_off_is_neither_learned_nor_measured(tiny_trunk):
    text = "play " * 50
    words = KIND.codec.encode(["B-album"] * 50, space(), text.strip())
    found = KIND.codec.targets([words], space(), token_offsets(tiny_trunk.tokenizer(), [text.strip()], 10))
    assert found.shape == (1, 10, 2)
    assert found[0, :, 1].tolist() == [-1, *range(8), -1]


def test_span_f1_is_that_of_seqeval():
    draw = np.random.default_rng(0)
    names = bio_tags(TYPES)
    tags = draw.integers(0, 5, size=(60, 9))
    answered = np.where(draw.random(tags.shape) < 0.7, tags, draw.integers(0, 5, size=tags.shape))
    targets = np.stack([tags, np.broadcast_to(np.arange(9), tags.shape)], axis=-1)
    found, wanted = ([[names[tag] for tag in row] for row in some] for some in (answered, tags))
    assert span_f1(answered, targets) == pytest.approx(seqeval_f1(wanted, found))
    assert token_accuracy(answered, targets) == pytest.approx((answered == tags).mean())


def test_spans_of_pieces_count_as_spans_of_their_words():
    """Two words of two pieces each; a span that begins in the middle of a word is that word's."""
    targets = np.array([[[0, -1], [1, 0], [2, 0], [2, 1], [2, 1], [0, -1]]])
    assert span_f1(np.array([[0, 1, 2, 2, 2, 0]]), targets) == 1
    assert span_f1(np.array([[0, 0, 1, 2, 2, 0]]), targets) == 1
    assert span_f1(np.array([[0, 1, 2, 0, 0, 0]]), targets) == 0
    assert span_f1(np.array([[3, 0, 0, 0, 0, 3]]), targets) == 0, "what is tagged at special tokens is no span"
    assert span_f1(np.array([[0, 1, 3, 4, 4, 0]]), targets) == 0, "a word is in one span, the first"
    assert token_accuracy(np.array([[0, 1, 0, 0, 2]]), targets) == 0.5


def test_a_likelier_sequence_has_a_smaller_loss_and_padding_none():
    output = TokenOutput(4, 5, transitions=True)
    targets = torch.tensor([[[0, -1], [1, 0], [2, 1], [-1, -1]]])
    raw = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]]), 5).float()
    good, bad = (KIND.training.loss(factor * raw, targets, output).item() for factor in (5.0, -5.0))
    assert 0 < good < 0.1 < bad
    softmax = KIND.training.loss(5 * raw, targets, TokenOutput(4, 5, transitions=False)).item()
    assert softmax == pytest.approx(-np.log(np.exp(5) / (np.exp(5) + 4)), abs=1e-5)


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        ([[0, 0.5], [4, 1], [-1, 0]], None),
        ([[5, 0.5]], "its tags are not numbers from 0 to 4, and -1 at padding"),
        ([[-2, 0.5]], "its tags are not numbers"),
        ([[0.5, 0.5]], "its tags are not numbers"),
        ([[1, 1.5]], "its scores are not probabilities from 0 to 1"),
        ([[1, float("nan")]], "NaN or infinity"),
    ],
)
def test_what_a_foreign_head_answers_is_checked(scores, fault):
    found = KIND.answers.fault(np.array([scores], dtype=np.float32), space())
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize("tag", [1.0, 2.0])
def test_a_difference_from_nan_is_nan(tag):
    expected = np.array([[[1.0, 0.5], [2.0, 0.5]]], dtype=np.float32)
    found = np.array([[[tag, 0.5], [2.0, np.nan]]], dtype=np.float32)
    assert np.isnan(KIND.answers.difference(found, expected, space()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("split", "overlap"), [("train", 0.25), ("dev", 0.0)])
def test_long_rows_are_taken_apart_into_windows_with_the_tags_of_their_words(form, split, overlap):
    text = "the film was very good and the music café " * 12
    words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    target = tuple((start, end, 1 if text[start:end] == "café" else 0) for start, end in words)
    rows = Examples("rows", (text, "café"), (target, ((0, 4, 1),)), "0")
    found = in_windows(
        rows, get_kind("tagging"), Tokenizer.from_str(tokenizer_json_of(form)), split=split, max_length=24,
        overlap=0.25,
    )  # fmt: skip
    assert (found.texts[-1], found.targets[-1]) == ("café", ((0, 4, 1),))
    assert len(found.texts) > 5
    assert f"1 of 2 {split} texts is longer than 24 tokens, and read in {len(found) - 1} windows" in found.notes
    seen = 0
    for part, tags in zip(found.texts, found.targets, strict=True):
        seen += len(tags)
        assert [part[start:end] for start, end, _ in tags] == part.split()
        assert [part[start:end] == "café" for start, end, _ in tags] == [tag == 1 for _, _, tag in tags]
    assert (seen == len(words) + 1) == (overlap == 0)
