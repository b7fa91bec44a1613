"""``search-heads``, from the command line to bundles, and what ``train-head`` says to the old spelling of it."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from benchmarks.study.__main__ import study as study_command
from benchmarks.study.trainings import run_ablation, run_grid
from onetrunk.cli.old_spellings import answer_to_old_spelling
from onetrunk.cli.search_heads import _print_time, search_heads
from onetrunk.cli.train_head import train_head
from onetrunk.distill import pipeline, task_search
from onetrunk.distill import quick as quick_module
from onetrunk.distill.costs import CostTable
from onetrunk.distill.jobs import Job, JobRunner
from onetrunk.distill.plan_file import Floors, PlanCost, PlanFile, PlannedHead, Retention, read_plan, write_plan
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import load_trials
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.trunk import load_trunk
from onetrunk.nn.whole_model import WholeModel
from onetrunk.tasks import Recipe, load_task
from onetrunk.training import loop
from onetrunk.training.evaluation import Evaluation
from onetrunk.training.experiment import ExperimentConfig
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.trainer import execute
from tests.conftest import write_tiny_trunk
from tests.fixtures.limbs import random_limb

TOML = """
labels = ["bad", "good"]
train = "{name}train.jsonl"
dev = "{name}dev.jsonl"
"""


@pytest.fixture
def folder(mood, second, tmp_path, monkeypatch):
    """A folder with the tasks ``mood`` and ``second``, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mood.toml").write_text(TOML.format(name=""))
    (tmp_path / "tasks" / "second.toml").write_text(TOML.format(name="second-"))
    monkeypatch.setenv("ONETRUNK_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def invoke(folder, tiny_trunk_folder, monkeypatch):
    """Runs search-heads there, on the tiny trunk."""
    # So small a trunk is faster in one thread.
    monkeypatch.setattr(pipeline, "threads_for", lambda *_: 1)

    def run(*arguments, trunk=tiny_trunk_folder):
        common = ["--trunk", str(trunk), "--data", str(folder), "--device", "cpu", "--precision", "fp32"]
        return CliRunner().invoke(search_heads, [*arguments, *common])

    return run


@pytest.fixture
def few_rounds(monkeypatch):
    """Measures costs in few rounds: a tiny trunk's are of no interest."""
    real = pipeline.measure_costs

    def measure(*args, **options):
        return real(*args, **{**options, "tokens": (8,), "repeats": 3})

    monkeypatch.setattr(pipeline, "measure_costs", measure)


@pytest.fixture
def small_plan(folder, new_experiment, mood, second, tiny_trunk):
    """A plan for ``mood`` alone, made by hand, with the records and weights of its run and of its teacher."""
    experiment = new_experiment(mood)
    experiment = dataclasses.replace(
        experiment, config=dataclasses.replace(experiment.config, runs=folder / "study" / "runs")
    )
    values = {"epochs": 1, "batch_size": 16, "max_length": 32}
    teacher = execute(RunSpec(task="mood", role="teacher", recipe=Recipe(tap=2, layers=2, **values)), experiment)
    recipe = Recipe(tap=2, layers=1, **values)
    spec = RunSpec(task="mood", role="student", recipe=recipe, distillation=Distillation(teacher=teacher.key))
    student = execute(spec, experiment)
    ms = {name: 1.0 for name in PlanCost.model_fields if name not in ("machine", "threads")}
    plan = PlanFile(
        trunk=tiny_trunk.identity,
        floors=Floors(task=0.9, average=0.9),
        kept=Retention(average=1, worst=1, worst_task="mood", meets_floor=True),
        cost=PlanCost(machine="", threads=1, **ms),
        tasks={"mood": PlannedHead(tap=2, layers=1, score=student.score, full=0.9, run=student.key)},
    )
    write_plan(folder / "study" / "small.toml", plan)
    return folder / "study" / "small.toml"


def one_line(result):
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line


@pytest.fixture
def scored(monkeypatch):
    """Makes a teacher of two layers the best, which has students; one layer is not so bad that long heads are tried."""

    def evaluate(model, data, task):
        layers = len(model.head.layers if isinstance(model, WholeModel) else model.layers)
        return Evaluation({"accuracy": {1: 0.85, 2: 0.95, 3: 0.7, 4: 0.9}[layers]}, ())

    monkeypatch.setattr(loop, "evaluate", evaluate)


def test_quick_search_writes_a_head_and_no_plan(invoke, folder):
    result = invoke("run", "mood", "--quick", "--max-length", "32", "--json")
    assert result.exit_code == 0, result.output
    what = "probes of taps 0 to 3, then one layer on the best and two on the tap below, no full fine-tuning"
    assert re.search(
        rf"quick search of 1 task: {what}, about \d+ (s|min) here.* without --quick: (about|no longer)", result.stderr
    )
    assert "note: [recipe]" not in result.stderr
    assert "mood: note: left out: full fine-tuning as the reference" in result.stderr
    (head,) = json.loads(result.stdout)
    assert (head["task"], head["layers"] in (1, 2)) == ("mood", True)
    assert load_bundle(folder / "heads" / "mood").spec.tap == head["tap"]
    assert not (folder / "study" / "plan.toml").exists()


@pytest.mark.parametrize(
    ("search", "quick", "said"),
    [
        (100.0, 20.0, "about 2 min here, by a few batches that were timed; --quick, which leaves out"),
        (2.0, 5.0, "about 2 s here, by a few batches that were timed"),
    ],
)
def test_a_quick_search_is_named_where_it_is_quicker(new_experiment, mood, monkeypatch, capsys, search, quick, said):
    monkeypatch.setattr(quick_module, "estimate_time", lambda *_, **__: quick_module.SearchTime(search, quick))
    _print_time(new_experiment(mood), ["mood"], 1)
    full = capsys.readouterr().err
    assert said in full
    assert ("--quick" in full) == (quick < search)
    _print_time(new_experiment(mood), ["mood"], 1, quick=True)
    other = "about 2 min" if quick < search else "no longer, and it finds more"
    assert f"the search without --quick: {other}\n" in capsys.readouterr().err


def test_a_recipe_that_a_search_does_not_follow_is_named(invoke, folder):
    with (folder / "tasks" / "mood.toml").open("a") as file:
        file.write("[recipe]\nepochs = 2\n")
    result = invoke("run", "mood", "second", "--quick", "--max-length", "32")
    assert result.exit_code == 0, result.output
    assert "note: [recipe] in the task file of mood is for train-head" in result.stderr


def test_make_looks_for_the_plan_in_the_folder_that_is_given(invoke, folder):
    assert "study/plan.toml: no such plan file" in one_line(invoke("make"))
    assert "nope/plan.toml: no such plan file" in one_line(invoke("make", "--study", "nope"))
    reported = CliRunner().invoke(search_heads, ["report", "--study", "nope"])
    assert reported.stderr.strip().endswith("give the folder of a search, or run search-heads run first")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quick", "--task-floor", "0.9"), "--task-floor: --quick makes no plan"),
        (("--quick", "--limb", "limbs/one"), "--limb: --quick makes no plan"),
        (("--quick", "--jobs", "2"), "--jobs: --quick makes no plan and trains one head after the other"),
        (("--heads", "other"), "--heads: a search writes a plan, and search-heads make its heads"),
    ],
)
def test_options_of_a_plan_and_of_a_quick_search_do_not_mix(invoke, arguments, message):
    assert message in one_line(invoke("run", "mood", *arguments))


