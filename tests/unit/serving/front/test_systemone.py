"""Typed decisions: which head answers which question, with what numbers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from jevcompat import runner
from jevcompat.spec import REQUIREMENTS
from jevcompat.validate import choice_confidence, score_confidence

from onetrunk.serving.front.dialects.decisions import choice_answer, score_answer, shares_of_levels
from tests.fixtures.fake_triton import TASKS
from tests.fixtures.jevcompat_tasks import NOT_SUITED, TASKS_OF_JEVCOMPAT
from tests.unit.serving.front.conftest import Served

CHOICE = {"type": "choice", "criteria": {"yes": None, "no": None, "perhaps": "in between"}}
SCORE = {"type": "score", "criteria": ["low", "middle", "high"]}


def ask(served: Served, questions: Any, state: Any = "abc", model: str = "jev-latest") -> tuple[int, Any]:
    return served.ask("POST", "/v1/systemone", {"model": model, "state": state, "questions": questions})


def refused(served: Served, question: Any, **options: Any) -> str:
    """The message of the only fault of a request with one question."""
    status, answer = ask(served, {"q": question}, **options)
    assert status == 422, answer
    (fault,) = answer["detail"]
    assert fault["loc"] == ["body", "questions", "q"]
    assert fault["type"] == "no_head"
    return str(fault["msg"])


def test_all_questions_on_one_state_are_one_request(served: Served) -> None:
    questions = {
        "sst2": {"type": "noul", "instructions": "Is it praise?"},
        "q": {"type": "noul", "instructions": {"task": "cola", "label": "unacceptable"}},
        "other": {"type": "choice", "criteria": {"positive": None, "negative": None}},
    }
    status, answer = ask(served, questions)
    assert status == 200
    assert answer == {
        "model": "jev-latest",
        "answers": {
            "sst2": {"type": "noul", "noul": 0.75, "x_task": "sst2", "x_label": "positive"},
            "q": {"type": "noul", "noul": 0.25, "x_task": "cola", "x_label": "unacceptable"},
            "other": {
                "type": "choice",
                "choice": "positive",
                "confidence": 0.5,
                "probabilities": {"positive": 0.75, "negative": 0.25},
                "x_task": "sst2",
            },
        },
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    (request,) = served.triton.requests
    assert set(request.outputs) == {"sst2", "cola", "truncated"}
    assert len(request.rows) == 1


@pytest.mark.parametrize("state", [["abcd", "e"], {"text": "abcd", "text_pair": "e", "more": 1}])
def test_pairs_and_numbers(served: Served, state: Any) -> None:
    status, answer = ask(served, {"stsb": SCORE, "kind": CHOICE}, state)
    assert status == 200
    score = answer["answers"]["stsb"]
    assert score["x_number"] == 4.0, "of 0 to 5, which is 1.6 on the levels 0 to 2"
    assert score["score"] == pytest.approx(1.6)
    assert score["probabilities"] == pytest.approx({"0": 0.0, "1": 0.4, "2": 0.6})
    assert score["legend"] == {"0": "low", "1": "middle", "2": "high"}
    assert answer["answers"]["kind"]["x_task"] == "mnli"
    assert list(answer["answers"]["kind"]["probabilities"]) == ["yes", "no", "perhaps"]
    assert [request.rows for request in served.triton.requests] == [[("abcd", b"e")]]


def test_a_state_that_is_no_text_is_read_as_json(served: Served) -> None:
    for state, text in (({"a": "ü"}, '{"a": "ü"}'), (["a", "b", 1], '["a", "b", 1]')):
        assert ask(served, {"sst2": {"type": "noul"}}, state)[0] == 200
        assert served.triton.requests[-1].rows[0][0] == text


def test_what_true_means(served: Served) -> None:
    for criteria, label in (
        (None, "positive"),
        ({"true": "It is good"}, "positive"),
        ({"true": "negative"}, "negative"),
        ({"false": "positive"}, "negative"),
        ({"true": "negative", "false": "positive"}, "negative"),
    ):
        _, answer = ask(served, {"sst2": {"type": "noul", "criteria": criteria}})
        assert answer["answers"]["sst2"]["x_label"] == label
    _, answer = ask(served, {"q": {"type": "noul", "criteria": {"true": "negative", "false": "positive"}}})
    assert answer["answers"]["q"]["x_task"] == "sst2", "its labels are enough"


def test_model_answers_what_means_no_other_task(served: Served) -> None:
    questions = {"q": {"type": "noul"}, "sst2": {"type": "noul"}}
    _, answer = ask(served, questions, model="cola")
    assert {name: one["x_task"] for name, one in answer["answers"].items()} == {"q": "cola", "sst2": "sst2"}
    assert answer["model"] == "cola"


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"type": "noul", "instructions": "Is it praise?"}, "no task that is served has exactly these options"),
        ({"type": "noul", "instructions": {"task": "moon"}}, "unknown task 'moon'. Served: cola, mnli, sst2, stsb"),
        ({"type": "noul", "instructions": {"task": "sst3"}}, "unknown task 'sst3' (did you mean sst2?). Served: cola"),
        ({"type": "noul", "instructions": {"task": ["sst2"]}}, "unknown task"),
        ({"type": "noul", "instructions": {"task": "sst2", "label": "fine"}}, "has no label 'fine': name one"),
        ({"type": "noul", "instructions": {"task": "sst2", "label": "positve"}}, "'positve' (did you mean positive?)"),
        ({"type": "noul", "instructions": {"task": "mnli"}}, "has 3 labels: name one"),
        ({"type": "noul", "instructions": {"task": "stsb"}}, "a noul needs a label"),
        ({"type": "choice", "criteria": {"positive": None}}, "no task"),
        ({"type": "choice", "criteria": {"positive": None, "negative": None, "so": None}}, "no task"),
        ({**CHOICE, "instructions": {"task": "sst2"}}, "chooses from negative, positive: give exactly these options"),
        ({**CHOICE, "instructions": {"task": "stsb"}}, "a choice needs a classification"),
        ({**SCORE, "instructions": {"task": "sst2"}}, "a score needs a regression"),
        ({"type": "score", "criteria": ["positive", "negative"]}, "no task"),
        ({**SCORE, "instructions": {"task": "stsb"}}, "it reads two texts"),
    ],
)
def test_a_question_that_no_head_answers_is_refused(served: Served, question: Any, says: str) -> None:
    assert says in refused(served, question)
    assert served.triton.requests == [], "nothing is asked"


def test_labels_of_two_tasks_are_no_choice_between_them(served: Served) -> None:
    served.triton.tasks["mood"] = dict(TASKS["sst2"])
    question = {"type": "choice", "criteria": {"positive": None, "negative": None}}
    assert "sst2, mood all have these labels" in refused(served, question)
    _, answer = ask(served, {"q": question}, model="mood")
    assert answer["answers"]["q"]["x_task"] == "mood"


def test_an_unknown_model_is_not_found(served: Served) -> None:
    status, answer = ask(served, {"sst2": {"type": "noul"}}, model="moon")
    assert status == 404
    assert answer["detail"]["error_type"] == "not_found_error"
    assert "unknown task 'moon'" in answer["detail"]["message"]


def test_every_faulty_question_is_named(served: Served) -> None:
    questions = {"a": {"type": "noul"}, "sst2": {"type": "noul"}, "b": SCORE}
    status, answer = ask(served, questions)
    assert status == 422
    assert [fault["loc"][-1] for fault in answer["detail"]] == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [{"assets": {"img": {"data_base64": ""}}}, {"state": None}, {"questions": {"": {"type": "noul"}}}, {"model": 1}],
)
def test_what_does_not_fit_the_schema_is_refused(served: Served, change: Any) -> None:
    body = {"model": "jev-latest", "state": "a", "questions": {"sst2": {"type": "noul"}}}
    assert served.ask("POST", "/v1/systemone", body)[0] == 200
    status, answer = served.ask("POST", "/v1/systemone", {**body, **change})
    assert status == 422
    assert answer["detail"][0]["loc"][:2] == ["body", next(iter(change))]


def test_a_text_that_cannot_be_read_and_one_that_is_cut(served: Served) -> None:
    served.triton.refuse = lambda row: "nothing to read" if row[0] == "-" else None
    status, answer = ask(served, {"sst2": {"type": "noul"}}, "-")
    assert (status, answer["detail"][0]["loc"]) == (422, ["body", "state"])
    assert ask(served, {"sst2": {"type": "noul"}}, "x" * 101)[1]["x_truncated"] is True


@pytest.mark.parametrize("shares", [[1.0], [0.2, 0.8], [0.2, 0.5, 0.3], [0.25] * 4, [0.0, 1.0, 0.0]])
def test_confidence_is_the_protocols(shares: list[float]) -> None:
    levels = [str(at) for at in range(len(shares))]
    score, choice = score_answer(levels, shares), choice_answer(dict(zip(levels, shares, strict=True)))
    assert score["confidence"] == pytest.approx(score_confidence(shares), abs=1e-6)
    assert choice["confidence"] == pytest.approx(choice_confidence(shares), abs=1e-6)
    assert score["score"] == pytest.approx(sum(at * share for at, share in enumerate(shares)))


@pytest.mark.parametrize(
    ("number", "count", "shares"),
    [(0, 3, [1, 0, 0]), (5, 3, [0, 0, 1]), (9, 3, [0, 0, 1]), (-1, 2, [1, 0]), (2.5, 2, [0.5, 0.5]), (3, 1, [1])],
)
def test_a_number_lies_between_two_levels(number: float, count: int, shares: list[float]) -> None:
    assert shares_of_levels(number, (0, 5), count) == pytest.approx(shares)


def test_jevcompat_where_heads_have_its_labels(served: Served) -> None:
    """Every requirement that heads can meet. The rest is listed, and in docs/http.md."""
    served.triton.tasks = {
        name: {**task, "metric": "accuracy", "tap": 1, "layers": 1, "version": 1}
        for name, task in TASKS_OF_JEVCOMPAT.items()
    }
    report = runner.run(served.url, timeout=60)
    assert report.aborted is None
    failed = {one.id: [finding.message for finding in one.findings] for one in report.results if one.status != "pass"}
    assert set(failed) == NOT_SUITED, failed
    assert len(report.results) == len(REQUIREMENTS) == 48
