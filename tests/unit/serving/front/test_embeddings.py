"""Embeddings over HTTP: as OpenAI's and text-embeddings-inference's clients ask for them, and never unasked."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import pytest

from onetrunk.serving.front import operations
from tests.fixtures.fake_triton import EMBEDDING
from tests.fixtures.stand_ins import stand_in
from tests.unit.serving.front.conftest import Served


@pytest.fixture(autouse=True)
def embedding(served: Served) -> None:
    served.triton.tasks["embedding"] = dict(EMBEDDING)


def vectors(answer: Any) -> list[list[float]]:
    return [row["embedding"] for row in answer["data"]]


def floats(encoded: str) -> tuple[float, ...]:
    """The numbers of a vector in base64, as OpenAI's client reads them."""
    return struct.unpack("<3f", base64.b64decode(encoded, validate=True))


class TestOpenAi:
    def test_texts_get_vectors_in_their_order(self, served: Served) -> None:
        status, answer = served.ask(
            "POST", "/v1/embeddings", {"model": "embedding", "input": ["abc", "a"], "user": "u"}
        )
        assert status == 200
        assert answer["object"] == "list"
        assert answer["model"] == "embedding"
        assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", 0), ("embedding", 1)]
        assert vectors(answer) == [[0.25, 0.5, 3.0], [0.25, 0.5, 1.0]]
        assert served.triton.requests[-1].outputs == ["embedding", "truncated"]

    def test_one_text_needs_no_list_and_no_model(self, served: Served) -> None:
        status, answer = served.ask("POST", "/v1/embeddings", {"input": "abc", "dimensions": 3})
        assert (status, vectors(answer)) == (200, [[0.25, 0.5, 3.0]])

    def test_base64_holds_32_bit_floats(self, served: Served) -> None:
        _, answer = served.ask("POST", "/v1/embeddings", {"input": ["abc", "a"], "encoding_format": "base64"})
        assert [floats(vector) for vector in vectors(answer)] == [
            (0.25, 0.5, 3.0),
            (0.25, 0.5, 1.0),
        ]

    def test_a_vector_of_a_beginning_says_so(self, served: Served) -> None:
        _, answer = served.ask("POST", "/v1/embeddings", {"input": ["abc", "a " * 200]})
        assert [row.get("truncated") for row in answer["data"]] == [None, True]

    def test_usage_counts_the_tokens_of_all_texts(self, served: Served) -> None:
        served.triton.counts_tokens = True
        _, answer = served.ask("POST", "/v1/embeddings", {"input": ["a b c", "d"]})
        assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}

    @pytest.mark.hostile
    @pytest.mark.parametrize(
        ("changes", "status", "says"),
        [
            ({"input": [1, 2]}, 400, "token ids"),
            ({"input": [[1, 2], [3]]}, 400, "token ids"),
            ({"input": []}, 400, "input"),
            ({"input": ""}, 400, "empty"),
            ({"input": ["fine", " \n"]}, 400, "row 1"),
            ({"input": ["fine", None]}, 400, "input, row 1: found null; give a text"),
            ({"input": {"text": "x"}}, 400, "input"),
            ({"input": ["a"] * 1025}, 413, "1,024"),
            ({"input": "a" * 200_000}, 413, "131,072"),
            ({"dimensions": 2}, 400, "3"),
            ({"dimensions": -1}, 400, "3"),
            ({"dimensions": "3"}, 400, "dimensions: found a text; give a whole number"),
            ({"encoding_format": "hex"}, 400, "base64"),
            ({"model": "sst2"}, 400, "ask embedding"),
            ({"model": "text-embedding-3-small"}, 404, "Served: cola, embedding"),
            ({"model": 3}, 400, "model: found the number 3; give a name"),
        ],
    )
    def test_what_cannot_be_answered_is_said_in_openai_s_form(
        self, served: Served, changes: dict[str, Any], status: int, says: str
    ) -> None:
        found, answer = served.ask("POST", "/v1/embeddings", {"input": "fine", **changes})
        assert found == status
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert says in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]

    def test_without_an_embedding_it_says_how_to_get_one(self, served: Served) -> None:
        del served.triton.tasks["embedding"]
        status, answer = served.ask("POST", "/v1/embeddings", {"input": "fine", "model": "any"})
        assert status == 404
        assert "--embed" in answer["error"]["message"]

    def test_one_of_several_must_be_named(self, served: Served) -> None:
        served.triton.tasks["sentence"] = dict(EMBEDDING)
        status, answer = served.ask("POST", "/v1/embeddings", {"input": "fine"})
        assert status == 400
        assert "embedding, sentence" in answer["error"]["message"]
        assert served.ask("POST", "/v1/embeddings", {"input": "fine", "model": "sentence"})[0] == 200


