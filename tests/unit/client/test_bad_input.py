"""What a caller can do wrong: told before anything is sent, with the row."""

from __future__ import annotations

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
        (["a", "b"], ["c"], None, "1 pairs for 2 texts"),
        (["a", "b"], "c", None, "one string for a list of 2 texts"),
        (None, None, None, "texts is NoneType"),
        (["a", "b"], [None, "c"], ["sst2"], "row 1: task 'sst2' reads one text, but a pair was given"),
        (["a", "b"], ["c", None], ["stsb"], "row 1: task 'stsb' reads a pair, but none was given"),
        (["a"], None, [], "tasks is an empty list"),
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
        ([[1.5]], None, "row 0: input_ids must be a sequence of whole numbers"),
        ([[1, 2]], [[0]], "row 0: 1 token_type_ids for 2 input_ids"),
        ([[1, 2]], [[0, 2]], "row 0: token_type_ids has 2"),
        ([[1, 2]], [], "0 rows of token_type_ids for 1"),
        ([[1] * 17], None, "row 0: 17 tokens, at most 16"),
    ],
)
def test_bad_tokens_are_refused_before_anything_is_sent(fake, make_client, ids, types, message):
    with make_client(fake.url) as client, pytest.raises(BadInput, match=message):
        client.predict_tokens(ids, types)
    assert fake.requests == []


def test_unknown_tasks_name_the_known(fake, make_client):
    with make_client(fake.url) as client, pytest.raises(UnknownTask, match=r"'sst3'.*'sst2'.*cola, mnli, sst2, stsb"):
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
    [{"url": "http://127.0.0.1:8000"}, {"timeout_s": 0}, {"max_in_flight": 0}, {"retries": -1}],
    ids=lambda options: next(iter(options)),
)
def test_settings_out_of_range(make_client, options):
    with pytest.raises(BadInput, match=next(iter(options))):
        make_client(**options)
