"""Recorded runs: a seed decides all of one, what is finished is not done again, and what was stopped goes on."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, save_baselines
from onetrunk.protocol.errors import UserError
from onetrunk.training.experiment import ExperimentConfig, open_experiment
from onetrunk.training.loop import DivergedError
from onetrunk.training.models import trained_head
from onetrunk.training.runs import Distillation
from onetrunk.training.trainer import Checkpoint, Costs, Trainer, execute, find_run
from tests.fixtures.recorded_runs import ROLES, kill_at, same, spec_of
from tests.fixtures.tasks import mood_rows, write_rows


@pytest.fixture
def new(new_experiment, mood, second):
    """An experiment of mood and second, which has read nothing yet."""
    return lambda: new_experiment(mood, second)


def elsewhere(experiment, tmp_path, name):
    """The same experiment with another place for records and for weights; states are computed anew."""
    config = dataclasses.replace(experiment.config, runs=tmp_path / name / "runs", cache=tmp_path / name)
    return dataclasses.replace(experiment, config=config)


@pytest.mark.parametrize("role", ROLES)
def test_same_seed_same_weights_other_seed_others(new, fits, tmp_path, role):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        experiment = elsewhere(new(), tmp_path, name)
        execute(spec_of(role, experiment, seed=seed), experiment)
        fits[:] = [fit for fit in fits if fit.state is not None]
    one, two, other = (fit.state for fit in fits if len(fit.state.weights) == len(fits[-1].state.weights))
    assert same(one, two)
    assert one.losses != other.losses
    assert not same(one, other)


@pytest.mark.parametrize("role", ROLES)
def test_killed_run_goes_on_and_ends_bit_for_bit_the_same(new, fits, tmp_path, role):
    undisturbed = elsewhere(new(), tmp_path, "undisturbed")
    expected = execute(spec_of(role, undisturbed), undisturbed)
    whole = fits[-1].state

    spec = spec_of(role, new())
    fits.clear()
    steps = -(-expected.texts // 16)
    with pytest.raises(KeyboardInterrupt):
        execute(spec, new(), progress=kill_at(steps + 3))
    assert find_run(spec, new()) is None
    record = execute(spec, new())
    assert [fit.start for fit in fits] == [0, 1]
    assert same(fits[-1].state, whole)
    assert (record.scores, record.losses, record.best_epoch) == (
        expected.scores,
        expected.losses,
        expected.best_epoch,
    )
    assert [path for path in (tmp_path / "cache" / "runs").iterdir() if path.suffix != ".safetensors"] == []


@pytest.mark.parametrize(("epoch", "starts"), [(1, 1), (3, 3)])
def test_run_killed_right_after_an_epoch_loses_nothing_of_it(new, fits, epoch, starts, monkeypatch):
    save = Checkpoint.save

    def kill(checkpoint, state, costs):
        save(checkpoint, state, costs)
        if (len(state.losses), state.epoch_steps) == (epoch, 0):
            raise KeyboardInterrupt

    spec = spec_of("fork", new())
    monkeypatch.setattr(Checkpoint, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        execute(spec, new())
    monkeypatch.setattr(Checkpoint, "save", save)
    record = execute(spec, new())
    assert [fit.start for fit in fits] == [0, starts]
    assert record.state == "finished"
    assert len(record.losses) == 3


def test_costs_of_a_killed_run_are_added_up(new, tmp_path):
    spec = spec_of("fork", new())
    with pytest.raises(KeyboardInterrupt):
        execute(spec, new(), progress=kill_at(20))
    checkpoint = Trainer(spec, new()).checkpoint
    state, costs = checkpoint.load()
    assert 0 < costs.labelling_cpu_seconds <= costs.cpu_seconds
    assert 0 < costs.seconds < 100
    # As if the first session had taken long.
    checkpoint.save(state, Costs(seconds=1000, cpu_seconds=500, labelling_cpu_seconds=7))
    record = execute(spec, new())
    assert 1000 < record.seconds < 1100
    assert 500 < record.cpu_seconds < 600
    assert record.labelling_cpu_seconds == 7


def test_broken_checkpoint_counts_nothing_and_stops_nothing(new, fits, tmp_path):
    spec = spec_of("fork", new())
    with pytest.raises(KeyboardInterrupt):
        execute(spec, new(), progress=kill_at(20))
    [checkpoint] = (tmp_path / "cache" / "runs").glob("*.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    assert 0 < execute(spec, new()).seconds < 100
    assert [fit.start for fit in fits] == [0, 0]


@pytest.mark.parametrize("change", [{"metrics": ("f1",)}, {"labels": ("good", "bad")}])
def test_checkpoint_of_other_answers_is_not_resumed(new_experiment, mood, second, fits, change):
    spec = spec_of("fork", new_experiment(mood, second))
    with pytest.raises(KeyboardInterrupt):
        execute(spec, new_experiment(mood, second), progress=kill_at(20))
    changed = mood.model_copy(update=change)
    record = execute(spec, new_experiment(changed, second))
    assert [fit.start for fit in fits] == [0, 0]
    assert set(record.scores) == set(changed.metrics)


def test_run_by_another_metric_is_trained_again(new_experiment, mood, second, fits):
    spec = spec_of("fork", new_experiment(mood, second))
    execute(spec, new_experiment(mood, second))
    changed = new_experiment(mood.model_copy(update={"metrics": ("f1", "accuracy")}), second)
    assert find_run(spec, changed) is None
    assert execute(spec, changed).metric == "f1"
    assert len(fits) == 2


@pytest.mark.parametrize("role", ROLES)
def test_finished_run_is_found_and_not_trained_again(new, fits, role):
    spec = spec_of(role, new())
    first = execute(spec, new())
    begun = len(fits)
    assert execute(spec, new()) == first == find_run(spec, new())
    assert len(fits) == begun


def test_weights_that_are_gone_are_trained_again(new, fits, tmp_path):
    spec = spec_of("teacher", new())
    record = execute(spec, new())
    [path] = (tmp_path / "cache" / "runs").glob("*.safetensors")
    weights = load_file(path)
    path.unlink()
    with pytest.raises(UserError, match="missing; remove its record"):
        trained_head(record, new())
    assert execute(spec, new()).scores == record.scores
    assert len(fits) == 2
    assert all((tensor == weights[name]).all() for name, tensor in load_file(path).items())


def test_weights_that_are_broken_are_one_line(new, tmp_path):
    record = execute(spec_of("fork", new()), new())
    [path] = (tmp_path / "cache" / "runs").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"broken: .*; remove it, and the run is trained again") as caught:
        trained_head(record, new())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 2}', "\x00"])
def test_record_that_is_broken_is_one_line(new, content):
    spec = spec_of("fork", new())
    record = execute(spec, new())
    [path] = new().store.folder.glob("mood-fork-*.json")
    path.write_text(content)
    for read in (lambda: execute(spec, new()), lambda: new().store.by_key(record.key), lambda: list(new().store)):
        with pytest.raises(UserError, match=r"not a run record: .*; remove it, and the run is trained again") as caught:
            read()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()
    assert execute(spec, new()).scores == record.scores


def test_missing_teacher_is_refused(new):
    spec = spec_of("student", new())
    spec = spec.model_copy(update={"distillation": Distillation(teacher="0123")})
    with pytest.raises(UserError, match="no record of run 0123; give the folder of its search by --study"):
        execute(spec, new())


@pytest.mark.parametrize("role", ROLES)
def test_divergence_leaves_nothing_and_the_next_run_is_possible(new, tmp_path, role):
    spec = spec_of(role, new(), learning_rate=1e30, clip=1e30)
    with pytest.raises(DivergedError, match=r"task mood: .* --lr"):
        execute(spec, new())
    assert find_run(spec, new()) is None
    left = [path.name for path in (tmp_path / "cache" / "runs").rglob("*") if role in path.name]
    assert left == []
    assert execute(spec_of(role, new()), new()).state == "finished"


def test_last_step_that_goes_wrong_is_caught_too(new, tmp_path):
    # One step in all: the loss before it is a number, and there is none after it.
    spec = spec_of("fork", new(), learning_rate=1e30, epochs=1, batch_size=500, warmup=0.0)
    with pytest.raises(DivergedError, match=r"after epoch 1: .* --lr"):
        execute(spec, new())
    assert find_run(spec, new()) is None


def test_spec_of_an_unknown_task_is_refused(new):
    spec = spec_of("fork", new()).model_copy(update={"task": "mod"})
    with pytest.raises(UserError, match=r"'mod' .*mood, second"):
        execute(spec, new())


def test_weights_are_those_of_what_the_task_answers(new_experiment, mood, tmp_path):
    """Studies share the cache; a run has the same key where equal data teach a task of one name something else."""
    turned = mood.model_copy(update={"labels": tuple(reversed(mood.labels))})
    one, other = (elsewhere(new_experiment(task), tmp_path, "both") for task in (mood, turned))
    other.config = dataclasses.replace(other.config, runs=tmp_path / "others")
    first, second = (execute(spec_of("fork", experiment), experiment) for experiment in (one, other))
    assert first.key == second.key
    of_first, of_second = (trained_head(first, experiment).state_dict() for experiment in (one, other))
    assert any(not torch.equal(of_first[name], of_second[name]) for name in of_first)


def test_a_study_counts_the_baselines_of_its_data_as_they_are_now(new_experiment, mood, tmp_path):
    settings = SearchSettings(epochs=1)
    place = tmp_path / "changing.jsonl"
    scores = []
    for seed in (1, 2):
        write_rows(place, mood_rows(80, seed))
        experiment = new_experiment(mood.model_copy(update={"dev": str(place)}))
        scores.append(run_baseline("mood", experiment, settings).score)
        found = save_baselines("mood", experiment, settings)
        assert [trial.score for trial in found.trials] == scores[-1:]


def test_an_experiment_is_opened_anew_once_its_data_were_written_again(mood, tiny_trunk_folder, tmp_path):
    place = tmp_path / "changing.jsonl"
    write_rows(place, mood_rows(80, 1))
    task = mood.model_copy(update={"dev": str(place)})
    places = {"trunk": tiny_trunk_folder, "cache": tmp_path / "cache", "runs": tmp_path / "runs"}
    config = ExperimentConfig(tasks=(task,), max_length=32, device="cpu", trunk_dtype="fp32", **places)
    first = open_experiment(config)
    assert open_experiment(config) is first
    write_rows(place, mood_rows(90, 2))
    assert len(open_experiment(config).examples("mood", "dev")) == 90
