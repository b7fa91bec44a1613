"""The training loop: batches, optimizer, learning-rate schedule and the score of each epoch, for any model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.tasks import Recipe, Task
from onetrunk.training.evaluation import LabelledStates, evaluate
from onetrunk.training.objective import LabelObjective, Objective
from onetrunk.training.states import States, epoch_batches

Weights = dict[str, Tensor]


class DivergedError(OneTrunkError):
    """The loss, a weight or a dev score is not finite."""


@dataclass(frozen=True)
class FitState:
    """The state of a training after an epoch or within one: all that is needed to resume it.

    The order of an epoch's texts comes from the seed and the epoch's number.

    Attributes:
        losses: The mean training loss of every epoch so far.
        scores: The dev scores after every epoch so far, by metric.
        weights: The model's weights.
        optimizer: The optimizer's state.
        best_weights: The model's weights after the best epoch; empty before the end of the first one.
        epoch_steps: The steps that are done of an epoch under way; 0 after a whole epoch.
        epoch_loss: The sum of the losses of these steps' texts.
        generators: The states of the generators that dropout draws from, of the CPU and of a GPU in use; empty after a
            whole epoch, since each epoch begins with its own seed.
    """

    losses: tuple[float, ...]
    scores: tuple[dict[str, float], ...]
    weights: Weights
    optimizer: dict[str, Any]
    best_weights: Weights
    epoch_steps: int = 0
    epoch_loss: float = 0.0
    generators: tuple[Tensor, ...] = ()

    def best_epoch(self, metric: str) -> int:
        """Return the index of the epoch with the best score; of equal ones, the first."""
        values = [scores[metric] for scores in self.scores]
        return values.index(max(values))


def fit(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    train: LabelledStates,
    dev: LabelledStates,
    *,
    objective: Objective | None = None,
    rows: NDArray[np.int64] | None = None,
    resume: FitState | None = None,
    save: Callable[[FitState], None] = lambda state: None,
    save_seconds: float = math.inf,
    progress: ProgressCallback = silent,
) -> FitState:
    """Train a model by its recipe. Only its own parameters change; they end as after the last epoch.

    The same seed gives the same weights on the same machine, also where a training was interrupted and resumed.

    Args:
        model: A fresh head or whole encoder, on the device where it is trained. It is called with the tensors of a
            batch of the states and returns raw outputs. *Shape:* (batch_size, outputs)
        task: The task: its kind and its metrics.
        recipe: The hyperparameters.
        train: The training data.
        dev: The data that each epoch is scored on.
        objective: The loss; None is the kind's own loss against the targets of ``train``.
        rows: The rows of ``train`` to train on; None is all. *Shape:* (chosen,)
        resume: The state to resume from.
        save: Called with the state after every epoch, and within one whenever ``save_seconds`` have passed since.
        save_seconds: See ``save``.
        progress: Called after each step.

    Raises:
        DivergedError: The loss, a weight or a dev score is not finite.
    """
    objective = objective or LabelObjective.of(task, train.targets, model)
    if recipe.dropout is not None:
        set_dropout(model, recipe.dropout)
    optimizer = new_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    state = resume
    if state is not None:
        model.load_state_dict(state.weights)
        optimizer.load_state_dict(state.optimizer)
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else []
    saved = time.monotonic()

    def after_step(steps: int, loss: float) -> None:
        nonlocal saved
        if time.monotonic() - saved >= save_seconds:
            save(_state_within_epoch(state, steps, loss, model, optimizer))
            saved = time.monotonic()

    with torch.random.fork_rng(devices), training_threads(recipe, model):
        for epoch in range(len(state.losses) if state else 0, recipe.epochs):
            begun = state if state is not None and state.epoch_steps else None
            loss = _run_epoch(
                model, optimizer, task, recipe, train.states, rows, objective, epoch, begun, after_step, progress
            )
            check_weights(model, f"task {task.name}", epoch)
            scores = evaluate(model, dev, task).scores
            check_score(scores[task.metric], task, epoch)
            state = _next_state(state, loss, scores, task.metric, model, optimizer)
            save(state)
            saved = time.monotonic()
    assert state is not None, "a recipe has one epoch at least"
    return state


def _run_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    recipe: Recipe,
    states: States,
    chosen: NDArray[np.int64] | None,
    objective: Objective,
    epoch: int,
    begun: FitState | None,
    after_step: Callable[[int, float], None],
    progress: ProgressCallback,
) -> float:
    """Train for one epoch, or for the rest of the one that was ``begun``, and return its mean loss."""
    torch.manual_seed(int(np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)[0]))
    lengths = states.lengths if chosen is None else states.lengths[chosen]
    batches = epoch_batches(lengths, recipe.batch_size, seed=recipe.seed, epoch=epoch)
    if chosen is not None:
        batches = [chosen[batch] for batch in batches]
    steps = len(batches) * recipe.epochs
    device = next(model.parameters()).device
    model.train()
    first, total = 0, 0.0
    if begun is not None:
        first, total = begun.epoch_steps, begun.epoch_loss
        set_generators(begun.generators, device)
    for place, rows in enumerate(batches[first:], start=first):
        step = epoch * len(batches) + place
        rate = recipe.learning_rate * linear_schedule(step, steps, recipe.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast(device, mixed=recipe.mixed_precision):
            raw = model(*(tensor.to(device) for tensor in states.batch(rows)))
        loss = objective(raw.float(), torch.from_numpy(rows))
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"task {task.name}: the loss is {value} at step {step + 1} of {steps} (epoch {epoch + 1}, "
                f"learning rate {rate:.2g}): train with a lower --lr"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        total += value * len(rows)
        progress(f"{task.name}: epoch {epoch + 1} of {recipe.epochs}", step + 1, steps)
        after_step(place + 1, total)
    return total / len(lengths)


def check_weights(model: nn.Module, what: str, epoch: int) -> None:
    """Catch a last step that went wrong, which shows in no later loss. Weights are stored in fp16.

    Args:
        model: The model.
        what: What is trained, for the message.
        epoch: The epoch's number, from 0.

    Raises:
        DivergedError: A weight is not finite in fp16.
    """
    largest = torch.finfo(torch.float16).max
    if not all(bool((parameter.detach().abs() <= largest).all()) for parameter in model.parameters()):
        raise DivergedError(f"{what}: a weight does not fit fp16 after epoch {epoch + 1}: train with a lower --lr")


def check_score(score: float, task: Task, epoch: int) -> None:
    """Catch a dev score that is none: the best epoch is chosen by comparing scores, and no comparison with NaN is true.

    Raises:
        DivergedError: The score is not finite.
    """
    if not math.isfinite(score):
        raise DivergedError(
            f"task {task.name}: {task.metric} on the dev data is {score} after epoch {epoch + 1}: train with a lower "
            "--lr"
        )


@contextmanager
def training_threads(recipe: Recipe, model: nn.Module) -> Iterator[None]:
    """Train a folded layer in one thread, and any other model in all of them.

    Its steps are many operations on one vector per text, too small to share out. On a busy machine, threads that wait
    for each other make a step an order of magnitude slower; and one thread gives the same weights on any number of
    cores.

    Args:
        recipe: The recipe, which says how many layers there are.
        model: The head, or the whole encoder.
    """
    before = torch.get_num_threads()
    folded = recipe.layers == 1 and not getattr(model, "by_token", False)
    torch.set_num_threads(1 if folded else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def linear_schedule(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step as a share of its peak: a linear warm-up, then a linear decay to 0.

    Args:
        step: The step, from 0.
        steps: The number of steps of the whole training.
        warmup: The share of the steps that belong to the warm-up.
    """
    warmup_steps = warmup * steps
    if step < warmup_steps:
        return (step + 1) / (math.floor(warmup_steps) + 1)
    return (steps - step) / (steps - math.floor(warmup_steps))


