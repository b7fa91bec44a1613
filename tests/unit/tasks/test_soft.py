"""Soft labels: probabilities, counts and the labels of several annotators, from a file to the loss and the metrics."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.classification import calibrate, calibration_error
from onetrunk.tasks.metrics import measure

LABELS = ("bug", "question", "wish")
THREE = SimpleNamespace(labels=LABELS, range=None, options={}, fitted={})


@pytest.fixture
def examples(tmp_path):
    """Reads rows as the data of a task: a text is a CSV, a list is JSON lines. Each row of a list gets a text."""

    def run(rows, skip_bad_rows=False, **changes):
        name = "rows.csv" if isinstance(rows, str) else "rows.jsonl"
        if not isinstance(rows, str):
            rows = "".join(
                json.dumps({"sentence": f"text {place}", **row}) + "\n" for place, row in enumerate(rows, start=1)
            )
        (tmp_path / name).write_text(rows, encoding="utf-8")
        settings = {"labels": LABELS, "train": name, "dev": name, "folder": tmp_path, **changes}
        return read_examples(Task(name="ticket", **settings), "train", skip_bad_rows=skip_bad_rows)

    return run


def targets_of(read, config=THREE, kind="classification"):
    return get_kind(kind).codec.targets(read.targets, config).tolist()


def test_probabilities_and_counts_and_votes_become_one_distribution(examples):
    read = examples(
        [
            {"probabilities": {"bug": 0.75, "wish": 0.25}},
            {"counts": {"bug": 3, "wish": 1, "question": 0}},
            {"label": ["bug", "wish", "bug", "bug"]},
            {"label": "question"},
            {"label": None, "probabilities": {"bug": 0.75, "wish": 0.25}},
            {"label": {"bug": 3, "wish": 1}},
            {"label": {"bug": 0.75, "wish": 0.25, "question": None}},
        ]
    )
    soft, hard = pytest.approx([0.75, 0, 0.25]), [0, 1, 0]
    assert targets_of(read) == [soft, soft, soft, hard, soft, soft, soft]
    notes = "\n".join(read.notes)
    assert "3 of 7 rows have probabilities" in notes
    assert "2 of 7 rows have counts" in notes
    assert "1 of 7 rows have the labels of several annotators" in notes
    assert 'kind = "multilabel"' in notes


def test_a_table_has_them_as_json(examples):
    rows = 'sentence;counts\na film;"{""bug"": 1, ""wish"": 1}"\nanother;"{""bug"": 2}"\n'
    assert targets_of(examples(rows)) == [[0.5, 0, 0.5], [1, 0, 0]]
    with pytest.raises(UserError, match=r"line 2 \(no 'label', and 'counts' is '{bug: 1}', not a JSON object"):
        examples("sentence;counts\na film;{bug: 1}\n")


def test_a_label_that_a_cell_has_twice_is_named(examples):
    with pytest.raises(UserError, match="'counts' has 'bug' twice"):
        examples('sentence;counts\na film;"{""bug"": 1, ""bug"": 2}"\n')


def test_a_parquet_has_them_as_a_struct_or_a_map(tmp_path, examples):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    kinds = {
        "probabilities": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        "counts": pyarrow.struct({"bug": pyarrow.int64(), "wish": pyarrow.int64()}),
    }
    for column, kind in kinds.items():
        values = pyarrow.array([{"bug": 1, "wish": 0}, {"wish": 1}], type=kind) if column == "counts" else None
        values = pyarrow.array([[("bug", 1.0)], [("wish", 1.0)]], type=kind) if values is None else values
        parquet.write_table(pyarrow.table({"sentence": ["a", "b"], column: values}), tmp_path / "rows.parquet")
        task = Task(name="ticket", labels=LABELS, train="rows.parquet", dev="rows.parquet", folder=tmp_path)
        assert targets_of(read_examples(task, "train")) == [[1, 0, 0], [0, 0, 1]]


def test_labels_are_spelled_as_in_other_data(examples):
    read = examples([{"probabilities": {"0": 0.5, "2": 0.5}}, {"probabilities": {"1": 1}}])
    assert targets_of(read) == [[0.5, 0, 0.5], [0, 1, 0]]
    assert any("0 is 'bug'" in note for note in read.notes)
    read = examples([{"counts": {"Bug": 1, "bug": 1, " WISH": 2}}], fold_labels=True)
    assert targets_of(read) == [[0.5, 0, 0.5]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"probabilities": {"bug": 0.5, "wish": 0.4}},
            "sum to 0.9, not to 1 .*some labels are missing",
        ),
        ({"probabilities": {"bug": 0.9, "wish": 0.4}}, 'the probabilities sum to 1.3.*give kind = "multilabel"'),
        ({"probabilities": {}}, "sum to 0, not to 1"),
        ({"probabilities": {"bug": 80, "wish": 20}}, "the probability of 'bug' is 80: give a number from 0 to 1"),
        ({"probabilities": {"bug": 1.2, "wish": -0.2}}, "'wish' has -0.2: give a number, 0 or more"),
        ({"probabilities": {"bug": float("nan")}}, "'bug' has nan"),
        ({"probabilities": {"bug": float("inf")}}, "'bug' has inf"),
        ({"probabilities": {"bug": 10**400}}, "'bug' has 1000"),
        ({"probabilities": {"bug": True}}, "'bug' has True"),
        ({"probabilities": {"bug": "1.0"}}, "'bug' has '1.0'"),
        ({"probabilities": {"bug": {"wish": 1}}}, "'bug' has {'wish': 1}"),
        ({"probabilities": {"bag": 1.0}}, "label 'bag' is not one of: bug, question, wish"),
        ({"probabilities": None}, "no 'label', and 'probabilities' is None, not a table of labels and numbers"),
        ({"probabilities": 0.8}, "no 'label', and 'probabilities' is 0.8, not a table"),
        ({"counts": {"bug": 1.5}}, "the count of 'bug' is 1.5, not a whole number"),
        ({"counts": {"bug": 0, "wish": 0}}, "no label has a count above 0"),
        ({"counts": {"bug": -1}}, "'bug' has -1"),
        ({"label": ["bug", None]}, "has None as the label of an annotator"),
        ({"label": ["bug", ["wish"]]}, "as the label of an annotator"),
        ({"label": ["bug", "bag"]}, "label 'bag' is not one of"),
        ({}, "missing field: 1: line 2 .no 'label'; there are: sentence"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_row(examples, row, why):
    good = {"probabilities": {"bug": 1.0}}
    with pytest.raises(UserError, match=rf"1 of 3 rows cannot be used:\n.*line 2 .*{why}|{why}"):
        examples([good, row, good])
    read = examples([good, row, good], skip_bad_rows=True)
    assert (len(read), read.left_out) == (2, 1)


def test_rounded_probabilities_are_scaled_and_it_is_told(examples):
    read = examples([{"probabilities": {"bug": 0.5, "wish": 0.47}}, {"probabilities": {"bug": 1 / 3, "wish": 2 / 3}}])
    assert targets_of(read)[0] == pytest.approx([0.5 / 0.97, 0, 0.47 / 0.97])
    assert any("the probabilities of 1 row sum to 1 only within 0.05" in note for note in read.notes)


def test_a_label_beside_them_is_used_and_it_is_told(examples):
    read = examples([{"label": "wish", "probabilities": {"bug": 1.0}}, {"label": None, "probabilities": {"bug": 1.0}}])
    assert targets_of(read) == [[0, 0, 1], [1, 0, 0]]
    assert any("1 row has both 'label' and soft labels" in note for note in read.notes)
    read = examples([{"label": "wish", "probabilities": {"bug": 1.0}}], label_field="probabilities")
    assert targets_of(read) == [[1, 0, 0]]


def test_probabilities_and_counts_in_one_row_are_told(examples):
    both = {"probabilities": {"bug": 1.0}, "counts": {"wish": 2}}
    read = examples([both, {"probabilities": None, "counts": {"wish": 2}}])
    assert targets_of(read) == [[1, 0, 0], [0, 0, 1]]
    assert any("1 row has both probabilities and counts: the first are used" in note for note in read.notes)


def test_ties_are_counted(examples):
    read = examples([{"counts": {"bug": 1, "wish": 1}}, {"counts": {"bug": 2, "wish": 1}}])
    assert any("1 row has no single likeliest label" in note for note in read.notes)


def test_several_labels_have_probabilities_of_their_own(examples):
    rows = [
        {"probabilities": {"bug": 0.9, "wish": 0.8}},
        {"label": [["bug"], ["bug", "wish"], []]},
        {"label": ["question"]},
        {"label": []},
    ]
    read = examples(rows, kind="multilabel")
    expected = [[0.9, 0, 0.8], [2 / 3, 0, 1 / 3], [0, 1, 0], [0, 0, 0]]
    codec = get_kind("multilabel").codec
    np.testing.assert_allclose(codec.targets(read.targets, THREE), expected, rtol=1e-6)
    assert codec.hard(codec.targets(read.targets, THREE)).tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(UserError, match="counts do not tell how many annotators there were"):
        examples([{"counts": {"bug": 1}}], kind="multilabel")
    with pytest.raises(UserError, match="have one twice"):
        examples([{"label": [["bug", "bug"], []]}], kind="multilabel")


def test_numbers_are_averaged(examples):
    changes = {"kind": "regression", "labels": None, "range": (1, 5)}
    rows = [{"label": [3, 4, 5]}, {"counts": {"1": 3, "5": 1}}, {"probabilities": {"1": 0.5, "5": 0.5}}, {"label": [2]}]
    read = examples(rows, **changes)
    assert read.targets == pytest.approx((0.75, 0.25, 0.5, 0.25))
    # Numbers are no labels, of which a text might have several.
    assert "1 of 4 rows have the labels of several annotators" in "".join(read.notes)
    assert "multilabel" not in "".join(read.notes)
    with pytest.raises(UserError, match="label 9 is not a number from 1 to 5"):
        examples([{"label": [3, 9]}], **changes)


def test_kinds_that_take_none_refuse_them_as_before(examples):
    with pytest.raises(UserError, match="no column 'label'; there are: sentence, probabilities"):
        examples([{"probabilities": {"bug": 1.0}}], kind="tagging")


def test_the_loss_is_the_cross_entropy_with_the_distribution():
    training = get_kind("classification").training
    raw, targets = torch.tensor([[0.0, 1.0986123]]), torch.tensor([[0.25, 0.75]])
    # The head says 0.25 and 0.75: the entropy of the distribution, by hand.
    assert training.loss(raw, targets).item() == pytest.approx(0.25 * 1.3862944 + 0.75 * 0.2876821, abs=1e-6)


def test_ten_soft_rows_train_as_the_hard_rows_that_they_stand_for():
    """With class weights, and with the balance that follows from the distribution."""
    training = get_kind("classification").training
    raw = torch.tensor([[0.3, -0.2]])
    hard, soft = np.array([0] * 8 + [1] * 2), np.tile(np.float32([0.8, 0.2]), (10, 1))
    for option in ("balanced", {"no": 3.0}):
        config = SimpleNamespace(labels=("no", "yes"), range=None, options={"class_weights": option}, fitted={})
        losses = [
            training.loss(
                raw.expand(10, 2), torch.from_numpy(one), weights=torch.from_numpy(training.row_weights(one, config))
            ).item()
            for one in (hard, soft)
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_temperature_goes_by_the_distribution():
    """A head that is as sure as the annotators needs none; by their likeliest labels alone it would be too unsure."""
    random = np.random.default_rng(0)
    raw = random.normal(size=(2000, 3)) * 1.5
    said = np.exp(raw) / np.exp(raw).sum(axis=-1, keepdims=True)
    found = calibrate(raw, said.astype(np.float32))
    assert found["temperature"] == pytest.approx(1.0, abs=0.01)
    assert found["calibration_error"]["before"] < 0.01
    scores = found["soft_dev"]
    assert scores["divergence_nats"] == pytest.approx(0, abs=1e-3)
    assert scores["expected_accuracy"] == scores["best_accuracy"] == pytest.approx(said.max(axis=-1).mean(), abs=1e-3)
    by_label = calibrate(raw, said.argmax(axis=-1))
    assert by_label["temperature"] < 0.3
    assert "soft_dev" not in by_label
    assert calibration_error(said, said.argmax(axis=-1)) > 0.2


def test_metrics_take_the_most_probable_label():
    kind = get_kind("classification")
    targets = np.float32([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert kind.codec.hard(targets).tolist() == [0, 2]
    assert kind.codec.hard(np.array([1, 2])).tolist() == [1, 2]
    assert measure(["accuracy"], np.array([0, 1]), kind.codec.hard(targets))[0] == {"accuracy": 0.5}


def test_labels_without_any_probability_are_named(examples):
    read = examples([{"probabilities": {"bug": 0.5, "wish": 0.5, "question": 0}}])
    assert any("no row of the train data has the label 'question'" in note for note in read.notes)
