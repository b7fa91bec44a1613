"""What a student trains on: its own labelled texts, texts without labels, and its teacher's outputs for both."""

from __future__ import annotations

import hashlib
import random
import re
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from onetrunk.nn.head import Head
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.examples import Texts
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.soft_targets import is_given
from onetrunk.training.evaluation import LabelledStates, TeacherOutputs, teacher_outputs
from onetrunk.training.experiment import Experiment
from onetrunk.training.lessons import Lessons
from onetrunk.training.models import trained_head
from onetrunk.training.objective import (
    DistilObjective,
    LabelObjective,
    LayersObjective,
    Objective,
    StateObjective,
    output_of,
)
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.states import CachedStates, JoinedStates, SomeStates, States

MASKED_SHARE = 0.2
# As the families of encoders call it.
_MASKS = ("[MASK]", "<mask>", "<|mask|>")
# More texts would not make the fit better than training makes it afterwards.
_MOST_FITTED = 1000
# For each text: last states have a variance of about 1.
_RIDGE = 0.01
# With a tenth of it, half of the gain was left on CoLA: docs/decisions/0016-adopting-models.md.
STATES_WEIGHT = 10.0
_WORD = re.compile(r"\S+")


def training_data(
    spec: RunSpec, experiment: Experiment, model: nn.Module, progress: ProgressCallback = silent
) -> tuple[LabelledStates, Objective]:
    """Return what a run trains on, and the loss that it minimises.

    Args:
        spec: The run.
        experiment: The trunk, the data and the cache.
        model: The model to be trained.
        progress: Called as the layers of a teacher outside read the texts.

    Raises:
        UserError: The teacher's run is missing, or the task cannot be distilled in this way.
    """
    if (lessons := experiment.lessons(spec.task)) is not None:
        return _taught_data(spec, lessons, experiment, model, progress)
    if spec.role == "full":
        data = experiment.labelled_tokens(spec.task, "train")
    elif spec.distillation is None:
        data = experiment.labelled_states(spec.task, "train", spec.recipe.resolved_tap)
    else:
        return _student_data(spec, spec.distillation, experiment, model)
    return data, LabelObjective.of(experiment.task(spec.task), data.targets, model)


def _taught_data(
    spec: RunSpec, lessons: Lessons, experiment: Experiment, model: nn.Module, progress: ProgressCallback
) -> tuple[LabelledStates, Objective]:
    """Return a task's train texts, and the loss against what a teacher outside says about them, and their labels."""
    task = experiment.task(spec.task)
    data = (
        experiment.labelled_tokens(spec.task, "train")
        if spec.role == "full"
        else experiment.labelled_states(spec.task, "train", spec.recipe.resolved_tap)
    )
    if isinstance(model, Head) and not model.by_token:
        fit_output(model, lessons, data.states)
    targets = data.targets[: lessons.labelled]
    labels = (
        LabelObjective.of(task, targets, model)
        if lessons.labelled
        else LabelObjective(get_kind(task.kind), targets, output_of(model))
    )
    objective: Objective = DistilObjective(labels, torch.from_numpy(lessons.raw), lessons.temperature)
    if isinstance(model, Head) and lessons.states and (whole := model.layers_run_whole):
        assert lessons.encoder is not None, "the states are those of its encoder"
        taps = range(spec.recipe.resolved_tap + 1, spec.recipe.resolved_tap + 1 + len(whole))
        theirs = experiment.encoder_states(spec.task, lessons.encoder, taps, progress)
        objective = LayersObjective(objective, whole, [theirs[tap] for tap in taps], STATES_WEIGHT)
    return data, objective


def fit_output(head: Head, lessons: Lessons, states: States) -> None:
    """Set a head's output layer so that it says what a teacher outside says, as far as its untrained layers allow.

    It is a ridge regression of the teacher's raw outputs on the head's last states. A head whose layers are the
    teacher's own answers as the teacher does on most texts before it is trained at all.

    Args:
        head: A fresh head, which is changed.
        lessons: What it learns.
        states: The hidden states of the train texts at its tap.
    """
    rows = np.flatnonzero(is_given(lessons.raw))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_FITTED)).astype(np.int64)]
    if len(rows) < 2:
        return
    last = teacher_outputs(head, SomeStates(states, rows)).states.double().numpy()
    wanted = lessons.raw[rows].astype(np.float64)
    centre, level = last.mean(axis=0), wanted.mean(axis=0)
    gram = (last - centre).T @ (last - centre) + _RIDGE * len(rows) * np.eye(last.shape[1])
    weight = np.linalg.solve(gram, (last - centre).T @ (wanted - level)).T
    with torch.no_grad():
        head.output.weight.copy_(torch.from_numpy(weight))
        head.output.bias.copy_(torch.from_numpy(level - weight @ centre))
    head.train()