def autocast(device: torch.device, *, mixed: bool) -> AbstractContextManager[object]:
    """Return the context in which a model runs while it is trained: in bf16, or as it is."""
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def set_dropout(model: nn.Module, share: float) -> None:
    """Set the probability of every dropout of a model, also of attentions that keep theirs as a number."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = share


def new_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over what of a model is trained.

    Weight decay applies to matrices, not to vectors: biases and LayerNorm.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # Unfused, the optimizer's step takes as long as the rest of a folded head's training.
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _next_state(
    before: FitState | None,
    loss: float,
    scores: dict[str, float],
    metric: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> FitState:
    weights = copy_weights(model)
    if before is None or not before.scores:
        return FitState((loss,), (scores,), weights, optimizer.state_dict(), weights)
    better = scores[metric] > max(earlier[metric] for earlier in before.scores)
    return FitState(
        (*before.losses, loss),
        (*before.scores, scores),
        weights,
        optimizer.state_dict(),
        weights if better else before.best_weights,
    )


def _state_within_epoch(
    before: FitState | None, steps: int, loss: float, model: nn.Module, optimizer: torch.optim.Optimizer
) -> FitState:
    device = next(model.parameters()).device
    return FitState(
        before.losses if before else (),
        before.scores if before else (),
        copy_weights(model),
        optimizer.state_dict(),
        before.best_weights if before else {},
        epoch_steps=steps,
        epoch_loss=loss,
        generators=generator_states(device),
    )


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of the generators that dropout draws from: the CPU's, and that of a GPU in use."""
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []))


def set_generators(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Set the generators to what ``generator_states`` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of a model's weights, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