def test_a_limb_of_another_trunk_is_told_before_anything_is_trained(invoke, folder, tiny_trunk, fits, tmp_path):
    random_limb(tiny_trunk, folder / "limbs" / "pairs", tap=1)
    other = write_tiny_trunk(tmp_path / "other", seed=7)
    result = invoke("run", "mood", "--max-length", "32", "--limb", "limbs/pairs", trunk=other)
    assert result.exit_code == 2, result.output
    assert "limbs/pairs: trained on trunk" in result.stderr
    assert not fits


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds")
def test_a_search_over_a_limb_and_the_head_on_it(invoke, folder, tiny_trunk, monkeypatch):
    limb = random_limb(tiny_trunk, folder / "limbs" / "pairs", tap=1)

    def evaluate(model, data, task):
        on_limb = getattr(model, "layers", None) and len(model.layers) == 1 and evaluate.limb
        return Evaluation({"accuracy": 0.95 if on_limb else 0.6}, ())

    real = task_search.execute

    def execute(spec, *args, **options):
        evaluate.limb = spec.limb is not None
        return real(spec, *args, **options)

    monkeypatch.setattr(task_search, "execute", execute)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    search = ("run", "mood", "--max-length", "32", "--limb", "limbs/pairs", "--task-floor", "1.2", "--floor", "1.2")
    result = invoke(*search)
    assert result.exit_code == 0, result.output
    assert re.search(r"^mood +limb pairs +1 ", result.stdout, re.MULTILINE)
    assert read_plan(folder / "study" / "plan.toml").tasks["mood"].limb == str(limb.identity)
    made = invoke("make", "--limbs", "limbs")
    assert made.exit_code == 0, made.output
    assert load_bundle(folder / "heads" / "mood").spec.limb == str(limb.identity)
    reported = CliRunner().invoke(search_heads, ["report"])
    assert reported.exit_code == 0, reported.output
    page = (folder / "study" / "README.md").read_text()
    assert "| limb pairs | 1 |" in page


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds", "scored")
def test_search_and_plan_from_end_to_end(invoke, folder, fits, tiny_trunk_folder):
    search = ("run", "--tasks", "all", "--max-length", "32", "--task-floor", "0.5", "--floor", "0.5")
    result = invoke(*search)
    assert result.exit_code == 0, result.output
    assert "done: mood: search" in result.stderr
    assert "done: second: baseline" in result.stderr
    assert "next: search-heads make study/plan.toml" in result.stderr
    assert "kept on average" in result.stdout
    studies = {
        (study.task, study.study): study
        for study in load_trials(folder / "study" / "runs", ["baseline", "search", "grid", "ablation", "seeds"])
    }
    assert set(studies) == {(task, name) for task in ("mood", "second") for name in ("baseline", "search", "seeds")}
    for task in ("mood", "second"):
        assert {trial.stage for trial in studies[task, "search"].trials} == {"probe", "fork", "teacher", "student"}
        assert len(studies[task, "baseline"].trials) == len(studies[task, "seeds"].trials) == 1
    trunk = load_trunk(tiny_trunk_folder)
    assert CostTable.read(folder / "study" / "costs.json").trunk == trunk.identity
    plan = read_plan(folder / "study" / "plan.toml")
    assert set(plan.tasks) == {"mood", "second"}
    begun = len(fits)

    # Given again, it finds all that it did; the plan is the same.
    again = invoke(*search, "--json")
    assert again.exit_code == 0, again.output
    assert len(fits) == begun
    assert json.loads(again.stdout)["tasks"] == plan.model_dump(mode="json")["tasks"]

    # More seeds train the baselines before the plan and its heads after it, and leave the plan as it is where it holds.
    seeds = invoke(*search, "--seeds", "2", "--json")
    assert seeds.exit_code == 0, seeds.output
    assert json.loads(seeds.stdout)["tasks"] == plan.model_dump(mode="json")["tasks"]
    done = [line.removeprefix("done: ") for line in seeds.stderr.splitlines() if line.startswith("done: ")]
    for task in ("mood", "second"):
        steps = [f"{task}: {step}" for step in ("trunk", "baseline, seed 1", "search", "student, seed 1")]
        assert [line for line in done if line in steps] == steps
    assert len(fits) == begun + 4

    # What only the study of the paper trains are jobs beside the search.
    config = ExperimentConfig(
        tasks=tuple(load_task(folder / "tasks" / f"{name}.toml") for name in ("mood", "second")),
        trunk=str(tiny_trunk_folder),
        cache=folder / "cache",
        runs=folder / "study" / "runs",
        data_root=folder,
        device="cpu",
        trunk_dtype="fp32",
        max_length=32,
        threads=1,
    )
    done = []
    runner = JobRunner(config, SearchSettings(), on_done=done.append)
    runner.run([Job("second", "grid", run_grid), Job("second", "ablation", run_ablation)])
    assert {"second: grid", "second: ablation"} == {str(job) for job in done}
    more = {
        (study.task, study.study): len(study.trials)
        for study in load_trials(folder / "study" / "runs", ["baseline", "grid", "ablation", "seeds"])
    }
    assert [more[task, name] for task in ("mood", "second") for name in ("baseline", "seeds")] == [2, 2, 2, 2]
    assert more["second", "grid"] == trunk.depth
    assert more["second", "ablation"] > 5
    begun = len(fits)

    made = invoke("make", "--json")
    assert made.exit_code == 0, made.output
    assert len(fits) == begun
    heads = {head["task"]: head for head in json.loads(made.stdout)}
    for task, planned in plan.tasks.items():
        bundle = load_bundle(folder / "heads" / task)
        bundle.head(trunk)
        spec = bundle.spec
        assert (spec.tap, spec.layers, spec.query, spec.max_length) == (planned.tap, planned.layers, planned.query, 32)
        assert spec.story["full_fine_tuning"]["seeds"] == spec.story["student"]["seeds"] == 2
        assert heads[task]["scores"] == spec.scores
        assert len(spec.story["tried"]) == len(studies[task, "search"].trials)


