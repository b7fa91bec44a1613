"""Buckets from a user's list or from real texts, and what they change in a repository."""

import gzip
import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner

from onetrunk.cli.build_repo import build_repo
from onetrunk.protocol.errors import UserError
from onetrunk.repository import BuildRequest, artifacts, build_repository
from onetrunk.repository.buckets import BucketRequest
from onetrunk.repository.configs import parameters_of
from onetrunk.repository.length_sample import sample_file, sample_tasks
from onetrunk.repository.state import changed_texts, read_state

LONG = " ".join(["film"] * 38)
# 40, 4, 4 and, as a pair with three special tokens, 9 tokens.
ROWS = [
    {"text": LONG},
    {"text": "good film"},
    {"sentence": "bad plot"},
    {"text": "a red light", "text_pair": "a film ."},
]
TASK = 'labels = ["bad", "good"]\ntrain = "train.jsonl"\ndev = "mood_dev.jsonl"\n'


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def traffic(tmp_path):
    return write_lines(tmp_path / "traffic.jsonl", ROWS)


@pytest.fixture
def tasks(tmp_path):
    """A folder of task files: ``mood`` has dev texts, ``topic`` has none."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mood.toml").write_text(TASK)
    (folder / "topic.toml").write_text(TASK.replace("mood_dev", "topic_dev"))
    rows = [{"sentence": "good film", "label": "good"}] * 3 + [{"sentence": LONG, "label": "bad"}]
    write_lines(folder / "mood_dev.jsonl", rows)
    return folder


def hashes(repository):
    return {
        str(path.relative_to(repository)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def repository(tiny_repository, tmp_path):
    return shutil.copytree(tiny_repository, tmp_path / "repository")


@pytest.fixture
def build(tiny_heads, tiny_trunk_folder, repository):
    def run(max_batch_tokens=None, **fields):
        return build_repository(
            BuildRequest(
                output=repository,
                heads=tiny_heads,
                trunk=tiny_trunk_folder,
                max_length=48,
                max_batch_tokens=max_batch_tokens,
                buckets=BucketRequest(**fields),
            )
        )

    return run


class TestSample:
    def test_singles_and_pairs_of_a_file(self, traffic, tiny_trunk):
        sample = sample_file(traffic, tiny_trunk, 48)
        assert sample.lengths == {40: 1, 4: 2, 9: 1}
        assert (sample.source, sample.notes) == ("traffic.jsonl", ())

    def test_longer_texts_are_cut(self, traffic, tiny_trunk):
        assert sample_file(traffic, tiny_trunk, 16).lengths == {16: 1, 4: 2, 9: 1}

    @pytest.mark.parametrize("name", ["traffic.txt", "traffic.txt.gz"])
    def test_plain_lines(self, tmp_path, tiny_trunk, name):
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as stream:
            stream.write(b"\xef\xbb\xbfgood film\r\n\n  \nbad \xff\na red light\n")
        sample = sample_file(tmp_path / name, tiny_trunk, 48)
        assert sample.lengths == {4: 1, 5: 1}
        assert sample.notes[0].endswith("are left out: broken line: 1: line 4 (invalid UTF-8 at byte 5)")

    def test_empty_second_text_is_none(self, tmp_path, tiny_trunk):
        rows = [{"text": "good film", "text_pair": None}, {"text": "good film", "text_pair": ""}]
        assert sample_file(write_lines(tmp_path / "t.jsonl", rows), tiny_trunk, 48).lengths == {4: 2}

    def test_words_in_a_list_are_a_text(self, tmp_path, tiny_trunk):
        rows = [{"tokens": ["good", "film"]}, {"tokens": "good film"}, {"tokens": ["good film"]}]
        sample = sample_file(write_lines(tmp_path / "t.jsonl", rows), tiny_trunk, 48)
        assert sample.lengths == {4: 2}
        assert "not a text: 1: line 3 ('tokens' has 'good film' as word 1" in sample.notes[0]

    def test_rows_that_no_server_takes_are_left_out_and_told(self, tmp_path, tiny_trunk):
        rows = [*ROWS, "{broken\n", {"text": 3}, {"text": " "}, {"words": "good film"}]
        sample = sample_file(write_lines(tmp_path / "t.jsonl", rows), tiny_trunk, 48)
        assert sample.lengths.total() == len(ROWS)
        assert all(f"{sort}: 1: line" in sample.notes[0] for sort in ("broken line", "not a text", "empty text"))
        assert "missing field: 1: line 8 (no text, sentence or tokens; there are: words)" in sample.notes[0]

    @pytest.mark.parametrize("rows", [[], [{"words": "good film"}]])
    def test_file_without_texts_is_refused(self, tmp_path, tiny_trunk, rows):
        with pytest.raises(UserError, match="contains no texts"):
            sample_file(write_lines(tmp_path / "t.jsonl", rows), tiny_trunk, 48)

    def test_dev_texts_of_the_tasks_where_found(self, tasks, tiny_trunk):
        sample = sample_tasks(["match", "mood", "topic"], tasks, None, tiny_trunk, 48)
        assert sample.lengths == {4: 3, 40: 1}
        assert sample.source == "dev texts of mood"
        assert [note.split(":")[0] for note in sample.notes] == ["no dev texts of match", "no dev texts of topic"]
        assert "no task 'match'" in sample.notes[0]
        assert "no dev data 'topic_dev.jsonl'" in sample.notes[1]

    def test_no_dev_texts_at_all_is_told(self, tasks, tiny_trunk):
        with pytest.raises(UserError, match=r"no dev texts of topic.*--texts FILE") as raised:
            sample_tasks(["topic"], tasks, None, tiny_trunk, 48)
        assert "\n" not in str(raised.value)


def test_chosen_buckets_change_configs_only_and_are_what_is_checked(build, repository, traffic, monkeypatch):
    before, checked = hashes(repository), []
    real = artifacts.check_parity
    monkeypatch.setattr(artifacts, "check_parity", lambda *args, **more: checked.append(args[3]) or real(*args, **more))
    report = build(lengths="auto", texts=traffic)
    assert report.buckets.lengths == (8, 16, 40, 48)
    assert report.buckets.padding_share == pytest.approx(1 - 57 / 72)
    assert checked == [(8, 16, 40, 48)]
    after = hashes(repository)
    assert {name for name in after if after[name] != before.get(name)} == {
        "manifest.json", "multitask/config.pbtxt", "multitask_tokens/config.pbtxt", "tokenizer/config.pbtxt"
    }  # fmt: skip
    assert set(report.models.values()) == {"version 1, kept"}


def test_origin_is_in_the_tokenizers_config_and_a_second_build_writes_nothing(build, repository, traffic):
    build(lengths="auto", texts=traffic)
    settings = parameters_of(read_state(repository).tokenizer)
    assert settings["buckets"] == "8,16,40,48"
    assert settings["buckets_from"] == "traffic.jsonl: 4 texts, 20.8% padding"
    assert not build(lengths="auto", texts=traffic).changed


def test_deployments_keep_the_buckets(build, repository, traffic):
    """What deploy-head writes are the texts of the state that it reads: they are what the build wrote."""
    build(lengths="auto", texts=traffic)
    state = read_state(repository)
    assert state.buckets == (8, 16, 40, 48)
    assert changed_texts(repository, state.texts) == {}


def test_a_batch_of_few_tokens_is_told_and_is_that_of_every_model(build, repository):
    report = build(max_batch_tokens=100)
    assert any("at most 2 texts" in note for note in report.notes)
    configs = {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}
    assert {"tokenizer", "trunk_00_01", "head_mood", "multitask", "multitask_tokens"} <= configs.keys()
    assert all("max_batch_size: 2\n" in text for text in configs.values())
    assert set(report.models.values()) == {"version 1, kept"}
    assert not build(max_batch_tokens=100).changed
    # What deploy-head writes.
    assert changed_texts(repository, read_state(repository).texts) == {}


def test_given_buckets_need_no_texts(build, repository):
    report = build(lengths=(8, 24, 48))
    assert (report.buckets.lengths, report.buckets.fit) == ((8, 24, 48), None)
    settings = parameters_of(read_state(repository).tokenizer)
    assert settings["buckets"] == "8,24,48"
    assert "buckets_from" not in settings


def test_given_buckets_are_measured_on_texts_but_not_said_to_come_from_them(build, repository, traffic):
    report = build(lengths=(16, 48), texts=traffic)
    assert report.buckets.padding_share == pytest.approx(1 - 57 / 96)
    assert "buckets_from" not in parameters_of(read_state(repository).tokenizer)


def test_few_buckets(build, traffic):
    assert build(lengths="auto", texts=traffic, most=2).buckets.lengths == (16, 48)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lengths": (32, 16, 48)}, "--buckets 32,16,48: give them in ascending order"),
        ({"lengths": (16, 16, 48)}, "give them in ascending order"),
        ({"lengths": (16, 32)}, r"the last one has to be --max-length \(48\).*or give --max-length 32"),
        ({"lengths": (2, 48)}, "the shortest that can hold a pair of texts has 5 tokens"),
        ({"lengths": "auto", "most": 0}, "--bucket-count 0: give at least 1"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(build, fields, message):
    with pytest.raises(UserError, match=message) as raised:
        build(**fields)
    assert "\n" not in str(raised.value)


@pytest.fixture
def command(tiny_heads, tiny_trunk_folder, repository):
    def run(*arguments):
        places = ["--heads", str(tiny_heads), "--trunk", str(tiny_trunk_folder), "--output", str(repository)]
        return CliRunner().invoke(build_repo, [*places, "--tasks", "all", "--max-length", "48", *arguments])

    return run


def test_command_says_buckets_and_padding(command, tasks):
    result = command("--buckets", "auto", "--task-dir", str(tasks))
    assert result.exit_code == 0
    assert "texts are padded to 8,40,48 tokens (dev texts of mood: 4 texts, 18.8% padding)" in result.stdout
    assert "note: no dev texts of grade" in result.stderr
    again = command("--buckets", "auto", "--task-dir", str(tasks))
    assert "nothing changed, nothing written" in again.stdout
    assert "18.8% padding" in again.stdout


def test_command_tells_scripts_too(command, traffic):
    buckets = json.loads(command("--buckets", "auto", "--texts", str(traffic), "--json").stdout)["buckets"]
    assert buckets["lengths"] == [8, 16, 40, 48]
    assert buckets["padding_share"] == pytest.approx(1 - 57 / 72)
    assert (buckets["chosen"], buckets["source"], buckets["texts"]) == (True, "traffic.jsonl", 4)


def test_command_measures_the_usual_buckets_on_texts(command, traffic):
    result = command("--texts", str(traffic), "--dry-run")
    assert "texts are padded to 16,32,48 tokens (traffic.jsonl: 4 texts" in result.stdout
    assert "--buckets auto" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--buckets", "16,x"], "--buckets 16,x: give auto, or lengths in tokens with commas"),
        (["--buckets", ","], "give auto, or lengths"),
        (["--buckets", "16,32"], "the last one has to be --max-length (48)"),
        (["--bucket-count", "4"], "--bucket-count has an effect with --buckets auto only"),
        (["--buckets", "auto", "--task-dir", "nowhere"], "no dev texts of grade, match, mood, topic"),
    ],
)
def test_command_refuses_in_one_line_with_exit_code_2(command, traffic, arguments, message):
    result = command(*[str(traffic) if argument == "TRAFFIC" else argument for argument in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    last = [line for line in result.stderr.splitlines() if line.strip()][-1]
    assert last.startswith("error: ")
    assert message in last
