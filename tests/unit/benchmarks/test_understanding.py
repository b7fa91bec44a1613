"""The table of the utterances' study, worked out by hand for made-up answers."""

import numpy as np
import pytest

from benchmarks.understanding import Answers, compare, page, the_tasks

NAMES = ("intent", "slots", "slots_softmax")


def answers(score, *right):
    return Answers(score, np.array(right, dtype=bool))


@pytest.fixture
def compared():
    found = {
        (name, role, split): answers(0.8, 1, 1, 1, 1)
        for name in NAMES
        for role in ("full", "head")
        for split in ("dev", "test")
    }
    found["intent", "head", "dev"] = answers(0.6, 1, 1, 1, 0)
    found["slots", "head", "dev"] = answers(0.4, 0, 1, 1, 0)
    return compare(found)


def test_an_utterance_is_right_where_its_intent_and_all_its_slots_are(compared):
    assert compared["dev | whole utterance, CRF"] == (1, 0.5)
    assert compared["dev | whole utterance, softmax"] == (1, 0.75)
    assert compared["test | whole utterance, CRF"] == (1, 1)


def test_each_figure_stands_beside_full_fine_tuning(compared):
    text = page(compared, {"intent": "tap 2, layers 1"}, (13000, 700, 600))
    assert "| dev | intent accuracy | 80.00 | 60.00 | 75.00% |" in text
    assert "| test | slot F1, CRF | 80.00 | 80.00 | 100.00% |" in text
    assert "- intent: tap 2, layers 1" in text
    assert "13,000 train utterances, 700 dev, 600 test" in text


def test_slots_are_tried_with_and_without_a_crf():
    outputs = {task.name: task.options.get("output") for task in the_tasks()}
    assert outputs == {"intent": None, "slots": "crf", "slots_softmax": "softmax"}
