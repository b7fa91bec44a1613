"""Bad input on a running server: a clear error or a sane answer, and no harm to those beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from onetrunk.serving import Server
from onetrunk.serving.stubs import stub_processes

Ask = Callable[..., dict[str, np.ndarray]]
TASKS = {"match", "mood", "topic"}


@pytest.mark.parametrize(
    ("inputs", "truncated"),
    [
        ({"text": ["a " * 200]}, True),
        ({"text": ["a good " * 18_000]}, True),  # 126 kB
        ({"text": ["a" * 128 * 1024]}, False),  # the largest text that the front allows, one word
        ({"text": ["a\0b"]}, False),
        ({"text": ["😀"]}, False),
        ({"text": ["שלום עולם"]}, False),
        ({"text": ["a"], "text_pair": ["b"]}, False),  # a pair, also for the tasks on single texts
        ({"text": ["a"]}, False),  # a single text, also for the task on pairs
        ({"text": ["a"], "text_pair": [""]}, False),
        ({"text": ["a"] * 32}, False),
    ],
    ids=["over-long", "long", "largest", "nul", "emoji", "rtl", "pair", "single", "empty pair", "full batch"],
)
def test_odd_but_allowed(ask: Ask, inputs: dict[str, list[str]], truncated: bool) -> None:
    answers = ask("multitask", **inputs)
    assert answers.keys() == TASKS | {"truncated"}
    assert answers["truncated"].all() == truncated
    for task in TASKS:
        assert answers[task].shape[0] == len(inputs["text"])
        assert np.isfinite(answers[task]).all()


BAD = {
    "empty": ("multitask", {"text": [""]}, "text 0: nothing to read"),
    "blanks": ("multitask", {"text": ["a", " \t\n"]}, "text 1: nothing to read"),
    "nul only": ("multitask", {"text": ["\0\0"]}, "text 0: nothing to read"),
    "blank second text": ("multitask", {"text": ["a"], "text_pair": [" "]}, "text_pair 0: nothing to read"),
    "invalid utf-8": ("multitask", {"text": [b"a\xff"]}, "text 0: not valid UTF-8 (byte 1)"),
    "2 MB": ("multitask", {"text": [b"a" * 2_000_000]}, "text 0: 2,000,000 bytes, and at most 131,072 are allowed"),
    "id too large": ("multitask_tokens", {"input_ids": [[2, 28, 3]]}, "input_ids 0: id 28 is not in the vocabulary"),
    "id negative": ("multitask_tokens", {"input_ids": [[2, 3], [2, -1]]}, "input_ids 1: id -1 is not"),
    "length 0": ("multitask_tokens", {"input_ids": np.zeros((1, 0), dtype=np.int64)}, "input_ids 0: 0 tokens"),
    "too many tokens": ("multitask_tokens", {"input_ids": [[2] * 33]}, "input_ids 0: 33 tokens; allowed: 1 to 32"),
    "hole in the mask": (
        "multitask_tokens",
        {"input_ids": [[2, 4, 3]], "attention_mask": [[1, 0, 1]]},
        "attention_mask 0: a 1 after a 0",
    ),
    "mask too short": (
        "multitask_tokens",
        {"input_ids": [[2, 4, 3]], "attention_mask": [[1, 1]]},
        "attention_mask 0: 2 numbers a row",
    ),
    # Refused by Triton itself, in its words.
    "batch too large": ("multitask", {"text": ["a"] * 33}, "must be <= 32"),
    "batch of 0": ("multitask_tokens", {"input_ids": np.zeros((0, 3), dtype=np.int64)}, "byte size mismatch"),
    "wrong dtype": ("multitask_tokens", {"input_ids": np.zeros((1, 3), dtype=np.int32)}, "INT32"),
    "numbers as text": ("multitask", {"text": ["a"], "input_ids": [[2, 3]]}, "input_ids"),
    "second text alone": ("multitask", {"text_pair": ["a"]}, "text_pair without text: send the first text"),
    "no input": ("multitask", {}, "text"),
    "unequal batches": ("multitask", {"text": ["a", "b"], "text_pair": ["a"]}, "batch"),
    "unknown task": ("multitask", {"text": ["a"], "outputs": ["anger"]}, "anger"),
}


def test_a_message_that_is_too_large_is_refused_before_it_is_read(ask: Ask) -> None:
    with pytest.raises(InferenceServerException, match="larger than max") as error:
        ask("multitask", text=[b"a" * 10_000_000])
    assert error.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("case", BAD)
def test_refused_with_a_reason(ask: Ask, case: str) -> None:
    model, inputs, message = BAD[case]
    with pytest.raises(InferenceServerException) as error:
        ask(model, **inputs)
    assert message in error.value.message()
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_under_load_bad_requests_fail_and_good_ones_do_not(ask: Ask) -> None:
    """Good and bad requests of equal shape share batches; each gets its own due, counted."""
    good = [("multitask", {"text": [f"a good {'b ' * (n % 5)}"]}) for n in range(8)]
    good += [("multitask_tokens", {"input_ids": [[2, 4 + n, 3]]}) for n in range(8)]
    expected = [ask(model, **inputs) for model, inputs in good]
    bad = [BAD[case][:2] for case in BAD if case != "2 MB"]
    work = [(kind, i) for i in range(400) for kind in ("good", "bad" if i % 2 else "good")]

    def send(job: tuple[str, int]) -> str:
        kind, i = job
        model, inputs = (good if kind == "good" else bad)[i % len(good if kind == "good" else bad)]
        try:
            answers = ask(model, **inputs)
        except InferenceServerException as error:
            return f"{kind}: {error.status()}"
        if kind == "good" and all(
            np.allclose(answers[name], value, atol=1e-6) for name, value in expected[i % len(good)].items()
        ):
            return "good: right"
        return f"{kind}: answered {answers}"

    with ThreadPoolExecutor(16) as pool:
        outcomes = Counter(pool.map(send, work))
    assert outcomes == {"good: right": 600, "bad: StatusCode.INVALID_ARGUMENT": 200}


def test_a_bad_id_at_the_trunk_itself_fails_alone(ask: Ask) -> None:
    """Whoever goes past the tokenizer, straight to the trunk, still harms nobody else."""

    def send(i: int) -> str:
        ids = [[2, 9999 if i % 4 == 0 else 4, 3]]
        try:
            ask("trunk_00_01", input_ids=ids, attention_mask=[[1, 1, 1]], token_type_ids=[[0, 0, 0]])
        except InferenceServerException as error:
            return "refused" if error.message().startswith("trunk_00_01: ") else error.message()
        return "answered"

    with ThreadPoolExecutor(12) as pool:
        outcomes = [*pool.map(send, range(120))]
    assert [outcome == "refused" for outcome in outcomes] == [i % 4 == 0 for i in range(120)]
    assert set(outcomes) == {"refused", "answered"}


def test_megabytes_of_text_do_not_stall_the_neighbours(ask: Ask, server: Server) -> None:
    def tokenizer_cpu_s() -> float:
        assert server.pid is not None
        return next(found.cpu_s for found in stub_processes(server.pid) if found.stub.model == "tokenizer")

    before_s = tokenizer_cpu_s()
    huge: dict[str, Any] = {"text": ["good bad " * 14_000] * 32}
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask, "multitask", **huge) for _ in range(2)]
        while not all(future.done() for future in running):
            ask("multitask", text=["a"])
    assert all(future.result()["truncated"].all() for future in running)
    # 8 MB whole would take the tokenizer several seconds.
    assert tokenizer_cpu_s() - before_s < 3
