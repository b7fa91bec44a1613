"""Requests with very many faults: what is told of them, which must not take the event loop's time."""

import json

import pytest
from pydantic import ValidationError

from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.api import PredictRequest
from onetrunk.serving.front.dialects.classify import VllmRequest
from onetrunk.serving.front.dialects.embeddings import EmbeddingsRequest
from onetrunk.serving.front.dialects.kserve_v1 import InstancesRequest
from onetrunk.serving.front.dialects.systemone import _parse
from onetrunk.serving.front.dialects.tei import TeiRequest
from onetrunk.serving.front.operations import parse

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
    with pytest.raises(RefusedError, match="should be") as refused:
        parse(model, json.dumps(body).encode())
    assert refused.value.status == 422


def test_of_an_object_with_many_faults_their_number_is_told():
    with pytest.raises(RefusedError, match=r"20,001 of its values do not fit; /docs") as refused:
        parse(PredictRequest, json.dumps({f"a{number}": 1 for number in range(MANY)}).encode())
    assert refused.value.status == 422
    questions = {f"q{number}": {"type": "score", "criteria": 1} for number in range(MANY)}
    with pytest.raises(RefusedError, match="of its values do not fit"):
        _parse(json.dumps({"model": "jev-latest", "state": "a", "questions": questions}).encode())
