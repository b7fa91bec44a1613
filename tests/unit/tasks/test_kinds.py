"""Kinds: labels in, numbers for the loss; raw outputs in, scores for a user."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from onetrunk.nn.bundle import card_text
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.classification import calibration_error

SENTIMENT = SimpleNamespace(labels=("negative", "positive"), range=None, options={}, fitted={})
SIMILARITY = SimpleNamespace(labels=None, range=(1.0, 5.0), options={}, fitted={})


def test_classification():
    kind = get_kind("classification")
    assert kind.output.num_outputs(SENTIMENT) == 2
    assert kind.codec.encode("positive", SENTIMENT) == 1
    scores = kind.output.scores(torch.tensor([[0.0, 1.0986123]]), SENTIMENT)
    torch.testing.assert_close(scores, torch.tensor([[0.25, 0.75]]))
    # -log(0.75), by hand
    assert kind.training.loss(torch.tensor([[0.0, 1.0986123]]), torch.tensor([1])).item() == pytest.approx(
        0.2876821, abs=1e-6
    )


def test_classification_reads_labels_as_they_are_written():
    assert get_kind("classification").codec.encode(1, SimpleNamespace(labels=("0", "1"), range=None)) == 1


def test_regression():
    kind = get_kind("regression")
    assert kind.output.num_outputs(SIMILARITY) == 1
    assert kind.codec.encode("2", SIMILARITY) == 0.25
    assert kind.output.scores(torch.tensor([[0.25]]), SIMILARITY).item() == 2.0
    assert kind.training.loss(torch.tensor([[0.5], [1.0]]), torch.tensor([0.0, 1.0])).item() == pytest.approx(0.125)


@pytest.mark.parametrize("label", ["good", "", None, 3])
def test_unknown_label_names_the_known_ones(label):
    with pytest.raises(ValueError, match="not one of: negative, positive"):
        get_kind("classification").codec.encode(label, SENTIMENT)


@pytest.mark.parametrize("label", ["x", None, 0.99, 5.01, float("nan"), float("inf"), True])
def test_number_out_of_range_names_the_range(label):
    with pytest.raises(ValueError, match="not a number from 1 to 5"):
        get_kind("regression").codec.encode(label, SIMILARITY)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match="allowed are classification, regression"):
        get_kind("poetry")


TOPICS = SimpleNamespace(labels=("film", "music", "light"), range=None, options={}, fitted={})


def test_multilabel():
    kind = get_kind("multilabel")
    assert kind.output.num_outputs(TOPICS) == 3
    encoded = [kind.codec.encode(label, TOPICS) for label in (["light", "film"], [], "music|light", "", '["film"]')]
    assert encoded == [(0, 2), (), (1, 2), (), (0,)]
    assert kind.codec.targets(encoded[:3], TOPICS).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]
    assert kind.codec.unused_labels(encoded[:2], TOPICS) == ["music"]
    # The mean of -log(0.75), -log(0.5), -log(0.75), by hand.
    raw = torch.tensor([[1.0986123, 0.0, -1.0986123]])
    loss = kind.training.loss(raw, torch.tensor([[1.0, 1.0, 0.0]]))
    assert loss.item() == pytest.approx((2 * 0.2876821 + 0.6931472) / 3, abs=1e-6)
    torch.testing.assert_close(kind.output.scores(raw, TOPICS), torch.tensor([[0.75, 0.5, 0.25]]))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["film", "poetry"], "label 'poetry' is not one of: film, music, light"),
        ("film|film", "label .* has one twice"),
        ({"film": 1}, r"label .* is not a list of labels, nor a text with \| between them"),
        (3, "is not a list"),
        ({"film": "x" * 999}, "is not a list"),
        ("[" * 3000, r"label '\[\[.* is not one of: film, music, light"),
        (f"[{'1' * 5000}]", r"label '\[11.* is not one of"),
        ("poetry" * 999, "label 'poetry.* is not one of"),
        (["poetry" * 999], "label 'poetry.* is not one of"),
    ],
)
def test_impossible_labels_are_refused(label, message):
    with pytest.raises(ValueError, match=message) as raised:
        get_kind("multilabel").codec.encode(label, TOPICS)
    assert len(str(raised.value)) < 150


def test_thresholds_are_those_of_the_best_f1_of_each_label():
    """Against every threshold there could be, on scores with ties."""
    kind, draw = get_kind("multilabel"), np.random.default_rng(0)
    raw = torch.from_numpy(draw.normal(size=(80, 3)).round(1)).float()
    targets = (raw.numpy() + draw.normal(size=(80, 3)) > 0.7).astype(np.float32)
    targets[:, 2] = 0
    fitted = SimpleNamespace(
        labels=TOPICS.labels, range=None, options={}, fitted=kind.training.fit_on_dev(raw, targets, TOPICS)
    )
    scores = kind.output.scores(raw, TOPICS).numpy()
    decided = kind.answers.predictions(scores, fitted) >= 0
    for label in (0, 1):
        held = targets[:, label]
        best = max(f1_score(held, scores[:, label] >= score) for score in scores[:, label])
        assert f1_score(held, decided[:, label]) == pytest.approx(best)
    assert fitted.fitted["thresholds"][2] == 0.5, "of a label that never occurs nothing is known"


@pytest.mark.parametrize(
    ("held", "others"),
    [
        ([-11.0], [-13.0, -13.5, -14.0]),
        ([11.0, 12.0], [10.5, 10.4]),
        ([0.00004], [0.0, -0.00002]),
        ([30.0, 40.0], [10.0, -40.0]),
        ([-12.0], [-120.0, -130.0]),
    ],
)
def test_a_threshold_lies_between_the_scores_that_it_divides(held, others):
    """As another runtime serves them, too, whose sigmoid in float32 is another."""
    kind, one = get_kind("multilabel"), space(labels=("rare",))
    raw = torch.tensor([*held, *others])[:, None]
    targets = np.array([1] * len(held) + [0] * len(others), dtype=np.float32)[:, None]
    one.fitted = kind.training.fit_on_dev(raw, targets, one)
    assert 0 < one.fitted["thresholds"][0] < 1
    scores = kind.output.scores(raw, one).numpy()
    for error in (-2e-7, 0.0, 2e-7):
        assert ((kind.answers.predictions(scores + np.float32(error), one) >= 0) == targets).all()


@pytest.mark.parametrize(
    ("raw", "held"),
    [([-120.0, -130.0], [1, 0]), ([-16.0, -17.0, -18.0], [1, 0, 1]), ([-120.0], [1])],
)
def test_scores_that_are_the_same_when_served_are_not_divided(raw, held):
    one = space(labels=("rare",))
    fitted = get_kind("multilabel").training.fit_on_dev(
        torch.tensor(raw)[:, None], np.array(held, np.float32)[:, None], one
    )
    assert fitted == {"thresholds": [0.5]}


def test_saturated_scores_are_taken_together():
    """Three scores that are 1 in float32, then one far below: the threshold is between those, not among the three."""
    one = space(labels=("sure",))
    fitted = get_kind("multilabel").training.fit_on_dev(
        torch.tensor([[30.0], [20.0], [18.0], [0.0]]), np.array([[1], [0], [1], [0]], np.float32), one
    )
    assert fitted == {"thresholds": [0.75]}


def space(labels=("a", "b", "c"), options=None, fitted=None):
    return SimpleNamespace(labels=labels, range=None, options=options or {}, fitted=fitted or {})


@pytest.mark.parametrize(
    ("kind", "fitted", "message"),
    [
        ("multilabel", {"thresholds": [0.5]}, "fitted has 1 thresholds for 3 labels"),
        ("multilabel", {"thresholds": []}, "fitted has 0 thresholds for 3 labels"),
        *(
            ("multilabel", {"thresholds": wrong}, "fitted.thresholds must be numbers above 0 and below 1; found ")
            for wrong in (5, None, "abc", {"a": 0.5}, ["a"] * 3, [0.5, 0.5, 0], [1, 0.5, 0.5], [True] * 3, [np.nan] * 3)
        ),
        *(
            ("classification", {"temperature": wrong}, "fitted.temperature must be a number from 0.1 to 10; found ")
            for wrong in ("x", None, 0, -1, 1e-30, 11, True, [1.0], float("nan"), float("inf"), 10**400)
        ),
        *(
            ("classification", {"entropy_power": wrong}, "fitted.entropy_power must be a number from 0 to 2; found ")
            for wrong in ("x", None, -0.1, 2.1, True, float("nan"), 10**400)
        ),
    ],
)
def test_what_no_fit_comes_to_is_refused(kind, fitted, message):
    with pytest.raises(ValueError, match=message) as raised:
        get_kind(kind).check(space(fitted=fitted))
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("kind", "fitted"),
    [
        ("multilabel", {"thresholds": [0.5, 1e-6, 1 - 1e-6]}),
        ("classification", {"temperature": 10}),
        ("classification", {"temperature": 1.5, "entropy_power": 2}),
        ("multilabel", {}),
    ],
)
def test_what_a_fit_may_come_to_is_not(kind, fitted):
    get_kind(kind).check(space(fitted=fitted))


def test_balanced_weights_make_every_label_count_alike():
    targets = np.array([0] * 6 + [1] * 3 + [3])
    weights = get_kind("classification").training.row_weights(targets, space("abcd", {"class_weights": "balanced"}))
    assert [weights[targets == label].sum() for label in (0, 1, 3)] == pytest.approx([10 / 3] * 3)


def test_weights_of_labels_weigh_their_rows():
    kind, targets = get_kind("classification"), np.array([0, 1])
    weights = kind.training.row_weights(targets, space(options={"class_weights": {"b": 3.0}}))
    assert weights.tolist() == [1, 3]
    assert kind.training.row_weights(targets, space()) is None
    # (1 * -log(0.75) + 3 * -log(0.25)) / 4, by hand
    raw, labels = torch.tensor([[1.0986123, 0.0]] * 2), torch.tensor([0, 1])
    loss = kind.training.loss(raw, labels, weights=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((0.2876821 + 3 * 1.3862944) / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classification", {"class_weights": {"d": 1}}, "options.class_weights names d, which labels does not have"),
        ("classification", {"class_weights": {"a": 0}}, r"options.class_weights.* greater than 0 \(found 0\)"),
        *(
            ("classification", {"class_weights": wrong}, "weights: must be 'balanced', or a table of labels as in")
            for wrong in ("some", [1, 2], 3, True)
        ),
        ("classification", {"class_weights": {"a": True}}, r"options.class_weights.a: .* valid number \(found True\)"),
        ("classification", {"class_weights": {"a": "3"}}, r"options.class_weights.a: .* valid number \(found '3'\)"),
        ("classification", {"none_below": "0.5"}, r"options.none_below: .* valid number \(found '0.5'\)"),
        ("classification", {"none_below": True}, r"options.none_below: .* valid number \(found True\)"),
        ("classification", {"none_below": 1 / 3}, "options.none_below = 0.333333 has no effect: the likeliest of 3"),
        ("classification", {"none_below": 1.5}, r"options.none_below: .* less than 1 \(found 1.5\)"),
        (
            "classification",
            {"wights": 1},
            "options has wights .*class_weights.*; allowed for this kind: class_weights, none_below",
        ),
        ("multilabel", {"none_below": 0.5}, "options has none_below; allowed for this kind: none"),
    ],
)
def test_impossible_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        get_kind(kind).check(space(options=options))


def test_temperature_makes_an_overconfident_head_calibrated():
    """Labels drawn from the very probabilities, and raw outputs three times as far apart as they should be."""
    draw, kind = np.random.default_rng(0), get_kind("classification")
    true = torch.from_numpy(draw.normal(size=(4000, 3))).float()
    chances = torch.softmax(true, -1).numpy()
    targets = np.array([draw.choice(3, p=row / row.sum()) for row in chances.astype(np.float64)])
    fitted = kind.training.fit_on_dev(3 * true, targets, space())
    assert fitted["temperature"] == pytest.approx(3, rel=0.1)
    error = fitted["calibration_error"]
    assert error["before"] > 0.15 > 0.03 > error["after"]
    torch.testing.assert_close(
        kind.output.scores(3 * true, space(fitted={"temperature": 3.0})), torch.softmax(true, -1)
    )


def fit_to_drawn(seed, rows, spread, temperature):
    """Fit to labels that are drawn from probabilities which follow the entropy; return raw outputs and these, too."""
    draw, kind = np.random.default_rng(seed), get_kind("classification")
    raw = torch.from_numpy(spread * draw.normal(size=(rows, 3))).float()
    true = space(fitted={"temperature": temperature, "entropy_power": 0.6})
    chances = kind.output.scores(raw, true).double().numpy()
    targets = np.array([draw.choice(3, p=row / row.sum()) for row in chances])
    return kind.training.fit_on_dev(raw, targets, space()), raw, chances


def test_a_temperature_follows_the_entropy_where_labels_do():
    """Labels drawn from probabilities that are surer where the head is sure, and less sure elsewhere."""
    kind, true = get_kind("classification"), space(fitted={"temperature": 1.6, "entropy_power": 0.6})
    fitted, raw, chances = fit_to_drawn(1, 4000, 2, 1.6)
    assert fitted["temperature"] == pytest.approx(1.6, rel=0.1)
    assert fitted["entropy_power"] == pytest.approx(0.6, rel=0.2)
    error = fitted["calibration_error"]
    assert error["before"] > 0.03 > error["after"]
    assert 0.005 < error["by_chance"] < 0.02
    found = kind.output.scores(raw, space(fitted=fitted))
    assert torch.equal(found.argmax(dim=1), raw.argmax(dim=1))
    np.testing.assert_allclose(found.numpy(), chances, atol=0.05)
    # By hand: of two labels at odds of e to 1.
    odds = np.exp(1.0) / (1 + np.exp(1.0))
    entropy = -(odds * np.log(odds) + (1 - odds) * np.log(1 - odds)) / np.log(2)
    (row,) = kind.output.scores(
        torch.tensor([[1.0, 0.0]]), space("ab", fitted={"temperature": 2, "entropy_power": 0.5})
    )
    assert row[0].item() == pytest.approx(1 / (1 + np.exp(-1 / (2 * np.sqrt(entropy)))), abs=1e-6)
    # Raw outputs that are as far apart as can be do not overflow.
    sure = torch.tensor([[3e4, -3e4, 0.0], [0.0, 0.0, 0.0]])
    assert torch.isfinite(kind.output.scores(sure, true)).all()


def test_a_well_calibrated_head_has_the_error_of_chance():
    draw, kind = np.random.default_rng(0), get_kind("classification")
    true = torch.from_numpy(draw.normal(size=(1000, 3))).float()
    targets = np.array([draw.choice(3, p=row / row.sum()) for row in torch.softmax(true.double(), -1).numpy()])
    fitted = kind.training.fit_on_dev(true, targets, space())
    assert "entropy_power" not in fitted, "one temperature does"
    error = fitted["calibration_error"]
    assert abs(error["after"] - error["by_chance"]) < 0.015


def test_a_few_sure_rows_are_no_reason_to_follow_the_entropy():
    """Calibrated heads, nearly always surely right: what a power gains on these rows, a wrong one takes back."""
    kept = 0
    for seed in range(12):
        draw = np.random.default_rng(seed)
        gaps = (5 + 2.5 * draw.normal(size=200)) * draw.choice([-1, 1], size=200)
        targets = (draw.random(200) < 1 / (1 + np.exp(-gaps))).astype(np.int64)
        raw = torch.from_numpy(np.stack([np.zeros(200), gaps], axis=1)).float()
        kept += "entropy_power" in get_kind("classification").training.fit_on_dev(raw, targets, space("ab"))
    assert kept <= 1


def test_calibration_error_by_hand():
    """Two rows sure by 0.9, of which one is right, and one by 0.6 that is: (|1.8 - 1| + |0.6 - 1|) / 3."""
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert calibration_error(chances, np.array([0, 1, 1])) == pytest.approx(1.2 / 3)


HEAD = HeadSpec(
    task="mood", kind="classification", form="single", labels=("bad", "good"), tap=1, layers=1, trunk="t", width=8,
    max_length=8, metric="accuracy", scores={}, created="", onetrunk_version="0", options={"none_below": 0.6},
    fitted={"temperature": 1.3, "calibration_error": {"before": 0.08, "after": 0.02}},
)  # fmt: skip


def test_a_card_tells_what_was_fitted():
    card = card_text(HEAD)
    assert "- temperature: 1.3\n- calibration error: before 0.08, after 0.02\n" in card
    assert "- none below: 0.6" in card
    several = HEAD.model_copy(update={"kind": "multilabel", "options": {}, "fitted": {"thresholds": [0.3, 0.6]}})
    assert "- thresholds: bad 0.3, good 0.6\n" in card_text(several)


@pytest.mark.parametrize(("rows", "label"), [(1, 0), (9, 0), (1, 1)])
def test_a_temperature_of_few_rows_by_hand(rows, label):
    """Right on all of nine rows, a head is not made certain; wrong on one, it is not made to know nothing.

    With rows that are all alike, the error e of the best temperature is the mean of what was seen, and of what the head
    itself said on ten rows more: softmax(2 / T, 0, 0) = (1 - e, e / 2, e / 2).
    """
    fitted = get_kind("classification").training.fit_on_dev(
        torch.tensor([[2.0, 0.0, 0.0]] * rows), np.full(rows, label), space()
    )
    said = 2 / (np.exp(2) + 2)
    error = (rows * (label != 0) + 10 * said) / (rows + 10)
    assert fitted["temperature"] == pytest.approx(2 / np.log(2 * (1 - error) / error), abs=1e-3)
    assert 0.7 < fitted["temperature"] < 1.3
    assert fitted["calibration_error"]["after"] > 0.1
    assert "note" not in fitted


def test_many_rows_are_fitted_as_if_there_were_no_others():
    draw, kind = np.random.default_rng(2), get_kind("classification")
    true = torch.from_numpy(draw.normal(size=(700, 3))).float()
    targets = np.array([draw.choice(3, p=row / row.sum()) for row in torch.softmax(true.double(), -1).numpy()])
    steps = np.linspace(1, 5, 4001)
    losses = [torch.nn.functional.cross_entropy(2 * true / step, torch.from_numpy(targets)) for step in steps]
    likeliest = steps[int(np.argmin(losses))]
    assert kind.training.fit_on_dev(2 * true, targets, space())["temperature"] == pytest.approx(likeliest, rel=0.02)


def test_a_temperature_at_its_bound_is_noted_on_the_card():
    """Three thousand rows that are all right, of a head that is hardly sure of one."""
    fitted = get_kind("classification").training.fit_on_dev(
        torch.tensor([[0.2, 0.0]] * 3000), np.zeros(3000, int), space("ab")
    )
    assert fitted["temperature"] == pytest.approx(0.1, abs=1e-3)
    card = card_text(HEAD.model_copy(update={"fitted": fitted}))
    assert "- note: the temperature is at its bound, 0.1 to 10: do not trust the probabilities\n" in card


def test_a_temperature_that_follows_the_entropy_is_at_its_bound_only_where_rows_are():
    """A temperature of 10 is that of a row that knows nothing; the others have a lower one."""
    fitted, _, _ = fit_to_drawn(2, 4000, 8, 13.0)
    assert fitted["temperature"] > 9.9
    assert fitted["entropy_power"] > 0.3
    assert "note" not in fitted


def test_a_temperature_of_sure_rows_at_the_least_there_is_is_no_bound():
    fitted, _, _ = fit_to_drawn(0, 3000, 20, 2.0)
    assert fitted["entropy_power"] > 0.3
    assert "note" not in fitted


@pytest.mark.parametrize(
    ("labels", "written", "index"),
    [
        (("false", "true"), False, 0),
        (("false", "true"), True, 1),
        (("False", "True"), True, 1),
        (("0", "1"), 1, 1),
        (("0", "1"), 1.0, 1),
        (("0.0", "1.0"), 1, 1),
        (("1.0", "1"), 1.0, 0),
        (("1.0", "1"), 1, 1),
        (("0.5", "2.5"), 2.5, 1),
        (("1", "1000000"), 1e6, 1),
    ],
)
def test_a_label_is_known_by_the_spelling_of_its_value(labels, written, index):
    """As JSON writes it, which is not always as Python does."""
    config = space(labels=labels)
    assert get_kind("classification").codec.encode(written, config) == index
    assert get_kind("multilabel").codec.encode([written], config) == (index,)


@pytest.mark.parametrize("written", [None, True, 1.5, float("nan"), [1], {"a": 1}])
def test_a_value_that_spells_no_label_is_refused(written):
    config = space(labels=("None", "null", "1", "[1]"))
    with pytest.raises(ValueError, match="is not one of: None, null, 1"):
        get_kind("classification").codec.encode(written, config)
    with pytest.raises(ValueError, match="is not one of: None, null, 1"):
        get_kind("multilabel").codec.encode([written], config)
