"""``bench-repo`` with a stand-in for perf_analyzer, which writes down what it was given."""

from __future__ import annotations

import csv
import json
import stat
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from onetrunk.admin import AdminClient
from onetrunk.client.bench import run
from onetrunk.client.bench.perf_analyzer import read_load
from onetrunk.client.bench.run import Counters, part_times, read_counters
from onetrunk.client.bench.samples import read_texts
from onetrunk.client.cli import bench_repo
from onetrunk.protocol.errors import BadInput, ServerError
from onetrunk.protocol.tls import Tls

# As perf_analyzer 2.51.0 writes it.
CSV_REPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "2,302.927,12,0,3,167,6570,1126,8,6142,8118,9158,11389\n"
)
OUTPUT = """\
Request concurrency: 2
  Pass [1] throughput: 399.642 infer/sec. Avg latency: 4972 usec (std 4079 usec).
  Pass [2] throughput: 450.321 infer/sec. Avg latency: 4410 usec (std 1138 usec).
  Pass [3] throughput: 321.764 infer/sec. Avg latency: 6208 usec (std 1779 usec).
"""

PROGRAM = f"""#!{sys.executable}
import json, pathlib, sys
arguments = sys.argv[1:]
if arguments == ["--version"]:
    sys.exit(print("Perf Analyzer Version 9.9 (commit unknown)"))
tls = [argument for argument in arguments if argument == "--ssl-grpc-use-ssl"]
arguments = [argument for argument in arguments if argument not in tls]
given = dict(zip(arguments[1::2], arguments[2::2])) | {{"tls": bool(tls)}}
log = pathlib.Path(__file__).with_name("log.jsonl")
with log.open("a") as file:
    file.write(json.dumps({{**given, "data": json.load(open(given["--input-data"]))["data"]}}) + "\\n")
if pathlib.Path(__file__).with_name("fail").exists():
    print("Thread [0] had error: out of memory", file=sys.stderr)
    sys.exit(99)
print({OUTPUT!r})
pathlib.Path(given["-f"]).write_text({CSV_REPORT!r})
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "bin" / "perf_analyzer"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def server(fake, monkeypatch):
    """The fake, with a tokenizer that makes a token of each word, and statistics that rise."""
    asked = []

    def infer(self, model, inputs, outputs=()):
        asked.append((model, inputs))
        if model != "tokenizer":
            return {}
        columns = zip(inputs["text"][:, 0], inputs["text_pair"][:, 0], strict=True)
        lengths = [len(text.split()) + len(pair.split()) for text, pair in columns]
        mask = np.zeros((len(lengths), 16), np.int64)
        for row, length in enumerate(lengths):
            mask[row, : min(length, 16)] = 1
        ids = mask * np.arange(1, 17)
        return {"padded_attention_mask": mask, "padded_input_ids": ids, "padded_token_type_ids": mask * 0}

    # Each stands still for two readings: that is when bench-repo takes the counters to be settled.
    readings = (number for number in range(1, 1000) for _ in range(2))

    def statistics(self):
        reading = next(readings)
        return [
            _model("head_sst2", reading, 2, 3),
            _model("trunk_00_02", reading, 4, 5),
            _model("multitask", reading, 0, 9),
        ]

    # A class of its own: the watchdog of a server that another test left running uses the other one.
    methods = {"infer": infer, "statistics": statistics, "version": lambda self: "2.51.0"}
    monkeypatch.setattr(run, "AdminClient", type("FakeAdminClient", (AdminClient,), methods))
    fake.asked = asked
    return fake


def _model(name, reading, queue_ms, compute_ms):
    def times(ms):
        return SimpleNamespace(count=10 * reading, ns=int(ms * 10 * reading * 1e6))

    return SimpleNamespace(
        name=name,
        version="1",
        inference_count=40 * reading,
        execution_count=5 * reading,
        inference_stats=SimpleNamespace(
            success=times(0),
            queue=times(queue_ms),
            compute_input=times(1),
            compute_infer=times(compute_ms),
            compute_output=times(1),
        ),
    )


@pytest.fixture
def bench(server, program, tmp_path):
    """Runs the command on two buckets of rows; gives click's result."""
    texts = tmp_path / "texts.jsonl"
    rows = [{"text": "three short words"}, {"text": "two words", "text_pair": "and three more"}, {"text": "word " * 12}]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments):
        options = ["--url", server.url, "--texts", str(texts), "--perf-analyzer", str(program), "--seconds", "1.5"]
        return CliRunner().invoke(bench_repo, [*options, *arguments])

    return run