def test_plan_is_made_from_its_records_where_weights_are_gone(invoke, folder, small_plan, fits):
    for path in (folder / "cache" / "runs").glob("*.safetensors"):
        path.unlink()
    begun = len(fits)
    result = invoke("make", str(small_plan))
    assert result.exit_code == 0, result.output
    # The student, and the teacher that it needs.
    assert len(fits) == begun + 2
    spec = load_bundle(folder / "heads" / "mood").spec
    assert (spec.tap, spec.layers) == (2, 1)
    # Measured again, with the weights as they are stored.
    assert spec.scores["accuracy"] == pytest.approx(read_plan(small_plan).tasks["mood"].score, abs=0.04)
    assert spec.story["teacher"]["layers"] == 2


@pytest.mark.parametrize("change", [{"tap": 1}, {"layers": 2}, {"query": "mean"}])
def test_plan_that_says_another_head_than_its_run_is_refused(invoke, folder, small_plan, change):
    plan = read_plan(small_plan)
    changed = plan.tasks["mood"].model_copy(update=change)
    write_plan(small_plan, plan.model_copy(update={"tasks": {"mood": changed}}))
    line = one_line(invoke("make", str(small_plan)))
    assert f"run {changed.run} is student training of task mood with tap 2, layers 1, query cls" in line
    assert not (folder / "heads").exists()