def _student_data(
    spec: RunSpec, how: Distillation, experiment: Experiment, model: nn.Module
) -> tuple[LabelledStates, Objective]:
    task, tap, seed = experiment.task(spec.task), spec.recipe.resolved_tap, spec.recipe.seed
    data = LabelledStates(
        student_states(experiment, spec.task, tap=tap, how=how, seed=seed), experiment.targets(spec.task, "train")
    )
    labels = LabelObjective.of(task, data.targets, model)
    if not how.soft:
        return data, labels
    if how.state_weight and get_kind(task.kind).by_token:
        raise UserError(
            f"task {spec.task}: state_weight is {how.state_weight:g}, but a head that answers for every token has no "
            "single last state to compare; leave state_weight at 0"
        )

    def ask_teacher() -> TeacherOutputs:
        record = experiment.store.by_key(how.teacher)
        # A student on a limb has a teacher elsewhere, which reads the same texts as the trunk's states at its own tap.
        theirs, its_tap = experiment.beside(record.spec.limb), record.spec.recipe.resolved_tap
        states: States = data.states
        if (theirs.trunk.identity, its_tap) != (experiment.trunk.identity, tap):
            states = student_states(theirs, spec.task, tap=its_tap, how=how, seed=seed)
        teacher = trained_head(record, theirs)
        return teacher_outputs(teacher.to(experiment.compute.device), states)

    key = f"{how.teacher} {how.other_texts} {how.masked_texts} {seed} {tap}"
    outputs = experiment.teacher_outputs(key, ask_teacher)
    objective: Objective = DistilObjective(labels, outputs.raw, how.temperature)
    if how.state_weight:
        assert isinstance(model, Head)
        objective = StateObjective(objective, model.dropout, outputs.states, how.state_weight)
    return data, objective


def student_states(experiment: Experiment, task: str, *, tap: int, how: Distillation, seed: int) -> JoinedStates:
    """Return a student's train texts: the task's own first, in their order, then those without a label.

    Args:
        experiment: The trunk, the data and the cache.
        task: The student's task.
        tap: Its tap.
        how: How many texts of which sort.
        seed: The seed for what is drawn at random.
    """
    own = experiment.states(task, "train", [tap]).states[tap]
    count = len(own.lengths)
    parts = [(own, np.arange(count))]
    parts += _other_texts(experiment, task, tap, round(how.other_texts * count), seed)
    if how.masked_texts:
        parts.append(_masked_texts(experiment, task, tap, round(how.masked_texts * count), seed))
    return JoinedStates(parts)


def other_tasks(experiment: Experiment, task: str) -> list[str]:
    """Return the tasks whose texts have the same form, single or pair, and so can serve this task's students."""
    form = experiment.task(task).form
    return [name for name, other in experiment.tasks.items() if name != task and other.form == form]


def masked(texts: Texts, seed: int, mask: str) -> Texts:
    """Replace some words of the texts by the mask token.

    Args:
        texts: Texts, or pairs of texts.
        seed: The seed for the choice of words.
        mask: The trunk's mask token.
    """
    draw = random.Random(seed)

    def hide(text: str) -> str:
        return _WORD.sub(lambda word: mask if draw.random() < MASKED_SHARE else word[0], text)

    return [hide(text) if isinstance(text, str) else (hide(text[0]), hide(text[1])) for text in texts]  # type: ignore[return-value]


def _other_texts(
    experiment: Experiment, task: str, tap: int, wanted: int, seed: int
) -> list[tuple[CachedStates, NDArray[np.int64]]]:
    if not wanted:
        return []
    names = other_tasks(experiment, task)
    sizes = [len(experiment.examples(name, "train")) for name in names]
    # The hash of the name, so that two tasks do not draw the same rows.
    salt = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")
    drawn = np.sort(np.random.default_rng((seed, salt)).permutation(sum(sizes))[:wanted])
    bounds = np.cumsum([0, *sizes])
    rows = [drawn[(drawn >= start) & (drawn < end)] - start for start, end in pairwise(bounds)]
    return [
        experiment.drawn_states(name, of_task, tap) for name, of_task in zip(names, rows, strict=True) if len(of_task)
    ]


def _mask_token(experiment: Experiment) -> str:
    tokenizer = experiment.trunk.tokenizer()
    for token in _MASKS:
        if tokenizer.token_to_id(token) is not None:
            return token
    raise UserError(f"masked_texts: the trunk's tokenizer has none of the tokens {', '.join(_MASKS)}; leave them out")


def _masked_texts(
    experiment: Experiment, task: str, tap: int, wanted: int, seed: int
) -> tuple[CachedStates, NDArray[np.int64]]:
    texts = experiment.examples(task, "train").texts
    copies = -(-wanted // len(texts))
    mask = _mask_token(experiment)
    hidden = [text for copy in range(copies) for text in masked(texts, seed + copy, mask)][:wanted]
    cached = experiment.text_states(hidden, [tap], what=f"{task}: trunk on masked texts")  # type: ignore[arg-type]
    return cached.states[tap], np.arange(len(hidden))
