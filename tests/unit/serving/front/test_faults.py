"""Requests with faults: what is told of them in one line, which must not take the event loop's time."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.api import PredictRequest
from onetrunk.serving.front.dialects.classify import InfinityRequest, VllmRequest
from onetrunk.serving.front.dialects.embeddings import EmbeddingsRequest, EmbedRequest
from onetrunk.serving.front.dialects.kserve_v1 import InstancesRequest
from onetrunk.serving.front.dialects.systemone import SystemOneRequest
from onetrunk.serving.front.dialects.tei import TeiRequest
from onetrunk.serving.front.faults import FaultyRequestError
from onetrunk.serving.front.operations import parse
from tests.unit.serving.front.conftest import Served

pytestmark = pytest.mark.hostile
MANY = 20_000


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (PredictRequest, {"texts": [1] * MANY}),
        (PredictRequest, {"texts": ["a"], "pairs": [1] * MANY}),
        (PredictRequest, {"texts": ["a"], "tasks": [1] * MANY}),
        (VllmRequest, {"input": [1] * MANY}),
        (VllmRequest, {"input": [["a", 1]] * MANY}),
        (TeiRequest, {"inputs": [1] * MANY}),
        (TeiRequest, {"inputs": [[1, 2]] * MANY}),
        (EmbeddingsRequest, {"input": [1.5] * MANY}),
        (InstancesRequest, {"instances": [1] * MANY}),
        (InstancesRequest, {"instances": [[1, 2]] * MANY}),
    ],
)
def test_of_a_list_the_first_fault_is_told(model, body):
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    assert caught.value.error_count() < 10
    with pytest.raises(
        RefusedError, match=r"(row|entry) 0.*: found (a list|the number 1(\.5)?); give a |token ids"
    ) as refused:
        parse(model, json.dumps(body).encode())
    assert refused.value.status == 422


def test_of_an_object_with_many_faults_their_number_is_told():
    with pytest.raises(RefusedError, match=r"20,001 of its values do not fit; /docs") as refused:
        parse(PredictRequest, json.dumps({f"a{number}": 1 for number in range(MANY)}).encode())
    assert refused.value.status == 422
    questions = {f"q{number}": {"type": "score", "criteria": 1} for number in range(MANY)}
    with pytest.raises(RefusedError, match="of its values do not fit"):
        parse(SystemOneRequest, json.dumps({"model": "jev-latest", "state": "a", "questions": questions}).encode())


LIST = 'such as {"texts": ["A text."]}'
ALLOWED = "allowed are texts, pairs, tasks, top"


def question(**question):
    return {"model": "jev-latest", "state": "a", "questions": {"q1": question}}


@pytest.mark.parametrize(
    ("model", "body", "line"),
    [
        (PredictRequest, {"texts": [3]}, "texts, row 0: found the number 3; give a text"),
        (PredictRequest, {"texts": ["a", None]}, "texts, row 1: found null; give a text"),
        (PredictRequest, {"texts": [["a", "b"]]}, "texts, row 0: found a list; give a text"),
        (PredictRequest, {"texts": [{"text": "a"}]}, "texts, row 0: found an object; give a text"),
        (PredictRequest, {"texts": 3}, "texts: found the number 3; give a text or a list of texts"),
        (PredictRequest, {"texts": True}, "texts: found true; give a text or a list of texts"),
        (PredictRequest, {"texts": "a", "pairs": [3]}, "pairs, row 0: found the number 3; give a text"),
        (PredictRequest, {"texts": "a", "task": []}, f"task: no such field (did you mean tasks?); {ALLOWED}"),
        (PredictRequest, {"texts": "a", "text_pair": []}, f"text_pair: no such field (did you mean pairs?); {ALLOWED}"),
        (PredictRequest, {"texts": 1, "zz": 1}, f"zz: no such field; {ALLOWED}"),
        (PredictRequest, {"text": "a"}, f"text: no such field (did you mean texts?); {ALLOWED}"),
        (PredictRequest, {"inputs": ["a"]}, f"inputs: no such field (did you mean texts?); {ALLOWED}"),
        (PredictRequest, {"pairs": "a"}, f"texts is missing: found pairs; send JSON {LIST}"),
        (PredictRequest, {}, f"texts is missing: found an empty object; send JSON {LIST}"),
        (PredictRequest, ["a"], f"the body: found a list; give an object {LIST}"),
        (PredictRequest, {"texts": "a", "tasks": "sst2"}, "tasks: found a text; give a list of names"),
        (PredictRequest, {"texts": "a", "tasks": [3]}, "tasks, entry 0: found the number 3; give a name"),
        (PredictRequest, {"texts": "a", "tasks": []}, "tasks: the list is empty; give at least 1 name or leave it out"),
        (PredictRequest, {"texts": "a", "top": 0}, "top: found the number 0; give 1 or more"),
        (PredictRequest, {"texts": "a", "top": "1"}, "top: found a text; give a whole number"),
        (PredictRequest, {"texts": ["a"] * 20_000}, "texts: the list has 20,000 texts; give at most 16,384 texts"),
        (VllmRequest, {"input": [["a", 1]]}, "input, row 0, entry 1: found the number 1; give a text"),
        (VllmRequest, {"input": [["a"]]}, "input, row 0: the list has 1 text; give at least 2 texts"),
        (VllmRequest, {"input": "a", "model": 1}, "model: found the number 1; give a name"),
        (TeiRequest, {"inputs": [["a"], "b"]}, "inputs, row 1: found a text; give a list of texts"),
        (TeiRequest, {"inputs": "a", "raw_scores": 1}, "raw_scores: found the number 1; give true or false"),
        (EmbeddingsRequest, {"input": []}, "input: the list is empty; give at least 1 text"),
        (EmbeddingsRequest, {"input": 3}, "input: found the number 3; give a text or a list of texts"),
        (EmbeddingsRequest, {"input": [3]}, "input: token ids are not read here: send texts"),
        (
            EmbeddingsRequest,
            {"input": "a", "encoding_format": "x" * 99},
            f"encoding_format: found the text '{'x' * 40}...'; give 'float' or 'base64'",
        ),
        (
            InstancesRequest,
            {"instances": [1]},
            "instances, row 0: found the number 1; give a text, a list of texts or an object",
        ),
        (
            InstancesRequest,
            {"instances": [{"txt": 1}]},
            'instances, row 0: text is missing: found txt; send JSON such as {"instances": ["A text."]}',
        ),
        (
            InstancesRequest,
            dict.fromkeys("abcdefg", 1),
            'instances is missing: found a, b, c, d, e and 2 more; send JSON such as {"instances": ["A text."]}',
        ),
        (
            SystemOneRequest,
            {"model": "jev-latest", "state": "a", "questions": {}},
            "questions: the object is empty; give at least 1 entry",
        ),
        (
            SystemOneRequest,
            question(type="x"),
            "questions.q1.type: found the text 'x'; give one of 'noul', 'choice', 'score'",
        ),
        (
            SystemOneRequest,
            question(type="score", criteria=1),
            "questions.q1.criteria: found the number 1; give a list of texts",
        ),
        (
            SystemOneRequest,
            question(type="noul", criteria={"maybe": "x"}),
            "questions.q1.criteria: found the text 'maybe'; give 'true' or 'false'",
        ),
    ],
)
def test_a_fault_is_one_line_with_what_was_found_and_what_is_allowed(model, body, line):
    with pytest.raises(FaultyRequestError) as refused:
        parse(model, json.dumps(body).encode())
    assert (refused.value.status, str(refused.value)) == (422, line)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", f"the body is empty; send JSON {LIST}"),
        (b" \n", f"the body is empty; send JSON {LIST}"),
        (b"texts", f"the body is not JSON: expected ident at line 1 column 2; send JSON {LIST}"),
        (b"\xff" * MANY, f"the body is not JSON: expected value at line 1 column 1; send JSON {LIST}"),
    ],
)
def test_what_is_no_json_is_told_how_to_begin(body, line):
    with pytest.raises(FaultyRequestError) as refused:
        parse(PredictRequest, body)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("questions", "line"),
    [
        ('"q": {}, "q": 3', "questions.q: type is missing: found the number 3; send JSON such as"),
        ('"q": {"type": "score"}, "q": 3', "questions.q: criteria is missing: found the number 3; send JSON such as"),
        ('"q": {"type": "score", "criteria": []}, "q": {"type": "score", "criteria": 3}', "questions.q.criteria: "),
        ('"q": {"type": 1}', "questions.q.type: found the number 1; give one of "),
        ('"q": {"type": null}', "questions.q.type: found null; give one of "),
        ('"": {"type": "noul"}', "questions: found the text ''; give at least 1 character"),
    ],
)
def test_names_that_are_there_twice_and_values_of_any_type_are_told(questions, line):
    with pytest.raises(FaultyRequestError) as refused:
        parse(SystemOneRequest, f'{{"model": "a", "state": "x", "questions": {{{questions}}}}}'.encode())
    assert str(refused.value).startswith(line)
    assert "or an object" not in str(refused.value)


def test_a_large_body_is_not_read_again():
    body = f'{{"input": 3, "more": "{"x" * (1 << 20)}"}}'.encode()
    with pytest.raises(FaultyRequestError, match=r"^input\.\w+: Input should be a valid string$"):
        parse(EmbeddingsRequest, body)


@pytest.mark.parametrize("name", ["x" * 10**6, "a\nb\x1b[0m", "\u202e" * 9, "\U000e0001" * 40, "a.b"])
def test_names_that_others_gave_are_told_short_and_in_one_line(name):
    for model, body in (
        (PredictRequest, {name: 1}),
        (SystemOneRequest, {"questions": {name: 1}}),
        (TeiRequest, {name: 1}),
    ):
        with pytest.raises(FaultyRequestError) as refused:
            parse(model, json.dumps(body).encode())
        assert all(fault.message.isprintable() and len(fault.message) < 300 for fault in refused.value.faults)


def test_of_an_object_every_value_that_does_not_fit_is_one_fault():
    with pytest.raises(FaultyRequestError) as refused:
        parse(SystemOneRequest, json.dumps({"model": 1, "state": None, "questions": {"a": {}, "b": 1}}).encode())
    assert [fault.place for fault in refused.value.faults] == [
        ("model",),
        ("state",),
        ("questions", "a"),
        ("questions", "b"),
    ]


@pytest.mark.parametrize(
    "model",
    [
        PredictRequest,
        VllmRequest,
        InfinityRequest,
        TeiRequest,
        EmbeddingsRequest,
        EmbedRequest,
        InstancesRequest,
        SystemOneRequest,
    ],
)
def test_what_messages_give_as_an_example_fits(model):
    parse(model, model.such_as.encode())
    assert set(model.meant.values()) <= set(model.model_fields)


@pytest.mark.parametrize(
    ("path", "body", "status", "answer"),
    [
        (
            "/v1/predict",
            {"texts": ["a", "b"], "pairs": ["c"]},
            400,
            {"error": "1 pair for 2 texts: give one, or null, for each text"},
        ),
        ("/v1/predict", {"texts": [3]}, 422, {"error": "texts, row 0: found the number 3; give a text"}),
        (
            "/predict?task=sst2",
            {"inputs": 3},
            422,
            {"error": "inputs: found the number 3; give a text or a list of texts", "error_type": "validation"},
        ),
        (
            "/v1/embeddings",
            {"input": 3},
            400,
            {
                "error": {
                    "message": "input: found the number 3; give a text or a list of texts",
                    "type": "BadRequestError",
                    "param": None,
                    "code": 400,
                }
            },
        ),
        (
            "/v1/systemone",
            {"model": "jev-latest", "state": "a", "questions": {"q": {"type": "score", "criteria": []}}},
            422,
            {
                "detail": [
                    {
                        "loc": ["body", "questions", "q", "criteria"],
                        "msg": "questions.q.criteria: the list is empty; give at least 1 text",
                        "type": "too_short",
                    }
                ]
            },
        ),
    ],
)
def test_each_protocol_tells_it_in_its_own_form(served: Served, path: str, body: Any, status: int, answer: Any) -> None:
    assert served.ask("POST", path, body) == (status, answer)
