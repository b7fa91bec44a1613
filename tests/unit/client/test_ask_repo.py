"""The command ``ask-repo``: what it prints where, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from click.testing import CliRunner

from onetrunk.client.cli import ask_repo

COMMAND = [sys.executable, "-c", "from onetrunk.client.cli import ask_repo; ask_repo(prog_name='ask-repo')"]


@pytest.fixture
def ask(fake):
    """Runs the command on the fake; gives click's result."""

    def run(*arguments, stdin=None):
        return CliRunner().invoke(ask_repo, [*arguments, "--url", fake.url], input=stdin)

    return run


def records(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_table_for_people(ask):
    result = ask("abc", "[bold]x", "--pair", "second", "--pair", "third")
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["text", "task", "label", "score", "ms"]
    assert rows[2][:4] == ["abc", "mnli", "perhaps", "0.375"]
    assert "3.00" in result.stdout
    assert "[bold]x" in result.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_stdout_of_any_encoding_takes_every_text(fake, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    asked = [*COMMAND, "né 👍", "--tasks", "sst2", "--url", fake.url]
    table = subprocess.run(asked, env=environment, capture_output=True, timeout=60)
    assert (table.returncode, table.stderr) == (0, b"")
    header, _, row = table.stdout.decode(encoding).splitlines()[:3]
    assert "né" in row
    # Columns are laid out by what is printed; an emoji takes two places.
    wide = row.count("👍")
    assert row.index("sst2") + wide == header.index("task")
    lines = subprocess.run([*asked, "--json"], env=environment, capture_output=True, timeout=60)
    assert json.loads(lines.stdout.decode(encoding))["text"] == "né 👍"


def test_the_table_says_what_was_cut_and_shows_more_labels(ask):
    result = ask("word " * 40, "--tasks", "sst2", "--top", "2")
    assert "its end was not read" in result.stdout
    assert "positive" in result.stdout
    assert "negative" in result.stdout


def test_control_characters_do_not_reach_the_terminal(ask):
    assert "\x1b" not in ask("evil \x1b[2J text").stdout


def test_json_lines(ask):
    (record,) = records(ask("abc", "--json", "--tasks", "cola,sst2"))
    assert record["text"] == "abc"
    assert list(record["predictions"]) == ["cola", "sst2"]
    assert record["predictions"]["sst2"] == {
        "label": "positive",
        "score": 0.75,
        "scores": {"positive": 0.75, "negative": 0.25},
    }
    assert "line" not in record


def test_top_limits_the_labels_in_json(ask):
    (record,) = records(ask("abc", "--pair", "x", "--json", "--top", "2"))
    assert len(record["predictions"]["mnli"]["scores"]) == 2
    assert record["predictions"]["stsb"] == {"score": 3.0}


def test_a_file_of_json_lines(ask, tmp_path):
    path = tmp_path / "texts.jsonl.gz"
    rows = [{"sentence": "x" * n} if n % 2 else {"text": "x" * n, "text_pair": "y"} for n in range(1, 41)]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    result = ask("--file", str(path))
    assert result.exit_code == 0
    answers = records(result)
    assert [record["line"] for record in answers] == list(range(1, 41))
    assert [len(record["text"]) for record in answers] == list(range(1, 41))
    assert set(answers[0]["predictions"]) == {"sst2", "cola"}
    assert answers[1]["text_pair"] == "y"
    assert answers[1]["predictions"]["stsb"]["score"] == 2.0
    assert "40 rows answered, 0 could not be" in result.stderr
    path.write_bytes(gzip.compress(b'{"text": "one"}\n'))
    assert "1 row answered, 0 could not be" in ask("--file", str(path)).stderr


def test_a_file_of_words(ask, tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text('{"tokens": ["play", "it"], "tags": ["O", "O"]}\n{"tokens": ["play it"]}\n{"tokens": []}\n')
    result = ask("--file", str(path), "--tasks", "sst2")
    assert result.exit_code == 2
    assert [record["text"] for record in records(result)] == ["play it"]
    assert f"{path}:2: field tokens has 'play it' as word 1: empty, or with a blank in it\n" in result.stderr
    assert f"{path}:3: text is empty" in result.stderr


def test_a_file_of_plain_text(ask, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text('{"text": "not read as JSON"}\n\nsecond\n')
    assert [record["text"] for record in records(ask("--file", str(path)))] == [
        '{"text": "not read as JSON"}',
        "second",
    ]


def test_broken_lines_are_named_and_the_rest_is_answered(ask, tmp_path, fake):
    fake.refuse = lambda row: "nothing to read" if row[0] == "?" else None
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "a"}\nnope\n{"text": "?"}\n{"text": "b"}\n\xff\n{"text": ""}\n')
    result = ask("--file", str(path), "--tasks", "sst2")
    assert result.exit_code == 2
    assert [record["line"] for record in records(result)] == [1, 4]
    assert f"{path}:2: not JSON" in result.stderr
    assert f"{path}:3: text: nothing to read" in result.stderr
    assert f"{path}:5: not UTF-8" in result.stderr
    assert f"{path}:6: text is empty" in result.stderr
    assert "2 rows answered, 4 could not be" in result.stderr


def test_many_broken_lines_are_counted(ask, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("nope\n" * 1000)
    result = ask("--file", str(path))
    assert result.stderr.count("not JSON") == 20
    assert f"{path}: ... and 980 more\n" in result.stderr
    assert "0 rows answered, 1,000 could not be" in result.stderr


def test_stdin_is_read_as_what_it_looks_like(ask):
    assert [record["text"] for record in records(ask("--file", "-", stdin="one\ntwo\n"))] == ["one", "two"]
    assert [record["text"] for record in records(ask("--file", "-", stdin='{"text": "one"}\n'))] == ["one"]
    assert [record["text"] for record in records(ask("--file", "-", "--format", "text", stdin="{x\n"))] == ["{x"]


def test_stdin_is_answered_line_by_line_as_it_comes(fake):
    command = [*COMMAND, "--file", "-", "--url", fake.url, "--tasks", "sst2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = threading.Timer(30, process.kill)
        deadline.start()
        for text in (b"one", b"another"):
            process.stdin.write(text + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text.decode()
        process.stdin.close()
        assert process.wait() == 0
        deadline.cancel()


def test_a_reader_that_goes_away_ends_it_quietly(fake, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("some text\n" * 20_000)
    command = [*COMMAND, "--file", str(path), "--url", fake.url, "--tasks", "sst2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(timeout=60) == 1
    assert "Traceback" not in said
    assert sum(len(request.rows) for request in fake.requests) < 20_000


def test_list_shows_the_tasks(ask):
    result = ask("--list")
    assert result.exit_code == 0
    for word in ("sst2", "negative,", "stsb", "regression", "0 to 5", "2+1"):
        assert word in result.stdout
    listed = {record["name"]: record for record in records(ask("--list", "--json"))}
    assert listed["mnli"]["labels"] == ["yes", "perhaps", "no"]
    assert listed["stsb"]["range"] == [0.0, 5.0]


def test_list_shows_whole_values_and_only_the_tasks_that_are_named(ask, fake):
    labels = [f"Label{number}OfAnIntent" for number in range(20)]
    fake.tasks = {**fake.tasks, "intent": {**fake.tasks["sst2"], "labels": labels}}
    listed = ask("--list", "--tasks", "intent,cola").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["task", "intent", "cola"]
    assert listed[1].endswith(", ".join(labels))
    assert [record["name"] for record in records(ask("--list", "--json", "--tasks", "cola"))] == ["cola"]
    assert "(did you mean cola?)" in ask("--list", "--tasks", "colla").stderr


def test_without_a_server_it_says_how_to_start_one():
    result = CliRunner().invoke(ask_repo, ["text", "--url", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in result.stderr
    assert "serve-repo" in result.stderr
    assert result.stdout == ""


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_port_that_speaks_http_is_told():
    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{server.server_port}"
        result = CliRunner().invoke(ask_repo, ["text", "--url", url])
        server.shutdown()
    assert result.exit_code == 1
    said = f"error: what listens at {url} speaks no gRPC, as a server's HTTP port does: give its gRPC port, often 8001"
    assert said in result.stderr.splitlines()
    assert "serve-repo" not in result.stderr


def test_failures_of_the_server_are_no_mistakes_of_the_user(ask, fake):
    fake.faults.append((grpc.StatusCode.INTERNAL, "out of memory"))
    result = ask("text")
    assert (result.exit_code, result.stderr) == (1, "error: out of memory (INTERNAL)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either TEXTS, or --file"),
        (["text", "--file", "x.txt"], "give either TEXTS, or --file"),
        (["--pair", "x", "--list"], "give either TEXTS, or --file"),
        (["one", "two", "--pair", "x"], "1 --pair for 2 texts"),
        (["--file", "/no/such/file.jsonl"], "/no/such/file.jsonl: No such file"),
        (["text", "--tasks", " , "], "--tasks"),
        (["text", "--tasks", "stts"], "unknown task 'stts' (did you mean stsb?). Served: "),
        (["text", "--tasks", "sst2,stsb"], "error: task 'stsb' reads a pair: give its second text by --pair\n"),
        (["a", "--pair", "b", "--tasks", "sst2"], "error: task 'sst2' reads one text: leave --pair out\n"),
        ([" "], "error: text has nothing to read"),
        ([""], "error: text is empty\n"),
        (["one", ""], "error: row 1: text is empty\n"),
        (["one", "--pair", "x", "--pair", "y"], "2 --pair for 1 text: give"),
        (["text", "--top", "0"], "--top"),
        (["text", "--timeout", "0"], "--timeout"),
    ],
)
def test_mistakes_of_the_user_end_with_2(ask, fake, arguments, message):
    result = ask(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert fake.requests == []


def test_help_shows_examples():
    result = CliRunner().invoke(ask_repo, ["--help"])
    assert result.exit_code == 0
    assert 'ask-repo "How old is he?" --pair' in result.stdout


def test_the_commands_load_neither_torch_nor_onnxruntime_nor_the_other_packages():
    program = (
        "import sys, onetrunk.client.cli\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'onnxruntime', 'transformers'})\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith('onetrunk.')}\n"
        "print(*ours - {'admin', 'client', 'protocol'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
