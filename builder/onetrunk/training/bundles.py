"""From a task to a bundle: the plain recipe, and the one way in which any trained head becomes a bundle."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from onetrunk.files import cache_root, check_replaceable
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.head_json import HEAD_JSON, HeldOutScores
from onetrunk.tasks import Recipe, Task
from onetrunk.tasks.examples import Texts
from onetrunk.tasks.head_spec import OWN_LABELS, TEACHERS_LABELS, HeadSpec, read_spec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.records import SPLITS, Split
from onetrunk.tasks.soft_targets import SoftTeacher
from onetrunk.tasks.task_file import DEV_SHARE
from onetrunk.training.compute import DeviceName, TrunkDtype
from onetrunk.training.curve import learning_curve, noise_of
from onetrunk.training.evaluation import commonest_score, evaluate, score
from onetrunk.training.experiment import Experiment, ExperimentConfig
from onetrunk.training.lessons import Lessons, make_lessons
from onetrunk.training.models import head_with_weights, limb_start, new_model, start_digest
from onetrunk.training.probing import MOST_ROWS, best_tap, probe_taps
from onetrunk.training.results import TrainResult
from onetrunk.training.runs import RunRecord, RunSpec
from onetrunk.training.trainer import Trainer

# Fields of head.json that say what came out of a training, not what went in.
_OUTCOME = {"fitted", "reference", "scores", "test", "recipe", "story", "created", "onetrunk_version"}

# If more of the train texts are cut, those that are served will be, too.
_MANY_CUT = 0.05

# The learning rate ends at 0, so a loss that still falls by more than this has not come to its end. It also falls so
# where texts are learned by heart, which no longer makes the dev score better: that was best before the last third.
_STILL_FALLING = 0.05
_LATE = 2 / 3


def train(
    task: Task,
    trunk: Trunk,
    *,
    recipe: Recipe | None = None,
    heads: Path = Path("heads"),
    cache: Path | None = None,
    data_root: Path | None = None,
    device: DeviceName = "auto",
    trunk_dtype: TrunkDtype = "auto",
    force: bool = False,
    skip_bad_rows: bool = False,
    lesson: Lesson | None = None,
    curve: bool = False,
    probe: bool = False,
    progress: ProgressCallback = silent,
) -> TrainResult:
    """Train a task's head on the trunk's cached states, and write its bundle.

    A training that was killed is resumed; one that is finished is not repeated.

    Args:
        task: The task.
        trunk: The frozen trunk.
        recipe: The recipe; None is the task's own. Without a tap, the head stands in the middle of the trunk, unless
            ``probe`` finds a better one.
        heads: The folder of bundles.
        cache: The root folder of all caches; None is the user's own.
        data_root: The folder in which relative data files are looked for first.
        device: The device to compute on.
        trunk_dtype: The data type of the trunk's pass over the train texts. Heads are trained in fp32, and evaluated
            on fp32 states.
        force: Whether to train although a bundle of the same recipe, trunk and data exists.
        skip_bad_rows: Whether rows that cannot be used are left out, with a note, instead of refused.
        lesson: A teacher from outside, and the texts that it labels; None trains on the labels alone.
        curve: Whether to train on parts of the texts as well, for a learning curve. It leaves the bundle as it is.
        probe: Whether to choose the tap, where the recipe has none, by one-layer heads on every tap.
        progress: Called as the trunk's pass and the training go on.

    Raises:
        UserError: The recipe does not fit the trunk, the data have faults, or what is in the bundle's place is none.
        OneTrunkError: The training diverged, or the disk is full.
    """
    recipe = recipe or task.recipe
    probe = probe and recipe.tap is None and trunk.limb is None
    if recipe.tap is None:
        # A head of any length that fits the trunk fits tap 0.
        middle = trunk.depth // 2 if trunk.limb is None else trunk.limb.stop
        recipe = recipe.model_copy(update={"tap": 0 if probe else middle})
    config = ExperimentConfig(
        tasks=(task,),
        cache=cache,
        data_root=data_root,
        device=device,
        trunk_dtype=trunk_dtype,
        max_length=recipe.max_length,
        skip_bad_rows=skip_bad_rows,
        runs=cache_root(cache) / "curves",
    )
    check_replaceable(heads / task.name, HEAD_JSON)
    experiment = Experiment(config, trunk)
    spec = RunSpec(task=task.name, role="fork", recipe=recipe)
    try:
        # Before any data are read: a tap that the trunk does not have is reported at once.
        new_model(spec, experiment)
    except UserError as error:
        raise UserError(f"task {task.name}: {error}") from error
    if lesson is not None:
        experiment.teach(task.name, _lessons(task, lesson, experiment, progress))
    chosen: tuple[str, ...] = ()
    if probe:
        spec, chosen = _with_tap(spec, experiment, None if force else heads / task.name, progress)
        recipe = spec.recipe
    if not force and (found := _finished_bundle(heads / task.name, _input_spec(spec, experiment))):
        notes = (*experiment.data_notes(task.name), *chosen, *_outdated_test(found, task, experiment))
        result = TrainResult(found, heads / task.name, already_there=True, notes=notes)
        return _with_curve(result, spec, experiment, progress) if curve else result

    for split in (*SPLITS, *task.test_splits):
        experiment.states(task.name, split, [recipe.resolved_tap], progress)
    trainer = Trainer(spec, experiment)
    if force:
        trainer.checkpoint.remove()
    run = trainer.train(progress=progress)
    result = write_bundle(head_with_weights(spec, run.weights, experiment), run.record, experiment, heads=heads)
    result = replace(result, notes=(*result.notes, *chosen))
    trainer.checkpoint.remove()
    return _with_curve(result, spec, experiment, progress) if curve else result


def _with_tap(
    spec: RunSpec, experiment: Experiment, bundle: Path | None, progress: ProgressCallback
) -> tuple[RunSpec, tuple[str, ...]]:
    """Return a run with the tap that probes find best, and a note on it.

    Args:
        spec: The run, with any tap.
        experiment: The trunk, the data and the cache.
        bundle: A finished bundle, whose tap is kept if it is of the same run; None to probe in any case.
        progress: Called as the trunk's pass and the trainings go on.
    """
    name, recipe, depth = spec.task, spec.recipe, experiment.trunk.depth

    def on(tap: int) -> RunSpec:
        return spec.model_copy(update={"recipe": recipe.model_copy(update={"tap": tap})})

    if bundle is not None:
        try:
            same = on(read_spec(bundle).tap)
        except UserError:
            pass
        else:
            if _finished_bundle(bundle, _input_spec(same, experiment)) is not None:
                return same, ()
    rows = len(experiment.examples(name, "train"))
    if depth - recipe.layers < 1:
        return on(0), ()
    if rows > MOST_ROWS:
        tap = min(depth // 2, depth - recipe.layers)
        lessons = experiment.lessons(name)
        copies = ", changed copies included" if lessons is not None and lessons.variants else ""
        return on(tap), (
            f"the head stands on tap {tap}, in the middle of the trunk: with {rows:,} texts{copies}, taps are not "
            "compared unasked; --tap gives another, and search-heads compares them",
        )
    scores = probe_taps(name, experiment, recipe, progress)
    tap, metric = best_tap(scores), experiment.task(name).metric
    shown = ", ".join(f"{one} {100 * score:.1f}" for one, score in scores.items())
    return on(tap), (
        f"tap {tap} was chosen by the {metric} of short trainings on every tap ({shown}); --tap gives another",
    )


def _with_curve(result: TrainResult, spec: RunSpec, experiment: Experiment, progress: ProgressCallback) -> TrainResult:
    curve = learning_curve(spec, experiment, result.spec, progress)
    return replace(result, curve=curve, notes=(*result.notes, curve.note))


@dataclass(frozen=True)
class Lesson:
    """A teacher from outside, and what it is asked about.

    Attributes:
        teacher: The teacher.
        texts: Texts without labels.
        source: The file that they are from, for messages.
        variants: The number of changed copies of each train text that it is asked about, too.
    """

    teacher: SoftTeacher
    texts: Texts = ()
    source: str = "texts"
    variants: int = 0


def _lessons(task: Task, lesson: Lesson, experiment: Experiment, progress: ProgressCallback) -> Lessons:
    """Ask the teacher about the task's own train texts, if there are any, and about those without labels."""
    train = experiment.examples(task.name, "train") if task.train else None
    dev = experiment.examples(task.name, "dev") if task.train or task.dev_share is None else None
    test = experiment.examples(task.name, "test") if task.test is not None else None
    return make_lessons(
        task,
        lesson.teacher,
        lesson.texts,
        experiment.trunk,
        max_length=experiment.config.max_length,
        train=train,
        dev=dev,
        test=test,
        dev_share=task.dev_share or DEV_SHARE,
        variants=lesson.variants,
        source=lesson.source,
        progress=progress,
    )


