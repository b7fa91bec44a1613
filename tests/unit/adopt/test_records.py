"""What a record of an adoption says about how much an agreement is worth."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from onetrunk.adopt.adoption import Workshop, _Adoption, _finished
from onetrunk.adopt.comparison import Comparison
from onetrunk.adopt.page import page_of
from onetrunk.adopt.records import AdoptedModel, AdoptSettings, Attempt, LabelAgreement
from onetrunk.tasks import FittedTask, Task
from tests.conftest import write_tiny_heads
from tests.fixtures.limbs import random_head_on, random_limb


def attempt(agreement, constant):
    return Attempt(
        tap=1,
        layers=1,
        agreement=agreement,
        constant_agreement=constant,
        divergence=0.0,
        score=None,
        seconds=1,
        run="a",
    )


@pytest.mark.parametrize(
    ("agreement", "constant", "trivial"),
    [
        (0.98, 0.98, True),  # the commonest answer to all texts
        (0.985, 0.98, True),
        (0.99, 0.98, False),
        (0.97, 0.5, False),
        (1.0, 1.0, False),  # nothing can be seen, and a note says so
        (0.5, None, False),  # a number
    ],
)
def test_an_agreement_that_the_commonest_answer_reaches_is_worth_nothing(agreement, constant, trivial):
    assert attempt(agreement, constant).is_trivial == trivial


def record(**changes):
    values = {
        "key": "k", "name": "spam", "source": "models/spam", "sha256": "0" * 64, "family": "bert",
        "kind": "classification", "form": "single", "labels": ("ham", "<i>spam"), "texts": "t.txt", "train_texts": 900,
        "dev_texts": 100, "start": "trunk", "tap": 1, "layers": 1, "agreement": 0.97, "agreement_measure": "share",
        "constant_agreement": 0.6, "divergence": 0.01, "metric": "accuracy", "labelled_rows": 0, "teacher_score": None,
        "head_score": None, "reached": True, "floor": AdoptSettings().floor(scored=False, correlation=False),
        "attempts": (attempt(0.97, 0.6),), "differences": (), "teacher_bytes": 1, "head_bytes": 1,
        "seconds": 1, "notes": (), "by_label": (LabelAgreement(label="<i>spam", teacher=40, head=41, both=38),),
    }  # fmt: skip
    return AdoptedModel.model_validate({**values, **changes})


def test_an_adoption_is_finished_as_long_as_its_head_is_there(tiny_trunk, tmp_path):
    """Not one on another tap, nor one on a limb whose tap has the same number."""
    workshop = Workshop(trunk=tiny_trunk, output=tmp_path)
    write_tiny_heads(workshop.heads, tiny_trunk)
    (tmp_path / "records").mkdir()

    def finished(**changes):
        written = record(name="mood", **{"tap": 3, **changes})
        (tmp_path / "records" / "mood.json").write_text(written.model_dump_json())
        return _finished(workshop, "mood", "k") == written

    assert finished()
    assert not finished(key="other")
    assert not finished(tap=2)
    limb = random_limb(tiny_trunk, tmp_path / "limbs" / "pairs", tap=2)
    random_head_on(limb, tiny_trunk, workshop.heads, "mood")
    assert not finished()


def test_the_interval_is_wide_where_few_texts_are_compared():
    low, high = record().agreement_interval
    assert (round(low, 3), round(high, 3)) == (0.915, 0.990)
    few = record(dev_texts=10, agreement=1.0).agreement_interval
    assert few == (pytest.approx(0.722, abs=1e-3), 1.0)
    assert record(agreement_measure="correlation").agreement_interval is None


def test_the_page_says_what_decides():
    page = page_of([record(), record(name="topic", reached=False)], None)
    assert "topic: the floor is missed." in page
    assert "1 of 2 heads reach it" in page
    assert "Floor: 97% of the texts alike, and a mean divergence of 0.1 nats at most; reached." in page
    assert ">60.0%<" in page
    assert "91.5 to 99.0" in page
    assert "&lt;i&gt;spam</td><td>40</td><td>41</td><td>38</td><td>95%</td>" in page
    assert "<i>" not in page


@pytest.mark.parametrize(
    ("kind", "teacher", "head", "constant", "counts"),
    [
        ("classification", [[0.9, 0.1]] * 3 + [[0.2, 0.8]], [[0.9, 0.1]] * 4, 0.75, [(3, 4, 3), (1, 0, 0)]),
        ("multilabel", [[0.9, 0.9], [0.1, 0.2]] * 2, [[0.9, 0.1]] * 4, 0.5, [(2, 4, 2), (2, 0, 0)]),
        # Of each token the tag and its probability; tags are O, B-a, I-a, B-b, I-b.
        (
            "tagging",
            [[[0, 1], [0, 1]], [[1, 1], [2, 1]]],
            [[[3, 1], [0, 1]], [[1, 1], [0, 1]]],
            0.5,
            [(1, 1, 1), (0, 1, 0)],
        ),
    ],
)
def test_answers_are_compared_by_label(kind, teacher, head, constant, counts):
    task = Task(name="t", kind=kind, labels=("a", "b"), train="t.csv", dev="d.csv", folder=".")
    found = Comparison(np.array(teacher, "f4"), np.array(head, "f4"), FittedTask(task, {}), 0.5, None)
    assert found.constant_agreement() == constant
    assert [(one.teacher, one.head, one.both) for one in found.by_label(task)] == counts


@pytest.mark.parametrize(
    ("depth", "thorough", "heads"),
    [
        (6, False, [(3, 1), (2, 2), (2, 3), (2, 4)]),
        (6, True, [(3, 1), (2, 2), (2, 3), (2, 4), (1, 5), (0, 6)]),
        (12, False, [(6, 1), (4, 2), (4, 6), (4, 8)]),
        (2, False, [(1, 1), (0, 1), (0, 2)]),
        (1, False, [(0, 1)]),
    ],
)
def test_cheap_heads_are_tried_first(depth, thorough, heads):
    assert AdoptSettings(thorough=thorough).candidates(depth) == heads


@pytest.mark.parametrize(
    ("agreements", "chosen"),
    [
        ((0.90, 0.975, 0.99), 1),  # the first that reaches the floor
        ((0.94, 0.945, 0.95, 0.948), 0),  # with 100 texts, a standard error is 2.2 points
        ((0.90, 0.93, 0.95, 0.948), 1),
        ((0.80, 0.95, 0.95), 1),
    ],
)
def test_the_cheapest_head_is_taken_of_those_that_are_alike(agreements, chosen):
    assert _Adoption.choose(choosing(), [attempt(one, 0.5) for one in agreements]) == chosen


@pytest.mark.parametrize(
    ("divergences", "chosen"), [((0.084, 0.07, 0.059, 0.06), 1), ((0.2, 0.2, 0.1, 0.1), 2), ((None,) * 4, 0)]
)
def test_a_head_that_is_much_less_sure_of_what_it_says_is_not_taken(divergences, chosen):
    # All four are alike by their answers.
    tried = [attempt(0.94, 0.5).model_copy(update={"divergence": one}) for one in divergences]
    assert _Adoption.choose(choosing(), tried) == chosen


def choosing():
    """An adoption that has tried heads on 100 texts."""
    adopting = SimpleNamespace(
        settings=AdoptSettings(), labelled=None, teacher_score=None, task=SimpleNamespace(kind="classification")
    )
    adopting.experiment = SimpleNamespace(lessons=lambda name: SimpleNamespace(dev=range(100)))
    adopting.task.name = "spam"
    for name in ("is_enough", "_value", "_scored", "_standard_error"):
        setattr(adopting, name, partial(getattr(_Adoption, name), adopting))
    adopting._compared = 100
    return adopting


@pytest.mark.parametrize(("texts", "copies"), [(0, 4), (100, 4), (2_500, 3), (3_600, 2), (7_000, 0), (50_000, 0)])
def test_few_texts_are_made_more(texts, copies):
    assert AdoptSettings().copies(texts) == copies
    assert AdoptSettings(variants=1).copies(texts) == 1