def log(program):
    return [json.loads(line) for line in program.with_name("log.jsonl").read_text().splitlines()]


def test_the_files_of_tls_are_passed_on(bench, program, monkeypatch, tmp_path):
    # perf_analyzer is a stand-in, so the files need not hold anything, and the fake server speaks no TLS.
    monkeypatch.setattr("onetrunk.client.cli.options.tls_fault", lambda url, tls: None)
    monkeypatch.setattr(Tls, "read", lambda self: (None, None, None))
    monkeypatch.setattr(
        "onetrunk.client.core.ClientCore._open_channel",
        lambda self, grpc, address, fleet: grpc.insecure_channel(address),
    )
    files = {"--tls-ca": "ca.pem", "--tls-cert": "client.pem", "--tls-key": "client.key"}
    result = bench("--concurrency", "1", *(part for option, name in files.items() for part in (option, name)))
    assert result.exit_code == 0, result.output
    for started in log(program):
        assert started["tls"]
        assert started["--ssl-grpc-root-certifications-file"] == "ca.pem"
        assert started["--ssl-grpc-certificate-chain-file"] == "client.pem"
        assert started["--ssl-grpc-private-key-file"] == "client.key"
    refused = bench("--tls-server-name", "triton.example")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "give triton.example in --url" in refused.stderr


def test_with_a_key_bench_repo_sends_the_requests_itself(bench, program, server, tmp_path):
    file = tmp_path / "keys"
    file.write_text("a-key\n")
    file.chmod(0o600)
    result = bench("--api-key-file", str(file), "--seconds", "0.3", "--concurrency", "2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["load_by"] == "bench-repo's own load"
    assert not program.with_name("log.jsonl").exists(), "perf_analyzer was not started"
    loads = [point["load"] for point in report["points"]]
    assert len(loads) == 4
    sent = {
        model: [one for one in server.requests if one.model == model] for model in ("multitask", "multitask_tokens")
    }
    for model, (first, second) in zip(sent, (loads[:2], loads[2:]), strict=True):
        assert 0.3 * (first["throughput"] + second["throughput"]) <= len(sent[model])
        assert len(sent[model]) > 10
    assert all(0 < load["p50_ms"] <= load["p99_ms"] for load in loads)
    assert server.keys == {"Bearer a-key"}


def test_every_model_bucket_and_concurrency_is_measured_once(bench, program):
    assert bench("--concurrency", "1:2").exit_code == 0
    runs = log(program)
    assert [(run["-m"], len(run["data"]), run["--concurrency-range"]) for run in runs] == [
        (model, rows, concurrency)
        for model in ("multitask", "multitask_tokens")
        for rows in (2, 1)
        for concurrency in "12"
    ]
    assert {run["--measurement-interval"] for run in runs} == {"500"}
    assert {run["-b"] for run in runs} == {"1"}
    assert {run["-i"] for run in runs} == {"grpc"}


def test_rows_go_in_as_text_and_as_unpadded_tokens(bench, program):
    bench("--concurrency", "1")
    texts, _, tokens, _ = (run["data"] for run in log(program))
    assert texts == [{"text": ["three short words"]}, {"text": ["two words"], "text_pair": ["and three more"]}]
    assert tokens == [
        {
            "input_ids": {"content": list(range(1, length + 1)), "shape": [length]},
            "token_type_ids": {"content": [0] * length, "shape": [length]},
        }
        for length in (3, 5)
    ]


def test_every_row_is_asked_once_before_it_is_measured(bench, server):
    bench("--concurrency", "1", "--models", "multitask", "--buckets", "8")
    assert [model for model, _ in server.asked] == ["tokenizer", "multitask", "multitask"]


def test_tables_for_people(bench):
    result = bench("--concurrency", "1,2", "--models", "multitask", "--buckets", "16")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "multitask 16 1 302.9 42 6.14 11.39" in lines
    assert "head_sst2 10 8.00 2.000 5.000" in lines
    assert "trunk_00_02 10 8.00 4.000 7.000" in lines
    assert lines.count("multitask, 16 tokens") == 1


def test_files(bench, tmp_path):
    result = bench("--concurrency", "1,2", "--json", "--output", str(tmp_path / "results"))
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "results" / "bench.json").read_text())
    assert len(printed["points"]) == 8
    point = printed["points"][0]
    assert (point["model"], point["bucket"], point["rows"], point["concurrency"]) == ("multitask", 8, 2, 1)
    assert point["load"]["throughput"] == 302.927
    assert [part["part"] for part in point["parts"]] == ["head_sst2", "trunk_00_02"]
    with (tmp_path / "results" / "load.csv").open() as file:
        loads = list(csv.DictReader(file))
    assert len(loads) == 8
    assert loads[0]["p99 ms"] == "11.39"
    with (tmp_path / "results" / "parts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16
    markdown = (tmp_path / "results" / "bench.md").read_text()
    assert "| multitask_tokens | 16 | 2 | 302.9 | 42 | 6.14 | 11.39 |" in markdown
    assert "Triton 2.51.0, load by perf_analyzer 9.9" in markdown


def test_a_failing_run_ends_it_with_the_programs_words(bench, program):
    program.with_name("fail").touch()
    result = bench()
    assert result.exit_code == 1
    assert "perf_analyzer on multitask failed: Thread [0] had error: out of memory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--buckets", "32"], "no text has a padded length of 32 tokens; the texts fill 8, 16"),
        (["--models", "trunk"], "'trunk' is none of multitask, multitask_tokens"),
        (["--concurrency", "0,1"], "from 1 up"),
        (["--concurrency", "4:1"], "from 1 up"),
        (["--concurrency", "1:2:3:4"], "give numbers as in 1,2,4 or a range"),
        (["--concurrency", "many"], "give numbers as in 1,2,4 or a range"),
    ],
)
def test_mistakes_of_the_user_end_with_2(bench, arguments, message):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--compare"],
        ["--compare", "--scenarios", "base"],
        ["--scenarios", "base"],
        ["--repeats", "3"],
        ["--work", "w"],
        ["--heads", "x"],
        ["--peers", __file__],
    ],
)
def test_old_options_of_the_comparison_name_its_command(bench, arguments):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert f"{arguments[0]} is not an option" in result.stderr
    assert "python -m benchmarks.compare" in result.stderr
    assert "checkout" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ranges_of_concurrency(bench, program):
    bench("--concurrency", "1:5:2", "--models", "multitask", "--buckets", "16")
    assert [run["--concurrency-range"] for run in log(program)] == ["1", "3", "5"]