def write_bundle(
    head: Head, record: RunRecord, experiment: Experiment, *, heads: Path, story: dict[str, Any] | None = None
) -> TrainResult:
    """Write the bundle of a trained head, evaluated with its weights as they are stored.

    Args:
        head: The head, with the weights of its best epoch as ``head_with_weights`` rounds them.
        record: The record of its training.
        experiment: The trunk, the data and the cache.
        heads: The folder of bundles.
        story: How the head came about, for its card: its teacher and what else was tried.

    Raises:
        OneTrunkError: The bundle cannot be written; the one before is kept.
    """
    experiment = experiment.branch(record.spec.limb)
    name, tap, task = record.spec.task, record.spec.recipe.resolved_tap, experiment.task(record.spec.task)
    cached = {split: experiment.states(name, split, [tap]) for split in SPLITS}
    dev = experiment.labelled_states(name, "dev", tap)
    evaluation = evaluate(head.to(experiment.compute.device), dev, task)
    test, test_notes = scores_on_test(head, experiment, task, tap, evaluation.fitted, task.metrics)
    trunk_seconds = sum(states.pass_seconds for states in cached.values())
    plan, overlaps = _input_spec(record.spec, experiment), experiment.overlaps(name)
    outcome: dict[str, Any] = {
        "best_epoch": record.best_epoch,
        "device": experiment.compute.device,
        "trunk_precision": experiment.compute.trunk_dtype,
        "trunk_seconds": round(trunk_seconds, 1),
        "train_seconds": round(record.seconds, 1),
    }
    if experiment.trunk.source is not None:
        outcome["trunk_source"] = experiment.trunk.source
    spec = plan.model_copy(
        update={
            "scores": evaluation.scores,
            "fitted": evaluation.fitted,
            "reference": evaluation.reference,
            "test": test,
            "recipe": {**plan.recipe, **outcome},
            "story": story or {},
            "data": plan.data | ({"overlap": "; ".join(overlaps)} if overlaps else {}),
            "created": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }
    )
    notes = [*experiment.data_notes(name)]
    notes += [
        _cut_note(cached[split].cut, len(experiment.examples(name, split)), split, record.spec.recipe.max_length)
        for split in SPLITS
        if cached[split].cut
    ]
    if task.long_texts == "cut" and cached["train"].cut > _MANY_CUT * len(experiment.examples(name, "train")):
        notes.append(
            'texts as long as these are cut when they are served, too: long_texts = "windows" in the task file reads '
            "them whole, and a greater max_length, here and in build-repo, reads more at once"
        )
    notes += [
        *evaluation.notes,
        *test_notes,
        *_unfinished_note(record, commonest_score(task, dev.targets), few_labels=_lacks_labels(name, experiment)),
        *_replacement_note(heads / name),
    ]
    if "note" in spec.fitted:
        notes.append(spec.fitted["note"])
    save_bundle(heads / name, spec, head)
    return TrainResult(
        spec,
        heads / name,
        epoch_scores=record.epoch_scores,
        trunk_seconds=trunk_seconds,
        train_seconds=record.seconds,
        cache_bytes=sum(states.size_bytes for states in cached.values()),
        notes=tuple(notes),
    )


