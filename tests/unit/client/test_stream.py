"""Endless input: bounded memory, no waiting for what is not there, bad rows apart."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from onetrunk.client import Client, NotReady
from onetrunk.client.lines import CHUNK_ROWS, BadLine, Line, answer_lines, chunks


def test_chunks_keep_order_and_size():
    taken = list(chunks(range(1000), 64))
    assert list(itertools.chain(*taken)) == list(range(1000))
    assert max(map(len, taken)) <= 64
    assert all(taken)


def test_what_has_come_in_is_not_held_back():
    more = threading.Event()

    def slow():
        yield "first"
        assert more.wait(10)
        yield "second"

    taken = chunks(slow(), 64)
    assert next(taken) == ["first"]
    more.set()
    assert next(taken) == ["second"]


def test_the_reader_runs_ahead_by_one_chunk_at_most():
    read = itertools.count()
    last = 0

    def endless():
        nonlocal last
        while True:
            last = next(read)
            yield last

    taken = chunks(endless(), 10)
    next(taken)
    time.sleep(0.1)
    assert last <= 10 + 10 + 1
    taken.close()
    time.sleep(0.3)
    stopped_at = last
    time.sleep(0.2)
    assert last == stopped_at


def test_an_error_of_the_reader_comes_after_what_was_read():
    def failing():
        yield 1
        raise OSError("disk on fire")

    taken = chunks(failing(), 64)
    assert next(taken) == [1]
    with pytest.raises(OSError, match="disk on fire"):
        next(taken)


def test_bad_rows_come_out_apart(fake):
    fake.refuse = lambda row: "refused by the server" if row[0] == "?" else None
    lines = [
        Line(1, "one"),
        BadLine(2, "not JSON"),
        Line(3, " "),
        Line(4, "?"),
        Line(5, "four"),
        Line(6, "?"),
        Line(7, "with", "a pair"),
    ]
    with Client(fake.url) as client:
        results = list(answer_lines(client, lines, ["sst2"]))
    assert [result[0].number for result in results if isinstance(result, tuple)] == [1, 5]
    reasons = {result.number: result.reason for result in results if isinstance(result, BadLine)}
    assert set(reasons) == {2, 3, 4, 6, 7}
    assert reasons[4] == reasons[6] == "text: refused by the server"
    assert "a pair was given" in reasons[7]


def test_thousands_of_lines(fake):
    fake.max_batch_size = 32
    lines = [Line(n, "x" * (n % 17 + 1), "y") for n in range(1, 3 * CHUNK_ROWS)]
    with Client(fake.url) as client:
        results = list(answer_lines(client, lines, ["stsb"]))
    assert [line for line, _ in results] == lines
    assert all(answer["stsb"].score == len(line.text) for line, answer in results)


def test_without_a_server_it_ends():
    with Client("127.0.0.1:1", retries=0) as client, pytest.raises(NotReady):
        list(answer_lines(client, [Line(1, "text")], None))
