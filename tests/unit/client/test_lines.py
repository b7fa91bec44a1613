"""The input of ``ask-repo``: every line is a row, a blank, or named with its fault; memory is bounded."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrunk.client import Client, NotReady
from onetrunk.client import lines as lines_module
from onetrunk.client.lines import CHUNK_ROWS, BadLine, Line, answer_lines, chunks, is_plain, open_lines, read_lines


def read(content, *, plain=None):
    return list(read_lines(io.BytesIO(content), plain=plain))


def test_both_spellings_of_the_fields():
    content = b'{"text": "a", "text_pair": "b", "label": 1}\r\n{"sentence": "c"}\n{"sentence": "d", "sentence2": null}'
    assert read(content) == [Line(1, "a", "b"), Line(2, "c"), Line(3, "d")]


def test_words_in_a_list_are_a_text():
    """As training and comparing read them."""
    content = '{"tokens": ["play", "caf\u00e9", ","], "tags": ["O", "O", "O"]}\n{"tokens": "play it"}\n{"tokens": []}\n'
    assert read(content.encode()) == [Line(1, "play caf\u00e9 ,"), Line(2, "play it"), Line(3, "")]


def test_a_text_comes_before_its_tokens():
    content = b'{"tokens": [1, 2], "text": "a"}\n{"sentence": "b", "tokens": ["c"]}\n{"text": null, "tokens": ["d"]}\n'
    assert read(content) == [Line(1, "a"), Line(2, "b"), Line(3, "d")]


def test_blank_lines_are_no_rows_but_are_counted():
    assert read(b"\n\none\n \t\ntwo\n\n") == [Line(3, "one"), Line(5, "two")]


def test_the_first_row_decides_when_nobody_does():
    assert read(b'\xef\xbb\xbf{"text": "a"}\nb\n')[0] == Line(1, "a")
    assert read(b'plain\n{"text": "a"}\n') == [Line(1, "plain"), Line(2, '{"text": "a"}')]
    assert read(b'{"text": "a"}\n', plain=True) == [Line(1, '{"text": "a"}')]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "not JSON: Expecting value at 0"),
        (b'["a"]', "a JSON list, expected an object with text, sentence or tokens"),
        (b'{"txt": "a"}', "no field text, sentence or tokens; found txt"),
        (b"{}", "found none"),
        (b'{"text": 3}', "field text is int, expected a string"),
        (b'{"text": "a", "sentence": "b"}', "fields text and sentence both given"),
        (b'{"text": "a", "text_pair": ["b"]}', "field text_pair is list"),
        (b'{"tokens": 3}', "field tokens is int, expected a list of words"),
        (b'{"tokens": ["a", 3]}', "field tokens has 3 as word 2, expected a string"),
        (b'{"tokens": ["play a"]}', "field tokens has 'play a' as word 1: empty, or with a blank in it"),
        (b'{"tokens": ["a", ""]}', "field tokens has '' as word 2: empty, or with a blank in it"),
        (b'{"tokens": ["a\\n"]}', r"field tokens has 'a\n' as word 1"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at 10"),
        (b"[" * 100_000, "recursion"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "digits"),
    ],
)
def test_bad_lines_are_named_and_harm_no_other(line, reason):
    before, bad, after = read(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n', plain=False)
    assert (before, after) == (Line(1, "a"), Line(3, "b"))
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert reason in bad.reason


def test_a_line_too_long_is_passed_over(monkeypatch):
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 10)
    assert read(b"short\n" + b"x" * 35 + b"\nnext\n" + b"y" * 35) == [
        Line(1, "short"),
        BadLine(2, "longer than 10 bytes"),
        Line(3, "next"),
        BadLine(4, "longer than 10 bytes"),
    ]


def test_a_gzip_file_cut_off(tmp_path):
    whole = gzip.compress("\n".join(json.dumps({"text": f"row {n} {n**7}"}) for n in range(5000)).encode())
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    raw, content = open_lines(path)
    with raw:
        *rows, last = read_lines(content, plain=False)
    assert rows[0] == Line(1, "row 0 0")
    assert isinstance(last, BadLine)
    assert last.reason.startswith("cannot be read, nor anything after it")


@pytest.mark.parametrize(
    ("name", "plain"), [("a.txt", True), ("a.txt.gz", True), ("a.jsonl", False), ("a.jsonl.gz", False), ("a", False)]
)
def test_the_name_says_what_is_in_it(name, plain):
    assert is_plain(Path(name)) is plain


@given(st.binary(max_size=300), st.sampled_from([None, True, False]))
def test_any_bytes_give_rising_numbers_of_lines_that_have_something(content, plain):
    results = read(content, plain=plain)
    numbers = [result.number for result in results]
    filled = [number for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    # A byte order mark alone on the first line is a blank line.
    assert numbers == filled or [1, *numbers] == filled


def test_chunks_keep_order_and_size():
    taken = list(chunks(range(1000), 64))
    assert list(itertools.chain(*taken)) == list(range(1000))
    assert max(map(len, taken)) <= 64
    assert all(taken)


def test_what_has_come_in_is_not_held_back():
    more = threading.Event()

    def slow():
        yield "first"
        assert more.wait(60)
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