def scores_on_test(
    head: nn.Module,
    experiment: Experiment,
    task: Task,
    tap: int,
    fitted: Mapping[str, Any],
    metrics: Sequence[str],
    progress: ProgressCallback = silent,
) -> tuple[HeldOutScores | None, tuple[str, ...]]:
    """Score a finished head on its task's test data.

    Args:
        head: The head, on the experiment's device.
        experiment: The trunk, the data and the cache.
        task: The task.
        tap: The head's tap.
        fitted: What was fitted on the dev data.
        metrics: The metrics.
        progress: Called as the trunk's pass goes on.

    Returns:
        The scores, None if the task has no test data, and notes on them.

    Raises:
        UserError: The data cannot be found, or rows cannot be used.
    """
    if task.test is None:
        return None, ()
    rows = experiment.examples(task.name, "test")
    cut = experiment.states(task.name, "test", [tap], progress).cut
    notes = [_cut_note(cut, len(rows), "test", experiment.config.max_length)] if cut else []
    scores, undefined = score(head, experiment.labelled_states(task.name, "test", tap), task, fitted, metrics)
    found = HeldOutScores(data=task.test, rows=len(rows), sha256=rows.sha256, scores=scores)
    return found, (*notes, *(f"test data: {note}" for note in undefined))


def _input_spec(spec: RunSpec, experiment: Experiment) -> HeadSpec:
    """Return all of head.json that is known before a training."""
    task, recipe = experiment.task(spec.task), spec.recipe
    data: dict[str, Any] = {}
    lessons = experiment.lessons(spec.task)
    for split in SPLITS:
        rows = experiment.examples(spec.task, split)
        data[split] = getattr(task, split) if lessons is None else lessons.data(task, split)
        data[f"{split}_rows"] = len(rows)
        data[f"{split}_rows_left_out"] = rows.left_out
        data[f"{split}_sha256"] = rows.sha256
    data |= task.columns
    if start := limb_start(spec, experiment):
        data["limb_start_sha256"] = start_digest(start)
    if lessons is not None:
        data["train_rows_labelled"] = lessons.labelled
        data["dev_labels"] = OWN_LABELS if lessons.dev_raw is None else TEACHERS_LABELS
        data |= {f"teacher_{name}": value for name, value in lessons.facts.items()}
    return HeadSpec(
        task=task.name,
        kind=task.kind,
        form=task.form,
        labels=task.labels,
        range=task.range,
        options=dict(task.options),
        tap=recipe.resolved_tap,
        layers=recipe.layers,
        query=recipe.query,
        trunk=experiment.trunk.root.identity,
        limb=None if experiment.trunk.limb is None else str(experiment.trunk.limb),
        width=experiment.trunk.width,
        max_length=recipe.max_length,
        long_texts=task.long_texts,
        window_overlap=task.window_overlap,
        metric=task.metric,
        scores=dict.fromkeys(task.metrics, 0.0),
        recipe=recipe.model_dump(exclude={"tap", "layers", "query", "max_length"}),
        data=data,
        licence=task.licence,
        created="",
        onetrunk_version=__version__,
    )


