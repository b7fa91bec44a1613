"""The plan on disk: TOML that a person reads, edits and passes to ``search-heads make``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from onetrunk.distill.costs import CostTable, Traffic
from onetrunk.distill.plan import Option, Plan
from onetrunk.files import atomic_write_text
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.head_json import Limb, Query
from onetrunk.protocol.names import check_task_name
from onetrunk.toml_file import explain, read_toml, refuse_unknown_keys

_HEADER = """\
# A plan for all tasks: the tap of the trunk that each head reads, and how many layers it has.
# Scores are on the dev data, as shares: 0.825 is 82.5. `full` is full fine-tuning of the same encoder.
# To make its heads:    search-heads make PATH-OF-THIS-FILE
# To serve them:        build-repo --tasks all
# `run` is the record, in runs/ beside this file, of the training that becomes the head. To serve another one, name
# its record and what it says of tap, layers, query and limb; [kept] and [cost] are then no longer those of the plan.

"""


class _Table(BaseModel):
    # Strict: tap = "2" is a mistake to report, not a number to guess.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Floors(_Table):
    """The least retention that was asked for, as shares of full fine-tuning's score, and the limit of the cost.

    Attributes:
        task: The least retention of every task.
        average: The least average retention.
        most_share: The greatest cost, as a share of as many single-task models; absent where there was no limit.
    """

    task: float = Field(gt=0)
    average: float = Field(gt=0)
    most_share: float | None = Field(default=None, gt=0)


class Retention(_Table):
    """The share of full fine-tuning's score that the plan retains.

    Attributes:
        average: Mean score over full fine-tuning's mean score.
        worst: The lowest retention of a task.
        worst_task: That task.
        meets_floor: Whether the floors and the cost limit are met.
        note: Where they are not, which task falls short and by how much.
    """

    average: float
    worst: float
    worst_task: str
    meets_floor: bool
    note: str = ""


class PlanCost(_Table):
    """The plan's cost for one text, mean over the measured buckets.

    Attributes:
        machine: The processor that was measured.
        threads: The number of ONNX Runtime threads of each session.
        trunk_ms: The trunk, once.
        heads_ms: All heads.
        overhead_ms: One step for each segment, each limb and each head.
        total_ms: The sum of all parts.
        single_model_ms: One single-task model of the usual kind.
        share: The total as a share of one such model for each task.
        folded_share: The same against single-task models whose last layer is folded too.
        limbs_ms: The limbs, each once.
    """

    machine: str
    threads: int = Field(ge=1)
    trunk_ms: float = Field(ge=0)
    heads_ms: float = Field(ge=0)
    overhead_ms: float = Field(ge=0)
    total_ms: float = Field(ge=0)
    single_model_ms: float = Field(ge=0)
    share: float = Field(ge=0)
    folded_share: float = Field(ge=0)
    limbs_ms: float = Field(default=0.0, ge=0)


class PlannedHead(_Table):
    """The head of one task.

    Attributes:
        tap: The tap that it reads.
        layers: The number of its layers, the folded one included.
        query: The query of its folded layer.
        score: The student's score on the dev data, as a share.
        full: Full fine-tuning's score, in the same metric.
        run: The key of the run record that the score comes from.
        by_token: Whether it answers per token, and so has no folded layer; omitted for no.
        limb: The identity of the limb that it stands on; omitted for the trunk itself.
    """

    tap: int = Field(ge=0)
    layers: int = Field(ge=1)
    query: Query = "cls"
    score: float = Field(ge=-1, le=1)
    full: float = Field(gt=0, le=1)
    run: str = Field(default="", pattern=r"^[A-Za-z0-9_-]*$")
    by_token: bool | None = None
    limb: Limb | None = None


class PlanFile(_Table):
    """The contents of a plan file.

    Attributes:
        schema_version: The version of this schema.
        trunk: The identity of the trunk that the heads were trained on.
        floors: What was asked for.
        kept: What the plan retains.
        cost: What the plan costs.
        traffic: The texts that its costs are about; absent if all measured lengths count alike.
        tasks: Task -> its head.
    """

    schema_version: Literal[1] = 1
    trunk: str
    floors: Floors
    kept: Retention
    cost: PlanCost
    traffic: Traffic | None = None
    tasks: dict[str, PlannedHead] = Field(min_length=1)

    @field_validator("tasks")
    @classmethod
    def _task_names(cls, tasks: dict[str, PlannedHead]) -> dict[str, PlannedHead]:
        for task in tasks:
            try:
                check_task_name(task)
            except ValueError as error:
                raise ValueError(f"task {task!r}: {error}") from None
        return tasks

    @property
    def options(self) -> tuple[Option, ...]:
        """Its heads as options, ordered by task."""
        return tuple(
            Option(task=task, **{**dict(head), "limb": head.limb or ""}) for task, head in sorted(self.tasks.items())
        )

    def check_trunk(self, trunk: Trunk) -> None:
        """Check that the plan is for this trunk and that its heads fit.

        Raises:
            UserError: It is for another trunk, or a head does not fit this one.
        """
        if self.trunk != trunk.identity:
            raise UserError(
                f"the plan is for trunk {self.trunk}, but this trunk is {trunk.identity}; give its own trunk by "
                "--trunk, or search again on this one"
            )
        for task, head in self.tasks.items():
            if head.tap + head.layers > trunk.depth:
                most = counted(trunk.depth - head.tap, "layer", "layers")
                raise UserError(
                    f"tasks.{task}: {counted(head.layers, 'layer', 'layers')} on tap {head.tap}: this trunk has "
                    f"{trunk.depth} layers, so give at most {most} there"
                    if head.tap < trunk.depth
                    else f"tasks.{task}: tap {head.tap}: this trunk has a layer above taps 0 to {trunk.depth - 1} only"
                )


_TABLES: dict[str, type[BaseModel]] = {"floors": Floors, "kept": Retention, "cost": PlanCost, "traffic": Traffic}


def plan_file(
    plan: Plan,
    table: CostTable,
    *,
    floor_task: float,
    floor_average: float,
    most_share: float | None = None,
    traffic: Traffic | None = None,
) -> PlanFile:
    """Return a chosen plan in the form of its file.

    Args:
        plan: The plan.
        table: The costs that it was chosen by.
        floor_task: See ``choose``.
        floor_average: See ``choose``.
        most_share: See ``choose``.
        traffic: The texts that its costs are about.
    """
    cost = plan.cost
    return PlanFile(
        trunk=table.trunk,
        floors=Floors(task=floor_task, average=floor_average, most_share=most_share),
        kept=Retention(
            average=round(plan.average, 6),
            worst=round(plan.worst.retention, 6),
            worst_task=plan.worst.task,
            meets_floor=plan.meets_floor,
            note=plan.note,
        ),
        cost=PlanCost(
            machine=table.machine,
            threads=table.threads,
            trunk_ms=round(cost.trunk_ms, 6),
            heads_ms=round(cost.heads_ms, 6),
            overhead_ms=round(cost.overhead_ms, 6),
            total_ms=round(cost.total_ms, 6),
            single_model_ms=round(table.by_traffic(traffic).single_ms, 6),
            share=round(cost.share, 6),
            folded_share=round(cost.folded_share, 6),
            limbs_ms=round(cost.limbs_ms, 6),
        ),
        traffic=traffic,
        tasks={
            option.task: PlannedHead(
                tap=option.tap,
                layers=option.layers,
                query=option.query,
                score=option.score,
                full=option.full,
                run=option.run,
                by_token=option.by_token,
                limb=option.limb or None,
            )
            for option in plan.options
        },
    )


def write_plan(path: Path, plan: PlanFile) -> None:
    """Write a plan atomically.

    Raises:
        UserError: The file's name does not end in .toml.
        OneTrunkError: The file cannot be written.
    """
    if path.suffix != ".toml":
        raise UserError(f"{path}: a plan is a file *.toml")
    atomic_write_text(path, _HEADER + tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))


def read_plan(path: Path) -> PlanFile:
    """Read a plan.

    Raises:
        UserError: The file is missing or not TOML, or a key in it is unknown, missing or has a value that is not
            allowed.
    """
    values = read_toml(path, "plan file; search-heads run writes one")
    refuse_unknown_keys(path, values, tuple(PlanFile.model_fields))
    for name, table in _TABLES.items():
        _refuse_unknown(path, values.get(name), table, f"{name}.")
    tasks = values.get("tasks")
    for task, head in tasks.items() if isinstance(tasks, dict) else ():
        _refuse_unknown(path, head, PlannedHead, f"tasks.{task}.")
    try:
        return PlanFile.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(explain(path, fault) for fault in error.errors())) from error


def _refuse_unknown(path: Path, values: Any, table: type[BaseModel], prefix: str) -> None:
    if isinstance(values, dict):
        refuse_unknown_keys(path, values, tuple(table.model_fields), prefix)