def test_nothing_is_measured_on_half_of_a_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\nnope\n')
    with pytest.raises(BadInput, match=r"texts\.jsonl:2: not JSON"):
        read_texts(path)
    path.write_text("\n")
    with pytest.raises(BadInput, match="no rows in it"):
        read_texts(path)
    path.write_text('{"text": " "}\n')
    with pytest.raises(BadInput, match="nothing to read"):
        read_texts(path)


def test_texts_of_many_lengths_come_with_the_package():
    lines = read_texts(None)
    words = [len(f"{line.text} {line.pair or ''}".split()) for line in lines]
    assert min(words) < 10
    assert max(words) > 80
    assert sum(line.pair is not None for line in lines) >= 10
    assert len({line.text for line in lines}) == len(lines) >= 30


def test_parts_that_did_not_run_and_ensembles_are_left_out():
    before = {("head_a", "1"): Counters(5, 5, 5, 100, 100), ("head_b", "1"): Counters(5, 5, 5, 100, 100)}
    after = {
        **before,
        ("head_a", "1"): Counters(9, 13, 7, 4_000_100, 8_000_100),
        ("head_a", "2"): Counters(2, 2, 1, 0, 2_000_000),
        ("multitask", "1"): Counters(9, 9, 9, 0, 0),
    }
    first, second = part_times(before, after)
    assert (first.part, first.requests, first.rows_a_run, first.queue_ms, first.compute_ms) == (
        "head_a",
        4,
        4.0,
        1.0,
        2.0,
    )
    assert (second.part, second.requests, second.rows_a_run, second.compute_ms) == ("head_a", 2, 2.0, 1.0)


def test_compute_time_counts_copying():
    ((_, counters),) = read_counters([_model("head_a", 1, 2, 3)]).items()
    assert counters == Counters(requests=10, rows=40, runs=5, queue_ns=20_000_000, compute_ns=50_000_000)


def test_figures_of_perf_analyzer():
    load = read_load(CSV_REPORT, OUTPUT)
    assert (load.throughput, load.p50_ms, load.p99_ms) == (302.927, 6.142, 11.389)
    assert load.spread == pytest.approx((450.321 - 321.764) / 302.927)
    for report in ("", "Concurrency,Inferences/Second\n1,5\n", CSV_REPORT.replace("302.927", "fast")):
        with pytest.raises(ServerError, match="cannot be read"):
            read_load(report, OUTPUT)
