"""Answers of a real Triton: the same whatever is asked together, and nothing runs that was not asked for."""

from __future__ import annotations

import asyncio
import itertools
import re

import numpy as np
import pytest

from onetrunk.client import AsyncClient
from onetrunk.client.bench.run import settled_counters
from onetrunk.client.bench.samples import read_texts, sort_into_buckets

LINES = read_texts(None)


def test_scores_are_probabilities_or_numbers(client):
    answers = client.predict([line.text for line in LINES], [line.pair for line in LINES])
    assert not any(answer.truncated for answer in answers) or client.catalogue().max_length < 128
    for prediction in (said for answer in answers for said in answer.predictions.values()):
        task = client.tasks()[prediction.task]
        if task.labels:
            assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-4)
            assert prediction.label == max(prediction.scores, key=prediction.scores.__getitem__)
        else:
            assert np.isfinite(prediction.score)
            assert prediction.scores == {}


def test_every_subset_of_tasks_answers_as_all_do(client, form, equal):
    tasks, texts, pairs = form
    everything = client.predict(texts, pairs)
    assert all(list(answer.predictions) == tasks for answer in everything)
    subsets = [*((task,) for task in tasks), *itertools.islice(itertools.combinations(tasks, 2), 6), tuple(tasks)]
    for subset in subsets:
        equal(client.predict(texts, pairs, subset), everything, subset)


def test_only_the_heads_and_segments_that_are_needed_run(client, raw, form):
    tasks, texts, pairs = form
    served = client.tasks()
    for task in tasks:
        for _ in range(2):  # once more if a probe of serve-repo's own fell in between, which asks every task
            before = settled_counters(raw.statistics)
            client.predict(texts, pairs, [task])
            after = settled_counters(raw.statistics)
            ran = {key[0] for key, counters in after.items() if counters.since(before[key]).runs > 0}
            if (heads := {name for name in ran if name.startswith("head_")}) == {f"head_{task}"}:
                break
        assert heads == {f"head_{task}"}
        segments = [re.fullmatch(r"trunk_(\d+)_(\d+)", name) for name in ran if name.startswith("trunk_")]
        assert max(int(segment[2]) for segment in segments) == served[task].tap


def test_alone_and_in_a_batch_answers_are_the_same(client, form, equal):
    tasks, texts, pairs = form
    together = client.predict(texts, pairs)
    for text, pair, answer in itertools.islice(zip(texts, pairs, together, strict=True), 6):
        equal(client.predict(text, pair), [answer], tasks)


def test_many_rows_of_mixed_length_and_form_keep_their_order(client, equal):
    lines = [LINES[(7 * n) % len(LINES)] for n in range(150)]
    answers = client.predict([line.text for line in lines], [line.pair for line in lines])
    once = dict(zip(LINES, client.predict([line.text for line in LINES], [line.pair for line in LINES]), strict=True))
    for line, answer in zip(lines, answers, strict=True):
        equal([answer], [once[line]], answer.predictions)


def test_tokens_answer_as_their_text_does(client, raw, form):
    tasks, texts, _ = form
    lines = [line for line in LINES if line.text in texts]
    samples = [sample for bucket in sort_into_buckets(raw, client.catalogue(), lines).values() for sample in bucket]
    by_text = client.predict([sample.text for sample in samples], [sample.pair for sample in samples])
    by_tokens = client.predict_tokens(
        [sample.input_ids for sample in samples], [sample.token_type_ids for sample in samples], tasks
    )
    for one, other in zip(by_text, by_tokens, strict=True):
        for task in tasks:
            assert one[task].score == pytest.approx(other[task].score, abs=1e-4)


def test_a_text_too_long_is_cut_and_said_to_be(client, any_task):
    task, pair = any_task
    short, long = client.predict(["good", "good bad " * 600], [pair, pair], [task])
    assert (short.truncated, long.truncated) == (False, True)


def test_the_async_client_answers_as_the_sync_one(served, client, form, equal):
    tasks, texts, pairs = form

    async def ask():
        async with AsyncClient(served.grpc_url) as other:
            return await asyncio.gather(*(other.predict(texts, pairs) for _ in range(4)))

    expected = client.predict(texts, pairs)
    for answers in asyncio.run(ask()):
        equal(answers, expected, tasks)