class TestTei:
    def test_it_is_a_list_of_vectors_even_for_one_text(self, served: Served) -> None:
        assert served.ask("POST", "/embed", {"inputs": "abc"}) == (200, [[0.25, 0.5, 3.0]])
        assert served.ask("POST", "/embed?task=embedding", {"inputs": ["a", "abc"], "normalize": True}) == (
            200,
            [[0.25, 0.5, 1.0], [0.25, 0.5, 3.0]],
        )

    @pytest.mark.parametrize(
        ("changes", "status", "kind"),
        [
            ({"normalize": False}, 400, "validation"),
            ({"inputs": "x" * 101, "truncate": False}, 413, "validation"),
            ({"inputs": ""}, 422, "tokenizer"),
            ({"inputs": [[1]]}, 422, "validation"),
            ({"dimensions": 1}, 400, "validation"),
        ],
    )
    def test_what_cannot_be_answered_is_said_in_its_form(
        self, served: Served, changes: dict[str, Any], status: int, kind: str
    ) -> None:
        found, answer = served.ask("POST", "/embed", {"inputs": "fine", **changes})
        assert (found, answer["error_type"]) == (status, kind)


def test_who_names_no_task_gets_no_embedding(served: Served) -> None:
    for path, body in (("/v1/predict", {"texts": "abc"}), ("/v1/models/multitask:predict", {"instances": ["abc"]})):
        assert served.ask("POST", path, body)[0] == 200
        assert set(served.triton.requests[-1].outputs) == {"sst2", "cola", "truncated"}


def test_who_names_it_gets_it_beside_other_tasks(served: Served) -> None:
    status, answer = served.ask("POST", "/v1/predict", {"texts": ["abc"], "tasks": ["embedding", "sst2"], "top": 1})
    assert status == 200
    predictions = answer["answers"][0]["predictions"]
    assert predictions["embedding"] == {"embedding": [0.25, 0.5, 3.0]}
    assert predictions["sst2"]["scores"] == {"positive": 0.75}
    assert served.ask("POST", "/v1/models/embedding:predict", {"instances": ["abc"]}) == (
        200,
        {"predictions": [{"embedding": [0.25, 0.5, 3.0]}]},
    )


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict?task=embedding", {"inputs": "abc"}, 424),
        ("/classify", {"model": "embedding", "input": "abc"}, 400),
        (
            "/v1/systemone",
            {"model": "embedding", "state": "abc", "questions": {"q": {"type": "noul"}}},
            422,
        ),
    ],
)
def test_protocols_of_labels_refuse_it(served: Served, path: str, body: dict[str, Any], status: int) -> None:
    found, answer = served.ask("POST", path, body)
    assert found == status
    assert "embedding" in str(answer)


def test_every_protocol_says_how_many_tokens_were_read(served: Served) -> None:
    served.triton.counts_tokens = True
    texts = ["a b c", "d"]
    for path in ("/classify", "/v1/classify"):
        _, answer = served.ask("POST", path, {"model": "sst2", "input": texts})
        assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    question = {"model": "jev-latest", "state": "a b c", "questions": {"sst2": {"type": "noul"}}}
    _, answer = served.ask("POST", "/v1/systemone", question)
    assert answer["usage"] == {"input_tokens": 5, "output_tokens": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["abc"] * 40}),
        ("/v1/embeddings", {"input": ["abc"] * 40, "encoding_format": "base64"}),
        ("/embed", {"inputs": ["abc"] * 40}),
        ("/v1/predict", {"texts": ["abc"] * 40, "tasks": ["embedding"]}),
        ("/v1/models/embedding:predict", {"instances": ["abc"] * 40}),
    ],
)
def test_others_have_their_turn_while_a_long_answer_is_made(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    turns = 0
    sleep = asyncio.sleep

    async def counted(seconds: float, *more: Any) -> Any:
        nonlocal turns
        turns += seconds == 0
        return await sleep(seconds, *more)

    monkeypatch.setattr(operations, "TURN_S", 0.0)
    monkeypatch.setattr(operations, "asyncio", stand_in(asyncio, sleep=counted))
    assert served.ask("POST", path, body)[0] == 200
    assert turns >= 40