def _finished_bundle(folder: Path, plan: HeadSpec) -> HeadSpec | None:
    """Return the head.json of a complete bundle that was trained from the same input; None where there is none."""
    try:
        spec = read_spec(folder)
        same_recipe = all(spec.recipe.get(key) == value for key, value in plan.recipe.items())
        found, planned = (one.model_dump(exclude=_OUTCOME) for one in (spec, plan))
        found["data"].pop("overlap", None)  # bundles of earlier versions have none
        same_rest = found == planned
        if not (same_recipe and same_rest and set(spec.scores) == set(plan.scores)):
            return None
        return load_bundle(folder).spec
    except UserError:
        return None


def _outdated_test(spec: HeadSpec, task: Task, experiment: Experiment) -> Iterator[str]:
    """Say so where a finished head has other test scores than its task asks for."""
    known = spec.test.sha256 if spec.test is not None else None
    asked = experiment.examples(task.name, "test").sha256 if task.test is not None else None
    if known != asked:
        yield (
            f"its test scores are {'missing' if known is None else 'of other data than the task file names'}: "
            f"refit-head {task.name} writes them anew"
        )


def _lacks_labels(name: str, experiment: Experiment) -> bool:
    """Return whether some label is in no train row, which a note says and no other training can mend."""
    task, targets = experiment.task(name), experiment.examples(name, "train").targets
    return bool(targets and get_kind(task.kind).codec.unused_labels(targets, task))


def _unfinished_note(record: RunRecord, commonest: float, *, few_labels: bool = False) -> Iterator[str]:
    """Say so where a training ended too early.

    That is where the head answers no better than one that always gives the same answer, or where the loss was still
    falling and the dev score had not stopped rising: it was best in the last third of the epochs, and after the last
    one not worse by more than the noise of the dev rows.

    Args:
        record: The training.
        commonest: See ``commonest_score``.
        few_labels: Whether the train data lack labels, so that more of the same training would not help.
    """
    scores, epochs = [scores[record.metric] for scores in record.epoch_scores], len(record.losses)
    best = max(scores)
    if best <= commonest:
        yield (
            f"{record.metric} {100 * best:.1f} is no better than the commonest answer alone, {100 * commonest:.1f}"
            + ("" if few_labels else ": more epochs (--epochs), another learning rate or tap may be better")
        )
        return
    if epochs < 2 or record.best_epoch <= _LATE * epochs or scores[-1] < best - noise_of(best, record.data["dev_rows"]):
        return
    before, last = record.losses[-2:]
    if before > 0 and (fall := (before - last) / before) >= _STILL_FALLING:
        yield (
            f"the loss still fell by {fall:.0%} in the last epoch, and the dev score was best after epoch "
            f"{record.best_epoch} of {epochs}: more epochs (--epochs) may be better"
        )


def _cut_note(cut: int, rows: int, split: Split, max_length: int) -> str:
    return f"{cut:,} of {rows:,} {split} texts {'was' if cut == 1 else 'were'} cut at {max_length} tokens"


def _replacement_note(folder: Path) -> Iterator[str]:
    """Say which head a new bundle replaces: it may have been better."""
    try:
        old = read_spec(folder)
    except UserError:
        return
    score = f"{old.metric} {100 * old.scores[old.metric]:.1f}" if old.metric in old.scores else "no score"
    where = f"limb {old.limb}" if old.limb else f"tap {old.tap}"
    yield f"replaces a head on {where} with {counted(old.layers, 'layer', 'layers')}: {score}"
