"""The four roles of recorded runs on the task ``mood``, as the tests of these runs use them."""

import torch

from onetrunk.tasks import Recipe
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.trainer import execute

ROLES = ("full", "teacher", "student", "fork")
SHAPES = {"full": (0, 4), "teacher": (1, 3), "student": (1, 2), "fork": (2, 1)}


def spec_of(role, experiment, **changes):
    """A run of this role; a student's teacher is trained first."""
    tap, layers = SHAPES[role]
    values = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "max_length": 32}
    recipe = Recipe(tap=tap, layers=layers, **{**values, **changes})
    how = None
    if role == "student":
        teacher = execute(spec_of("teacher", experiment), experiment)
        how = Distillation(teacher=teacher.key, other_texts=0.2, masked_texts=0.1)
    return RunSpec(task="mood", role=role, recipe=recipe, distillation=how)


def kill_at(step):
    """A progress that ends training at a step, as Ctrl-C would."""

    def progress(what, done, total):
        if "epoch" in what and done == step:
            raise KeyboardInterrupt

    return progress


def same(one, other):
    """Whether two states of a training are equal bit for bit."""
    return (
        one.losses == other.losses
        and one.scores == other.scores
        and all(
            mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
            for mine, theirs in ((one.weights, other.weights), (one.best_weights, other.best_weights))
        )
    )
