"""Adoption: a classifier in, a head on the trunk out that answers as it does.

The classifier labels texts, and heads are distilled from what it says: the cheapest first, until one agrees with it
well enough. What was done before is found on disk, so an adoption that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onetrunk.adopt.classifier import Classifier
from onetrunk.adopt.comparison import Comparison, agreement_of
from onetrunk.adopt.records import AdoptedModel, AdoptSettings, Attempt, Start
from onetrunk.adopt.request import ModelRequest
from onetrunk.adopt.said import SaidFile
from onetrunk.adopt.teacher import ModelTeacher, ranges_of
from onetrunk.files import atomic_write_text
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.reading import read_json
from onetrunk.tasks import Examples, FittedTask, Task
from onetrunk.tasks.examples import Texts, normalized, targets_of, token_offsets
from onetrunk.tasks.formats import sha256_of
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import Scores
from onetrunk.tasks.metrics import measure
from onetrunk.tasks.records import Reading
from onetrunk.tasks.rows import Text
from onetrunk.tasks.soft_file import SoftFile
from onetrunk.tasks.soft_targets import SoftTeacher, is_given
from onetrunk.training.bundles import write_bundle
from onetrunk.training.compute import DeviceName
from onetrunk.training.evaluation import evaluate, raw_outputs
from onetrunk.training.experiment import Experiment, ExperimentConfig
from onetrunk.training.lessons import Lessons, make_lessons
from onetrunk.training.models import trained_head
from onetrunk.training.runs import RunRecord, RunSpec
from onetrunk.training.trainer import execute

_MAX_RECORD_BYTES = 2**24
# Increased when the same model and texts give another head, so that earlier adoptions are done again.
_FORMAT = 2
# How much further than the closest head's a head's probabilities may be from the teacher's.
_FURTHER = 1.25


@dataclass(frozen=True)
class Workshop:
    """Where adoptions happen.

    Attributes:
        trunk: The trunk.
        output: The folder of what comes out: ``heads``, ``runs`` and ``records``.
        cache: The root folder of all caches; None is the user's own.
        device: The device to compute on.
        jobs: The number of processes that run a teacher.
    """

    trunk: Trunk
    output: Path
    cache: Path | None = None
    device: DeviceName = "auto"
    jobs: int = 1

    @property
    def heads(self) -> Path:
        """The folder of bundles."""
        return self.output / "heads"


def adopt_model(
    request: ModelRequest, workshop: Workshop, settings: AdoptSettings, progress: ProgressCallback = silent
) -> AdoptedModel:
    """Adopt a model: write the bundle of a head that answers as it does, and the record of how far it does.

    Args:
        request: The model, and its texts.
        workshop: The trunk, and the folders.
        settings: When a head is good enough.
        progress: Called as the work goes on.

    Raises:
        UserError: The model cannot be loaded, or its texts or labelled data do not fit it.
        OneTrunkError: A training diverged, or the disk is full.
    """
    key = _key(request, workshop, settings)
    if (found := _finished(workshop, request.classifier.name, key)) is not None:
        # The folder of the model, or of the texts, may have been moved since.
        return found.model_copy(update={"source": request.classifier.source, "texts": request.texts.source})
    began = time.monotonic()
    adopting = _Adoption.begin(request, workshop, settings, progress)
    attempts: list[Attempt] = []
    runs: list[RunRecord] = []
    for tap, layers in settings.candidates(workshop.trunk.depth):
        run, attempt = adopting.attempt(tap, layers, progress)
        attempts.append(attempt)
        runs.append(run)
        if adopting.is_enough(attempt):
            break
    best = adopting.choose(attempts)
    # A record is of the bundle that lies there: without this one, a kill between both would leave that of another.
    _record_path(workshop, request.classifier.name).unlink(missing_ok=True)
    record = adopting.write(key, runs[best], attempts[best], attempts, time.monotonic() - began)
    atomic_write_text(_record_path(workshop, record.name), record.model_dump_json(indent=1) + "\n")
    return record


@dataclass
class _Adoption:
    """One model that is being adopted."""

    request: ModelRequest
    workshop: Workshop
    settings: AdoptSettings
    task: Task
    experiment: Experiment
    labelled: Examples | None
    teacher_score: float | None
    start: Start
    copies: int
    notes: list[str]

    @classmethod
    def begin(
        cls, request: ModelRequest, workshop: Workshop, settings: AdoptSettings, progress: ProgressCallback
    ) -> _Adoption:
        config = ExperimentConfig(
            tasks=(),
            cache=workshop.cache,
            runs=workshop.output / "runs",
            device=workshop.device,
            max_length=settings.max_length,
        )
        experiment = Experiment(config, workshop.trunk)
        texts = request.texts
        notes = [*request.classifier.notes, *texts.notes]
        task, teacher = _teacher_of(request, workshop, settings, experiment.compute.device, notes, progress)
        encoder = teacher.encoder_like(workshop.trunk) if isinstance(teacher, ModelTeacher) else None
        experiment.config = dataclasses.replace(config, tasks=(task,))
        labelled = request.labelled(task)
        # A file says nothing about changed copies of its texts.
        copies = settings.copies(len(texts.texts)) if isinstance(teacher, ModelTeacher) else 0
        lessons = make_lessons(
            task,
            teacher,
            _without(texts.texts, labelled),
            workshop.trunk,
            max_length=settings.max_length,
            dev_share=settings.dev_share,
            encoder=encoder,
            variants=copies,
            source=texts.source,
            progress=progress,
        )
        experiment.teach(task.name, lessons)
        taps = sorted({tap for tap, _ in settings.candidates(workshop.trunk.depth)})
        for split in ("train", "dev"):
            experiment.states(task.name, split, taps, progress)
        score = None
        if labelled is not None:
            score = _teachers_score(teacher, task, labelled, workshop.trunk, settings.max_length, progress)
            if score is None:
                notes.append(
                    f"{request.classifier.folder}: it does not say something about every labelled text: it has no score"
                )
            notes += labelled.notes
        start: Start = "trunk" if encoder is None else "teacher"
        if encoder is not None and not lessons.states:
            notes.append(
                f"{request.classifier.folder}: it reads other tokens than the trunk does, so heads learn from its "
                "answers alone, and not from its states"
            )
        return cls(request, workshop, settings, task, experiment, labelled, score, start, copies, notes)

    def _spec(self, tap: int, layers: int) -> RunSpec:
        return RunSpec(
            task=self.task.name, role="fork", recipe=self.settings.recipe(tap, layers, states=self._lessons.states)
        )

    def attempt(self, tap: int, layers: int, progress: ProgressCallback) -> tuple[RunRecord, Attempt]:
        if self._learns_states(layers):
            self._prepare_states(progress)
        run = execute(self._spec(tap, layers), self.experiment, progress=progress)
        comparison = self._compare(run)
        divergence = comparison.divergence
        return run, Attempt(
            tap=tap,
            layers=layers,
            agreement=comparison.agreement,
            constant_agreement=comparison.constant_agreement(),
            divergence=None if divergence is None else float(divergence.mean()),
            score=self._score(run),
            seconds=round(run.seconds, 1),
            run=run.key,
        )

    @property
    def _lessons(self) -> Lessons:
        found = self.experiment.lessons(self.task.name)
        assert found is not None, "an adoption begins with them"
        return found

    def _whole_layers(self, layers: int) -> int:
        """Return how many layers of a head run whole: all but the folded one, or all if it answers for every token."""
        return layers if get_kind(self.task.kind).by_token else layers - 1

    def _learns_states(self, layers: int) -> bool:
        """Return whether a head of so many layers learns states too: of a layer that is folded, there are none."""
        return self._lessons.states and self._whole_layers(layers) > 0

    def _prepare_states(self, progress: ProgressCallback) -> None:
        """Have the teacher's states after all layers that heads may have; without them, heads learn answers alone."""
        lessons, heads = self._lessons, self.settings.candidates(self.workshop.trunk.depth)
        assert lessons.encoder is not None, "the states are those of its encoder"
        taps = range(min(tap for tap, _ in heads) + 1, max(tap + self._whole_layers(one) for tap, one in heads) + 1)
        try:
            self.experiment.encoder_states(self.task.name, lessons.encoder, taps, progress)
        except OneTrunkError as error:
            self.notes.append(f"heads learn from its answers alone, and not from its states: {error}")
            self.experiment.teach(self.task.name, dataclasses.replace(lessons, states=False))

    def is_enough(self, attempt: Attempt) -> bool:
        if self._scored(attempt):
            assert attempt.score is not None
            assert self.teacher_score is not None
            return attempt.score >= self.settings.kept * self.teacher_score and not attempt.is_trivial
        near = attempt.divergence is None or attempt.divergence <= self.settings.divergence
        return attempt.agreement >= self.settings.agreement and near and not attempt.is_trivial

    def choose(self, attempts: Sequence[Attempt]) -> int:
        """Return the index of the attempt to take: the first that is enough.

        Without one, it is the cheapest that is within a standard error of the best, since more layers cost with every
        text, and what they seem to bring may be chance. Its probabilities must be nearly as close to the teacher's as
        those of the closest: they tell heads apart on fewer texts than answers do.
        """
        for place, attempt in enumerate(attempts):
            if self.is_enough(attempt):
                return place
        values = [self._value(attempt) for attempt in attempts]
        best = max(values)
        least = best - self._standard_error(best)
        most = _FURTHER * min((one.divergence for one in attempts if one.divergence is not None), default=math.inf)
        near = [one.divergence is None or one.divergence <= most for one in attempts]
        good = [place for place, value in enumerate(values) if value >= least]
        return next((place for place in good if near[place]), values.index(best))

    def _value(self, attempt: Attempt) -> float:
        if attempt.is_trivial:
            return 0.0
        return attempt.score if self._scored(attempt) and attempt.score is not None else attempt.agreement

    def _standard_error(self, value: float) -> float:
        scored = self.settings.stop_by == "score" and self.labelled is not None and self.teacher_score is not None
        rows = len(self.labelled) if scored and self.labelled is not None else self._compared
        share = min(max(value, 0.0), 1.0)
        if not scored and get_kind(self.task.kind).answers.agreement_measure == "correlation":
            return float((1 - share**2) / math.sqrt(max(rows - 1, 1)))
        return math.sqrt(share * (1 - share) / max(rows, 1))

    @property
    def _compared(self) -> int:
        return len(self._lessons.dev)

    def _scored(self, attempt: Attempt) -> bool:
        return self.settings.stop_by == "score" and attempt.score is not None and self.teacher_score is not None

    def write(
        self,
        key: str,
        run: RunRecord,
        best: Attempt,
        attempts: Sequence[Attempt],
        seconds: float,
    ) -> AdoptedModel:
        comparison = self._compare(run)
        result = write_bundle(
            trained_head(run, self.experiment),
            run,
            self.experiment,
            heads=self.workshop.heads,
            story={"adopted": self._story(best)},
        )
        classifier, lessons = self.request.classifier, self._lessons
        return AdoptedModel(
            key=key,
            name=self.task.name,
            source=classifier.source,
            sha256=classifier.sha256,
            family=classifier.model_type,
            kind=self.task.kind,
            form=self.task.form,
            labels=self.task.labels,
            texts=self.request.texts.source,
            train_texts=len(lessons.train) // (1 + self.copies),
            copies=self.copies,
            dev_texts=len(lessons.dev),
            start=self.start,
            learned_states=self._learns_states(best.layers),
            tap=best.tap,
            layers=best.layers,
            agreement=best.agreement,
            agreement_measure=get_kind(self.task.kind).answers.agreement_measure,
            constant_agreement=best.constant_agreement,
            by_label=comparison.by_label(self.task),
            divergence=best.divergence,
            metric=self.task.metric,
            labelled_rows=len(self.labelled) if self.labelled is not None else 0,
            teacher_score=self.teacher_score,
            head_score=best.score,
            floor=self.settings.floor(scored=self._scored(best), correlation=best.constant_agreement is None),
            reached=self.is_enough(best),
            attempts=tuple(attempts),
            differences=tuple(comparison.differences(lessons.dev.texts, self.task)),
            teacher_bytes=classifier.size_bytes,
            head_bytes=(result.bundle / "head.safetensors").stat().st_size,
            seconds=round(seconds, 1),
            notes=tuple(dict.fromkeys([*self.notes, *result.notes, *self._triviality(best)])),
        )

    def _story(self, best: Attempt) -> dict[str, Any]:
        """Return what the bundle's card says of the adoption."""
        classifier, metric = self.request.classifier, self.task.metric
        measured_by = get_kind(self.task.kind).answers.agreement_measure
        story: dict[str, Any] = {
            "teacher": classifier.source,
            "teacher_sha256": classifier.sha256,
            f"{'agreement' if measured_by == 'share' else 'correlation'}_on_dev_texts": round(best.agreement, 4),
        }
        if best.divergence is not None:
            story["mean_divergence_on_dev_texts_nats"] = round(best.divergence, 4)
        if self.labelled is not None and best.score is not None and self.teacher_score is not None:
            story[f"{metric}_of_the_teacher_on_labelled_rows"] = round(self.teacher_score, 4)
            story[f"{metric}_of_the_head_on_labelled_rows"] = round(best.score, 4)
            story["labelled_rows"] = len(self.labelled)
        return story

    def _triviality(self, best: Attempt) -> Iterator[str]:
        """Say so where the agreement says little, since nearly all texts have the same answer."""
        if best.constant_agreement == 1:
            yield (
                "the model gives the same answer to all texts that are compared, so nothing is seen of how well the "
                "head tells texts apart: give texts that it answers differently"
            )
        elif best.is_trivial and best.agreement >= self.settings.agreement:
            yield (
                f"the model's commonest answer alone would agree on {100 * (best.constant_agreement or 0):.1f}% of the "
                "texts, and the head does not make up for half of the rest, so the floor is missed: give more texts "
                "with the rarer answers"
            )

    def _compare(self, run: RunRecord) -> Comparison:
        head = trained_head(run, self.experiment).to(self.experiment.compute.device)
        data = self.experiment.labelled_states(self.task.name, "dev", run.spec.recipe.resolved_tap)
        assert data.teacher is not None
        fitted = evaluate(head, data, self.task).fitted
        config, raw = FittedTask(self.task, fitted), raw_outputs(head, data.states)
        kind = get_kind(self.task.kind)
        with torch.no_grad():
            theirs = kind.output.scores(data.teacher, self.task).numpy()
            ours = kind.output.scores(raw, config).numpy()
            divergence = kind.training.divergence(raw, data.teacher, config)
        return Comparison(
            teacher=theirs,
            head=ours,
            config=config,
            agreement=agreement_of(theirs, ours, self.task, config),
            divergence=None if divergence is None else divergence.numpy(),
        )

    def _score(self, run: RunRecord) -> float | None:
        """Return a head's score on the labelled dev data, with what was fitted on the texts without labels."""
        if self.labelled is None:
            return None
        head = trained_head(run, self.experiment).to(self.experiment.compute.device)
        tap = run.spec.recipe.resolved_tap
        on_texts = self.experiment.labelled_states(self.task.name, "dev", tap)
        config = FittedTask(self.task, evaluate(head, on_texts, self.task).fitted)
        states = self.experiment.text_states(
            self.labelled.texts,
            [tap],
            what=f"{self.task.name}: trunk on labelled rows",
            compute=self.experiment.compute.exact,
        ).states[tap]
        kind = get_kind(self.task.kind)
        with torch.no_grad():
            scores = kind.output.scores(raw_outputs(head, states), config).numpy()
        return _measured(scores, self.task, config, self.labelled, self.workshop.trunk, self.settings.max_length)


