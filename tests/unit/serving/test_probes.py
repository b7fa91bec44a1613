"""The server's own requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onetrunk.protocol.errors import ServerError
from onetrunk.serving.probes import NoAnswerError, probe_all_outputs, probe_inputs
from onetrunk.serving.repository import read_repository


def test_every_model_of_a_repository_gets_inputs_that_it_declares(repository: Path) -> None:
    for name, config in read_repository(repository).configs.items():
        inputs = probe_inputs(config, rows=3, tokens=5)
        declared = {tensor.name: tensor for tensor in config.input}
        assert {tensor.name for tensor in config.input if not tensor.optional} <= set(inputs) <= set(declared), name
        for tensor, value in inputs.items():
            assert value.shape == (3, *(size if size > 0 else 5 for size in declared[tensor].dims))
    configs = read_repository(repository).configs
    assert probe_inputs(configs["head_mood"])["attention_mask"].tolist() == [[1, 1]]
    assert probe_inputs(configs["head_mood"])["hidden_state"].dtype == np.float32
    assert probe_inputs(configs["tokenizer"], tokens=3)["text"].tolist() == [[b"Ready? Ready? Ready? "]]


class Admin:
    """Answers with one number an output."""

    def __init__(self, repository: Path) -> None:
        self.configs = read_repository(repository).configs
        self.asked: dict[str, Any] = {}
        self.spoiled: dict[str, Any] = {}
        self.error: ServerError | None = None

    def config(self, model: str) -> Any:
        return self.configs[model]

    def infer(self, model: str, inputs: Any, *, timeout_s: float) -> Any:
        if self.error is not None:
            raise self.error
        self.asked[model] = inputs
        return {output.name: np.zeros(1) for output in self.configs[model].output} | self.spoiled


def test_the_first_request_is_a_full_batch_of_the_longest_texts(repository: Path) -> None:
    admin: Any = Admin(repository)
    probe_all_outputs(admin, 1.0, full_batch_tokens=32)
    texts = admin.asked["multitask"]["text"]
    assert texts.shape == (32, 1)
    assert len(texts[0, 0].split()) == 32
    assert admin.asked["multitask_tokens"]["input_ids"].shape == (1, 2)
    probe_all_outputs(admin, 1.0)
    assert admin.asked["multitask"]["text"].shape == (1, 1)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "nothing"),
        (np.zeros(0), "nothing"),
        (np.array([1.0, np.nan]), "nan, not with finite numbers"),
        (np.full((32, 9), -np.inf), "-inf, not with finite numbers"),
    ],
)
def test_an_answer_without_finite_numbers_is_none(repository: Path, value: Any, found: str) -> None:
    admin: Any = Admin(repository)
    admin.spoiled = {"mood": value}
    with pytest.raises(NoAnswerError, match=f"multitask answers mood with {found}$"):
        probe_all_outputs(admin, 1.0)
    admin.error = ServerError("No space left on device")
    with pytest.raises(NoAnswerError, match="multitask gives no answer: No space left on device"):
        probe_all_outputs(admin, 1.0)
