"""What a caller can do wrong: told before anything is sent, with the row."""

from __future__ import annotations

import numpy as np
import pytest

from onetrunk.client import BadInput, UnknownTask


def test_the_servers_complaint_names_the_callers_row(fake, make_client):
    fake.refuse = lambda row: "nothing to read" if row[0] == "?" else None
    texts = ["long text " * 3] * 9 + ["?"] + ["text"] * 3
    with make_client(fake.url) as client, pytest.raises(BadInput) as raised:
        client.predict(texts)
    assert [(problem.row, problem.message) for problem in raised.value.problems] == [(9, "text: nothing to read")]


@pytest.mark.parametrize(
    ("texts", "pairs", "tasks", "message"),
    [
        (["fine", " \t", ""], None, None, "row 1: text has nothing to read.* 1 more problem"),
        (["fine", 3], None, None, "row 1: text is int, expected str"),
        (["fine"], [""], None, "row 0: pair is empty"),
        (["\ud800"], None, None, "row 0: text has a lone surrogate"),
        (["a", "b"], ["c"], None, "1 pair for 2 texts"),
        (["a", "b"], "c", None, "one string for a list of 2 texts"),
        (None, None, None, "texts is NoneType"),
        (["a", "b"], [None, "c"], ["sst2"], "row 1: task 'sst2' reads one text, but a pair was given"),
        (["a", "b"], ["c", None], ["stsb"], "row 1: task 'stsb' reads a pair, but none was given"),
        (["a"], None, [], "tasks is an empty list"),
        (5, None, None, "texts is int"),
        (b"bytes", None, None, "texts is bytes"),
        ({"a": "b"}, None, None, "texts is dict"),
        ({"a"}, None, None, "texts is set"),
        (np.array("a"), None, None, "texts is ndarray"),
        ([b"a"], None, None, "row 0: text is bytes"),
        (np.array([["a"]]), None, None, "row 0: text is ndarray"),
        (["a"], 5, None, "pairs is int"),
        (["a"], [5], None, "row 0: pair is int"),
        (["a"], None, 5, "tasks is int"),
        (["a"], None, b"sst2", "tasks is bytes"),
        (["a"], None, [["sst2"]], "tasks has list at place 0"),
        (["a"], None, ["sst2", None], "tasks has NoneType at place 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(fake, make_client, texts, pairs, tasks, message):
    with make_client(fake.url) as client, pytest.raises(BadInput, match=message):
        client.predict(texts, pairs, tasks)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([[1], []], None, "row 1: input_ids is empty"),
        ([[1, -1]], None, "row 0: input_ids has -1"),
        ([[1.5]], None, r"row 0: input_ids .*\[1\.5\]"),
        ([[1, 2]], [[0]], "row 0: 1 token_type_ids for 2 input_ids"),
        ([[1, 2]], [[0, 2]], "row 0: token_type_ids has 2"),
        ([[1, 2]], [], "0 rows of token_type_ids for 1"),
        ([[1] * 17], None, "row 0: 17 tokens, at most 16"),
        ([[101, 5, 102], []], [[0, 0, 0], []], "^row 1: input_ids is empty, expected 1 token or more$"),
        ([[1], [2]], [[0], []], "^row 1: 0 token_type_ids for 1 input_ids$"),
        ([[1.5], [2]], [[0]], "^1 row of token_type_ids for 2 of input_ids"),
        ([[-1], [2]], [[3], [4]], "^row 0: input_ids has -1.* 2 more problems"),
        (5, None, "^input_ids is int"),
        (None, None, "^input_ids is NoneType"),
        ("101 102", None, "^input_ids is str"),
        ([101, 102], None, "row 0: input_ids .* 101 .*"),
        ([b"ab"], None, "row 0: input_ids .*b'ab'"),
        (["ab"], None, "row 0: input_ids .*'ab'"),
        ([{1: 2}], None, "row 0: input_ids .*{1: 2}"),
        ([[None]], None, r"row 0: input_ids .*\[None\]"),
        ([[2**63]], None, f"row 0: input_ids has {2**63}"),
        (np.array([[1.0, 2.0]]), None, "row 0: input_ids"),
        (np.array(7), None, "^input_ids is ndarray"),
        ([[1]], 5, "^token_type_ids is int"),
        ([[1]], [5], "row 0: token_type_ids .*5"),
        ([[1]], [None], "row 0: token_type_ids .*None"),
    ],
)
def test_bad_tokens_are_refused_before_anything_is_sent(fake, make_client, ids, types, message):
    with make_client(fake.url) as client, pytest.raises(BadInput, match=message):
        client.predict_tokens(ids, types)
    assert fake.requests == []


def test_unknown_tasks_name_the_known(fake, make_client):
    with (
        make_client(fake.url) as client,
        pytest.raises(UnknownTask, match=r"'sst3' \(did you mean sst2\?\)\. Served: cola"),
    ):
        client.predict("text", tasks=["sst3"])
    assert fake.requests == []


def test_tasks_of_an_unknown_kind_are_left_out_unless_named(fake, make_client):
    fake.tasks["ner"] = {**fake.tasks["sst2"], "kind": "poetry"}
    with make_client(fake.url) as client:
        assert set(client.predict("text")[0].predictions) == {"sst2", "cola"}
        with pytest.raises(BadInput, match="'ner' is of kind 'poetry'"):
            client.predict("text", tasks=["ner"])


def test_pairs_without_a_task_for_them(fake, make_client):
    del fake.tasks["mnli"], fake.tasks["stsb"]
    with make_client(fake.url) as client, pytest.raises(BadInput, match="row 0: no task served reads a pair"):
        client.predict("text", "pair")


@pytest.mark.parametrize(
    "options",
    [
        *({"url": url} for url in ("http://127.0.0.1:8000", None, b"127.0.0.1:8001")),
        *({"timeout_s": seconds} for seconds in (0, "30", None, float("nan"), float("inf"))),
        *({"max_in_flight": number} for number in (0, 1.5, "4", None)),
        *({"retries": number} for number in (-1, 0.5, None)),
    ],
    ids=str,
)
def test_settings_out_of_range(make_client, options):
    with pytest.raises(BadInput, match=next(iter(options))):
        make_client(**options)


@pytest.mark.parametrize("timeout_s", [0, -1, "3", float("nan"), float("inf"), [1]], ids=str)
def test_a_calls_timeout_out_of_range(fake, make_client, timeout_s):
    with make_client(fake.url) as client, pytest.raises(BadInput, match="timeout_s"):
        client.predict("text", timeout_s=timeout_s)
    assert fake.requests == []


@pytest.mark.parametrize(
    ("texts", "pairs", "tasks"),
    [
        (lambda: iter(("one", "two")), lambda: None, lambda: iter(("sst2",))),
        (lambda: iter(("one", "two")), lambda: iter(("a", "b")), lambda: "stsb"),
        (lambda: {"one": 1, "two": 2}.keys(), lambda: None, lambda: {"sst2"}),
        (lambda: np.array(["one", "two"]), lambda: None, lambda: {"sst2": None}),
    ],
    ids=["iterators", "iterators of pairs", "views and sets", "arrays and mappings"],
)
def test_any_iterable_will_do(fake, make_client, texts, pairs, tasks):
    with make_client(fake.url) as client:
        assert len(client.predict(texts(), pairs(), tasks())) == 2


def test_names_from_a_generator_outlive_a_stale_catalogue(fake, make_client):
    with make_client(fake.url) as client:
        client.tasks()
        fake.tasks["later"] = fake.tasks["sst2"]
        (answer,) = client.predict("text", tasks=(name for name in ("later",)))
    assert set(answer.predictions) == {"later"}


@pytest.mark.parametrize(
    ("ids", "types"),
    [
        (lambda: iter(([1, 2], (3,))), lambda: iter(([0, 1], (0,)))),
        (lambda: np.array([[1, 2], [3, 4]]), lambda: np.array([[0, 0], [0, 1]], np.int32)),
        (lambda: [np.array([1, 2], np.uint8), range(1, 4)], lambda: None),
    ],
    ids=["iterators", "arrays", "rows of several types"],
)
def test_token_rows_of_any_iterable_will_do(fake, make_client, ids, types):
    with make_client(fake.url) as client:
        assert len(client.predict_tokens(ids(), types())) == 2