def _teacher_of(
    request: ModelRequest,
    workshop: Workshop,
    settings: AdoptSettings,
    device: str,
    notes: list[str],
    progress: ProgressCallback,
) -> tuple[Task, ModelTeacher | SoftFile]:
    """Return the task that is made of what is adopted, and the teacher that it is; what a user should know is noted."""
    adopted = request.classifier
    if isinstance(adopted, SaidFile):
        task = request.task(dev_share=settings.dev_share)
        said = adopted.teacher(task, skip_bad_rows=request.skip_bad_rows)
        notes += said.notes
        return task, said
    assert isinstance(adopted, Classifier), "what is no file is a model"
    teacher = ModelTeacher(adopted, cache=workshop.cache, device=device, jobs=workshop.jobs)
    if adopted.kind != "regression" or request.range is not None:
        return request.task(dev_share=settings.dev_share), teacher
    numbers = request.labelled_numbers()
    found = ranges_of(teacher.outputs(request.texts.texts, progress), numbers)
    notes.append(
        f"{adopted.folder}: its range is taken from its answers{' and the labels' if numbers else ''}: "
        f"{found[0]:g} to {found[1]:g}; --range gives another"
    )
    return request.task(found, dev_share=settings.dev_share), teacher


def _without(texts: Sequence[Text], labelled: Examples | None) -> Texts:
    """Return the texts that are not among the labelled ones, on which heads are measured."""
    known = {normalized(text) for text in labelled.texts} if labelled is not None else set()
    return [text for text in texts if normalized(text) not in known]  # type: ignore[return-value]


