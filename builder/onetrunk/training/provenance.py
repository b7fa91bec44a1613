"""What a bundle says about how it came about, and by which it is known again."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from pathlib import Path

from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Examples, Recipe, Split, Task
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.training.arithmetic import Arithmetic
from onetrunk.training.evaluation import Evaluation

# Fields that say what came out, not what went in.
_OUTCOME = {"fitted", "scores", "recipe", "story", "created", "onetrunk_version"}


def planned_spec(task: Task, trunk: Trunk, recipe: Recipe, examples: Mapping[Split, Examples]) -> HeadSpec:
    """All of head.json that is known before training."""
    return HeadSpec(
        task=task.name,
        kind=task.kind,
        form=task.form,
        labels=task.labels,
        range=task.range,
        options=dict(task.options),
        tap=recipe.standing,
        layers=recipe.layers,
        query=recipe.query,
        trunk=trunk.identity,
        width=trunk.width,
        max_length=recipe.max_length,
        metric=task.metric,
        scores=dict.fromkeys(task.metrics, 0.0),
        recipe=recipe.model_dump(exclude={"tap", "layers", "query", "max_length"}),
        data={
            key: value
            for split, rows in examples.items()
            for key, value in (
                (split, getattr(task, split)),
                (f"{split}_rows", len(rows)),
                (f"{split}_rows_left_out", rows.left_out),
                (f"{split}_sha256", rows.sha256),
            )
        },
        licence=task.licence,
        created="",
        onetrunk_version=__version__,
    )


def finished_spec(
    plan: HeadSpec,
    evaluation: Evaluation,
    arithmetic: Arithmetic,
    best_epoch: int,
    trunk_seconds: float,
    train_seconds: float,
) -> HeadSpec:
    """The plan with what came out of it."""
    outcome = {
        "best_epoch": best_epoch,
        "device": arithmetic.device,
        "trunk_precision": arithmetic.precision,
        "trunk_seconds": round(trunk_seconds, 1),
        "train_seconds": round(train_seconds, 1),
    }
    created = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    found = {"scores": evaluation.scores, "fitted": evaluation.fitted}
    return plan.model_copy(update={**found, "recipe": {**plan.recipe, **outcome}, "created": created})


def find_finished(bundle: Path, plan: HeadSpec) -> HeadSpec | None:
    """The head.json of a bundle that is what the plan would come to; None where there is no such whole bundle."""
    try:
        spec = load_bundle(bundle).spec
    except UserError:
        return None
    same_recipe = all(spec.recipe.get(key) == value for key, value in plan.recipe.items())
    same_rest = spec.model_dump(exclude=_OUTCOME) == plan.model_dump(exclude=_OUTCOME)
    return spec if same_recipe and same_rest and set(spec.scores) == set(plan.scores) else None


def run_key(plan: HeadSpec, arithmetic: Arithmetic) -> str:
    """A hash over all that a training's result depends on."""
    return hashlib.sha256(f"{plan.model_dump_json()}{arithmetic}".encode()).hexdigest()[:16]
