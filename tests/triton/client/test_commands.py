"""``ask-repo`` and ``bench-repo`` against a real Triton."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from onetrunk.client.bench.perf_analyzer import NoPerfAnalyzer, find_perf_analyzer
from onetrunk.client.bench.samples import read_texts, sort_into_buckets
from onetrunk.client.cli import ask_repo, bench_repo

LINES = read_texts(None)


def test_ask_repo_prints_a_table_and_lists_the_tasks(served, client, any_task):
    task, pair = any_task
    arguments = ["a good text", *(["--pair", pair] if pair else []), "--url", served.grpc_url]
    table = CliRunner().invoke(ask_repo, arguments)
    assert table.exit_code == 0
    assert task in table.stdout
    listed = CliRunner().invoke(ask_repo, ["--list", "--url", served.grpc_url])
    assert all(name in listed.stdout for name in client.tasks())


def test_ask_repo_streams_a_file(served, client, tmp_path):
    forms = {task.form for task in client.tasks().values()}
    rows = [line for line in LINES if ("pair" if line.pair else "single") in forms]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"sentence": line.text, "sentence2": line.pair}) + "\n" for line in rows) + "broken\n"
    )
    result = CliRunner().invoke(ask_repo, ["--file", str(path), "--url", served.grpc_url])
    assert result.exit_code == 2
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == [line.text for line in rows]
    assert f"{path}:{len(rows) + 1}: not JSON" in result.stderr


def test_bench_repo_measures_a_real_server(served, client, raw, tmp_path):
    try:
        with find_perf_analyzer():
            pass
    except NoPerfAnalyzer as missing:
        pytest.skip(str(missing).splitlines()[0])
    bucket = min(sort_into_buckets(raw, client.catalogue(), LINES))
    options = ["--seconds", "0.6", "--concurrency", "1,2", "--buckets", str(bucket), "--output", str(tmp_path)]
    result = CliRunner().invoke(bench_repo, ["--url", served.grpc_url, "--json", *options])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [(point["model"], point["concurrency"]) for point in report["points"]] == [
        *(("multitask", 1), ("multitask", 2), ("multitask_tokens", 1), ("multitask_tokens", 2))
    ]
    heads = {f"head_{task}" for task in client.tasks()}
    for point in report["points"]:
        assert point["load"]["throughput"] > 0
        assert 0 < point["load"]["p50_ms"] <= point["load"]["p99_ms"]
        assert {"tokenizer"} | heads <= {part["part"] for part in point["parts"]}
        assert all(part["compute_ms"] > 0 for part in point["parts"])
    assert (tmp_path / "bench.md").exists()