def _teachers_score(
    teacher: SoftTeacher, task: Task, labelled: Examples, trunk: Trunk, max_length: int, progress: ProgressCallback
) -> float | None:
    """Return the teacher's score on labelled data; None if it says nothing about some of them."""
    kind = get_kind(task.kind)
    offsets = token_offsets(trunk.tokenizer(), labelled.texts, max_length) if kind.by_token else None
    raw = teacher.raw(labelled.texts, task, offsets, progress)
    if not is_given(raw).all():
        return None
    scores = kind.output.scores(torch.from_numpy(raw), task).numpy()
    return _measured(scores, task, task, labelled, trunk, max_length)


def _measured(
    scores: Scores, task: Task, config: Task | FittedTask, labelled: Examples, trunk: Trunk, max_length: int
) -> float:
    kind = get_kind(task.kind)
    targets = targets_of(kind, labelled.targets, task, labelled.texts, trunk.tokenizer, max_length)
    return measure(task.metrics, kind.answers.predictions(scores, config), targets)[0][task.metric]


def _key(request: ModelRequest, workshop: Workshop, settings: AdoptSettings) -> str:
    classifier = request.classifier
    facts = [
        classifier.sha256,
        [classifier.kind, classifier.outputs, classifier.thresholds, request.range, request.label_field],
        [request.text_field, request.pair_field, request.skip_bad_rows],
        hashlib.sha256(repr(request.texts.texts).encode("utf-8", "surrogatepass")).hexdigest(),
        _sha256(request.dev),
        workshop.trunk.identity,
        settings.model_dump(),
        _FORMAT,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _sha256(path: Path | None) -> str | None:
    return None if path is None else sha256_of(path, Reading(split="dev"))


def _record_path(workshop: Workshop, name: str) -> Path:
    return workshop.output / "records" / f"{name}.json"


def _finished(workshop: Workshop, name: str, key: str) -> AdoptedModel | None:
    """Return the record of an adoption of the same model from the same texts, if its head is still there."""
    path = _record_path(workshop, name)
    try:
        found = AdoptedModel.model_validate(read_json(path, max_bytes=_MAX_RECORD_BYTES))
        spec = load_bundle(workshop.heads / name).spec
    except (FileNotFoundError, ValueError, UserError):
        return None
    # Another head may have been written in its place since, whose cost would be measured as this one's.
    same_head = (spec.tap, spec.layers, spec.limb) == (found.tap, found.layers, None)
    return found if found.key == key and same_head else None