def test_plan_of_another_length_is_refused(invoke, small_plan):
    line = one_line(invoke("make", str(small_plan), "--max-length", "20"))
    assert "planned for texts of up to 32 tokens, not 20; leave --max-length out" in line


def test_plan_for_another_trunk_is_refused(invoke, small_plan, tmp_path):
    other = write_tiny_trunk(tmp_path / "other", seed=1)
    assert "the plan is for trunk bert-4x32@" in one_line(invoke("make", str(small_plan), trunk=other))


def test_plan_without_its_records_is_refused(invoke, small_plan, folder):
    line = one_line(invoke("make", str(small_plan), "--study", "elsewhere"))
    assert "elsewhere/runs: no record of run" in line
    assert line.endswith("give the folder of its search by --study")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("make none.toml", "none.toml: no such plan file; search-heads run writes one"),
        ("make broken.toml", "broken.toml: not TOML"),
        ("run mood --backend cloud", "--backend cloud: allowed are local, ray, ray://HOST:PORT"),
        ("run", "--tasks all"),
        ("run mood --limb limbs/none", "limbs/none: no limb.json in it, so it is no limb"),
        (
            "run mood --limb a/one --limb b/two",
            "b/two: limbs of one search lie in one folder; the first is in /",
        ),
        ("run mood", "max_length 128: this trunk reads 3 to 64 tokens"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(invoke, folder, arguments, message):
    (folder / "broken.toml").write_text("tasks = [")
    result = invoke(*arguments.split())
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in result.output


def parses(command):
    """Whether a command that a message suggests has only options and words that its command knows."""
    words = shlex.split(command)
    if words[0] == "search-heads":
        group, words = search_heads, words[1:]
    else:
        assert words[:3] == ["python", "-m", "benchmarks.study"]
        group, words = study_command, words[3:]
    try:
        group.commands[words[0]].make_context(words[0], words[1:])
    except click.ClickException as error:
        return error.format_message()
    return True


@pytest.mark.parametrize(
    ("old", "new", "unused"),
    [
        ("--tasks all --search --jobs 2", "search-heads run --tasks all --jobs 2", []),
        ("cola rte --search --floor 0.99 --study s", "search-heads run cola rte --floor 0.99 --study s", []),
        ("--search cola --seeds 3 --json", "search-heads run cola --seeds 3 --json", []),
        ("--plan study/plan.toml", "search-heads make study/plan.toml", []),
        ("--plan=p.toml --heads h --json", "search-heads make p.toml --heads h --json", []),
        ("--device cpu --tasks=all --plan p.toml", "search-heads make p.toml --device cpu", ["--tasks all"]),
        ("--plan p.toml cola", "search-heads make p.toml", ["cola"]),
        ("--plan p.toml cola --jobs 2 --force", "search-heads make p.toml", ["cola", "--jobs 2", "--force"]),
        ("--report", "search-heads report", []),
        ("--report --study s --tensorboard t", "search-heads report --study s --tensorboard t", []),
        ("--report --tasks all", "search-heads report", ["--tasks all"]),
        ("--report --json", "search-heads report", ["--json"]),
        ("--report cola", "search-heads report", ["cola"]),
        ("--search cola --heads h", "search-heads run cola", ["--heads h"]),
        ("--search --tasks all --force --lr 1e-4", "search-heads run --tasks all", ["--force", "--lr 1e-4"]),
        ("--search cola -x", "search-heads run cola", ["-x"]),
        (
            "--search --tasks all --grid cola,rte --seeds 3 --jobs 2",
            "search-heads run --tasks all --seeds 3 --jobs 2 "
            "&& python -m benchmarks.study grid --tasks cola,rte --jobs 2",
            [],
        ),
        (
            "--search --ablation=cola cola",
            "search-heads run cola && python -m benchmarks.study ablation --tasks cola",
            [],
        ),
    ],
)
def test_old_spelling_is_answered_with_a_command_that_works(old, new, unused):
    result = CliRunner().invoke(train_head, old.split())
    line = one_line(result)
    found, suggested = line.rsplit(": ", 1)
    assert suggested == new
    assert all(parses(command) is True for command in suggested.split(" && "))
    [step] = {"--search", "--plan", "--report"} & set(old.replace("=", " ").split())
    assert found.startswith(f"error: {step} ")
    assert ("no effect" in found) == bool(unused)
    for words in unused:
        assert words in found


@pytest.mark.parametrize(
    ("old", "values"),
    [
        ("--search --report --tasks all", ["--search and --report", "search-heads run", "search-heads report"]),
        ("--search --plan x.toml", ["--search and --plan", "search-heads run", "search-heads make"]),
        ("--search cola --floor", ["--floor", "value"]),
        ("sst2 --study x", ["--study", "search-heads run", "search-heads make", "search-heads report"]),
        ("sst2 --tensorboard x", ["--tensorboard", "search-heads report"]),
        ("sst2 --jobs 2 --floor=0.9", ["--jobs", "--floor", "search-heads run"]),
        ("sst2 --seeds 3", ["--seeds", "search-heads run"]),
        ("sst2 --grid cola", ["--grid", "benchmarks.study grid"]),
    ],
)
def test_what_belongs_to_search_heads_is_named(old, values):
    line = one_line(CliRunner().invoke(train_head, old.split()))
    for value in values:
        assert value in line


def test_suggestion_is_quoted_as_the_shell_needs_it():
    answer = answer_to_old_spelling(["--plan", "my plans/a.toml"], train_head)
    assert answer is not None
    assert answer.endswith(": search-heads make 'my plans/a.toml'")
    assert answer_to_old_spelling(["sst2", "--lr", "1e-4"], train_head) is None
    assert answer_to_old_spelling(["sst2", "--heads", "--search"], train_head) is None
    assert answer_to_old_spelling(["sst2", "--search", "--help"], train_head) is None


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (train_head, "the task's recipe"),
        (search_heads.commands["run"], "128"),
        (search_heads.commands["make"], "the plan's own"),
    ],
)
def test_help_names_the_default_of_max_length(command, default):
    result = CliRunner().invoke(command, ["--help"], terminal_width=200)
    [line] = [line for line in result.stdout.splitlines() if "--max-length" in line]
    assert f"[default: {default}]" in line


@pytest.mark.parametrize("command", [(), ("run",), ("make",), ("report",)])
def test_help_has_examples(command):
    result = CliRunner().invoke(search_heads, [*command, "--help"])
    assert result.exit_code == 0
    assert f"  search-heads {' '.join(command)}" in result.stdout


def test_help_needs_no_torch():
    code = (
        "import sys; from onetrunk.cli.search_heads import search_heads\n"
        "for command in ([], ['run'], ['make'], ['report']):\n"
        "    try: search_heads([*command, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'joblib', 'ray', 'matplotlib', 'pydantic'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "search-heads run --tasks all" in result.stdout
