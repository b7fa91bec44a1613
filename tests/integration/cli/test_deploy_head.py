"""The command: what a user types, reads, and gets as exit code."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from onetrunk.cli.deploy_head import deploy_head


@pytest.fixture
def run(repository, tiny_trunk_folder):
    """Runs deploy-head on the files alone."""

    def invoke(*arguments):
        where = ["--repository", str(repository), "--trunk", str(tiny_trunk_folder), "--offline"]
        return CliRunner().invoke(deploy_head, [*map(str, arguments), *where])

    return invoke


def test_a_user_goes_through_a_heads_life(run, bundle):
    result = run(bundle())
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("mood version 2 is live (before: 1), ")
    assert run("--rollback", "mood").stdout.startswith("mood version 1 is live again (before: 2), ")
    assert run("--candidate", bundle(shift=3.0)).stdout.startswith(
        "mood version 3 is tried as mood_candidate, beside version 1, "
    )
    assert run("--promote").stdout.startswith("mood version 3 is live (before: 1)")
    assert run("--remove", "grade").stdout.startswith("grade is no longer served (before: 1)")
    listed = run("--list")
    assert "removed" in listed.stdout
    assert listed.stdout.splitlines()[0].split()[:3] == ["task", "served", "on"]
    assert run("--verify").stdout == "manifest and disk agree\n"
    assert run("--prune", "--keep", 1).stdout.startswith("removed 3 folders: head_grade, head_mood/1, head_mood/2")
    assert run("--prune", "--keep", 1).stdout == "nothing to do\n"
    assert run(bundle(shift=3.0)).stdout == "mood: version 3 is served already; nothing to do\n"
    run("--candidate", bundle(shift=4.0))
    assert run("--discard").stdout.startswith("candidate version 4 of mood is discarded; version 3 is live")
    log = run("--log", "--task", "grade").stdout.splitlines()
    assert len(log) == 2
    assert log[1].endswith("remove grade  1 -> -  done")


def test_points_to_lose_are_refused_where_nothing_is_lost(run, bundle):
    result = run(bundle(), "--max-loss", 1)
    assert result.exit_code == 2
    assert result.stderr.endswith("is of fp32, by which nothing is lost: leave it out\n")
    assert "error: --max-loss: " in result.stderr


def test_dry_run_shows_files_and_config_changes(run, bundle):
    result = run(bundle(), "--dry-run")
    assert result.exit_code == 0
    assert "would write head_mood/2/model.onnx\n" in result.stdout
    assert "-    model_version: 1\n+    model_version: 2\n" in result.stdout
    assert "mood: version 1 -> 2; 5 files would be written; no server was asked, nothing exported\n" in result.stderr
    assert json.loads(run("--list", "--json").stdout)[2]["versions"] == [1]


def test_a_list_that_is_no_terminals_has_a_line_for_each_task(run):
    lines = run("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "grade", "match", "mood", "topic"]
    assert all(re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d$", line) for line in lines[1:])


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_notes_on_the_trunk_are_shown(repository, bundle, tiny_trunk_folder, tmp_path, more):
    folder = shutil.copytree(tiny_trunk_folder, tmp_path / "trunk")
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    arguments = [str(bundle()), "--repository", str(repository), "--trunk", str(folder), "--offline", *more]
    result = CliRunner().invoke(deploy_head, arguments)
    assert result.exit_code == 0, result.output
    note = f"note: {folder}/tokenizer_config.json is not followed, as transformers cannot load this tokenizer"
    assert [line for line in result.stderr.splitlines() if line.startswith(note)]


def test_json(run, bundle):
    report = json.loads(run(bundle(), "--json").stdout)
    assert (report["task"], report["from_version"], report["to_version"], report["changed"]) == ("mood", 1, 2, True)
    assert json.loads(run("--verify", "--json").stdout) == []
    assert json.loads(run("--log", "--json").stdout)[-1]["result"] == "done"


def test_verify_that_finds_something_ends_with_1(run, repository):
    (repository / "head_mood/1/model.onnx").unlink()
    result = run("--verify")
    assert (result.exit_code, result.stdout) == (1, "head_mood/1/model.onnx: is missing\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "nothing to do: give one bundle, or one of --embed, --candidate"),
        ("nowhere", "nowhere: no such folder"),
        ("sst2", "sst2: no such folder: give heads/sst2"),
        ("sst", "sst: no such folder (did you mean sst2?): heads are in heads/"),
        ("heads/sst", "heads/sst: no such folder (did you mean sst2?)"),
        ("tests", "nor a head that was exported elsewhere (head.toml) is in it: give a folder that train-head wrote"),
        ("heads", "(head.toml) is in it: give one of the heads in it, such as heads/cola"),
        (
            "limbs/all",
            "limbs/all: it is a limb, not a head: give the folder of a head, which finds its limb by itself",
        ),
        ("heads/mood --list", "a bundle and --list: give one bundle, or one of"),
        ("--promote --discard", "--promote and --discard: give one"),
        ("--list --to 3", "--to goes with --rollback only"),
        ("--list --keep 3", "--keep goes with --prune only"),
        ("--rollback mood --max-loss 0.5", "--max-loss is for a head that comes in: a bundle, or --candidate"),
        ("--list --task-dir elsewhere", "--task-dir is for a head that comes in"),
        ("--remove mood --task mood", "--task goes with --compare or --promote or --discard or --log only"),
        ("--verify --dry-run", "--verify has no --dry-run"),
        (
            "--rollback moood",
            "no task 'moood' in this repository (did you mean mood?); there are: grade, match, mood, topic",
        ),
        ("--compare texts.jsonl", "--compare asks a server: leave --offline out"),
        ("--promote", "no candidate is being tried: deploy-head --candidate BUNDLE first"),
        ("--discard --task mood", "no candidate is being tried: deploy-head --candidate BUNDLE first"),
        ("--promote --share 5%", "--share goes with --candidate only"),
        ("--candidate nowhere --stop-errors 5%", "--stop-errors goes with --share only"),
        ("--list --embed-long-texts windows", "--embed-long-texts goes with --embed only"),
        ("--list --stop-latency 2", "--stop-latency goes with --candidate or --compare only"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    result = run(*arguments.split())
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_share_is_listed_and_read_as_people_write_it(run, bundle):
    assert run("--candidate", bundle(shift=3.0), "--share", "2.5%", "--stop-disagreement", "0.2").exit_code == 0
    assert "mood: candidate version 2 answers 2.5% of the requests\n" in run("--list").stdout
    (mood,) = [row for row in json.loads(run("--list", "--json").stdout) if row["task"] == "mood"]
    assert mood["split"] == {"share": 0.025, "errors": 0.02, "latency": 3.0, "disagreement": 0.2}
    for share in ("5", "0", "-1%", "101%", "nan", "half"):
        result = run("--candidate", bundle(shift=3.0), "--share", share)
        assert result.exit_code == 2
        assert f"{share!r}: give a share above 0% and up to 100%, as 5% or 0.05" in result.stderr


def test_url_with_a_protocol_is_refused(repository):
    result = CliRunner().invoke(deploy_head, ["--verify", "--repository", str(repository), "--url", "http://here:8001"])
    assert result.exit_code == 2
    assert "give host and port" in result.stderr


def test_help_and_rollback_import_no_torch(repository, deployer, bundle):
    deployer.deploy(bundle())
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom onetrunk.cli.deploy_head import deploy_head\n"
        "assert CliRunner().invoke(deploy_head, ['--help']).exit_code == 0\n"
        f"where = ['--offline', '--repository', {str(repository)!r}]\n"
        "for arguments in (['--rollback', 'mood'], ['--remove', 'grade'], ['--list'], ['--verify']):\n"
        "    result = CliRunner().invoke(deploy_head, [*arguments, *where])\n"
        "    assert result.exit_code == 0, result.output\n"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
