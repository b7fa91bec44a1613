"""The limbs that are measured, and what was measured of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onetrunk.distill.settings import SearchSettings
from onetrunk.files import atomic_write_text
from onetrunk.tasks import Recipe
from onetrunk.training.limb import LimbRecipe

PAIRS = ("mnli", "qnli", "qqp", "mrpc", "stsb", "rte")
TASKS = ("cola", "sst2", *PAIRS)
MAX_LENGTH = 128
_EPOCHS_OF_HEADS = 6


@dataclass(frozen=True)
class Study:
    """What a limb is compared with: the heads on its trunk, and full fine-tuning of it.

    Attributes:
        trunk: The trunk, as ``--trunk`` names it; None is the default one.
        called: What the page calls it.
        folder: Where the study is, below docs/results.
        settings: The search's, for this trunk's width.
        bf16: Whether the trunk's pass is in bf16.
        cost: How costs are measured, as in its own table; see ``measure_plan_cost``.
    """

    trunk: str | None
    called: str
    folder: str
    settings: SearchSettings = field(default_factory=SearchSettings)
    bf16: bool = False
    cost: Mapping[str, Any] = field(default_factory=dict)


DEFAULT = Study(None, "default trunk", "quality")
BASE = Study(
    "base",
    "base-size trunk",
    "base",
    SearchSettings.for_width(768),
    bf16=True,
    cost={"tokens": (MAX_LENGTH,), "batch_size": (1,), "repeats": 3},
)


@dataclass(frozen=True)
class Unlabelled:
    """What a finished head is asked about besides the train texts of its task.

    Attributes:
        variants: The number of changed copies of each of them.
        texts: The data file of which it reads the texts alone; empty for none.
        epochs: Passes over all of it.
    """

    variants: int = 0
    texts: str = ""
    epochs: int = _EPOCHS_OF_HEADS


NOTHING_MORE = Unlabelled()


@dataclass(frozen=True)
class Shape:
    """A limb to be measured.

    Attributes:
        name: Its name.
        family: The tasks that it is trained on.
        recipe: How.
        others: The tasks that stay on the trunk: their tap and layers, which are those of the study's plan unless the
            task is taught.
        left_out: Groups of tasks; for each, a limb is trained on the rest of the family, for two epochs.
        same_price: Whether heads of the same price on the trunk are trained, too.
        guests: Tasks that it is not trained on, whose heads stand on it as well.
        taught: The tasks whose heads of the plan in docs/results/quality teach the limb and the heads on it; the others
            learn from labels alone.
        unlabelled: Task -> what its finished head is asked about besides its train texts, if anything.
        study: What it is compared with.
    """

    name: str
    family: tuple[str, ...]
    recipe: LimbRecipe
    others: Mapping[str, tuple[int, int]]
    left_out: tuple[tuple[str, ...], ...]
    same_price: bool = False
    guests: tuple[str, ...] = ()
    taught: tuple[str, ...] = ()
    unlabelled: Mapping[str, Unlabelled] = field(default_factory=dict)
    study: Study = DEFAULT

    @property
    def on_it(self) -> tuple[str, ...]:
        """All tasks whose heads stand on it."""
        return (*self.family, *self.guests)

    @property
    def top(self) -> int:
        """The tap that heads on it have."""
        return self.recipe.tap + self.recipe.layers

    def head_recipe(self, task: str) -> Recipe:
        """How a head of a task is trained: like a probe of the search, for longer."""
        epochs = self.unlabelled.get(task, NOTHING_MORE).epochs
        tap, layers = self.others.get(task, (self.top, 1))
        probing = self.study.settings.probing(tap=tap, seed=0, max_length=MAX_LENGTH, epochs=epochs)
        return probing if layers == 1 else probing.model_copy(update={"layers": layers, "learning_rate": 2e-4})

    def how(self, task: str) -> dict[str, Any]:
        """How a head of a task is trained, beside its record: one that was trained otherwise is no record of this."""
        recipe, more = self.head_recipe(task), self.unlabelled.get(task, NOTHING_MORE)
        there = {"tap": recipe.tap, "layers": recipe.layers, "epochs": recipe.epochs, "rate": recipe.learning_rate}
        return {**there, "variants": more.variants, "texts": more.texts}

    def key(self, task: str, seed: int, *, where: str = "limb") -> str:
        """The key of a head's record."""
        return f"{self.name}: {task} on {where} seed {seed}"


_ONE_LAYER = LimbRecipe(tap=2, layers=1, epochs=4, max_length=MAX_LENGTH)
SHAPES = (
    Shape("pairs", PAIRS, _ONE_LAYER, others={"cola": (1, 3), "sst2": (3, 1)}, left_out=(("rte",),), same_price=True),
    Shape(
        "taught",
        PAIRS,
        _ONE_LAYER.model_copy(update={"mixed_precision": True}),
        others={"cola": (2, 3)},
        left_out=(("rte",),),
        guests=("sst2",),
        # RTE's own head is little better than chance, and so is what it would teach.
        taught=("mnli", "qnli", "qqp", "mrpc", "stsb", "sst2", "cola"),
    ),
    Shape(
        "all",
        TASKS,
        _ONE_LAYER.model_copy(update={"mixed_precision": True}),
        others={},
        # MRPC and STS-B share texts.
        left_out=(("rte",), ("mrpc", "stsb"), ("cola",)),
        taught=("cola", "sst2", "mnli", "qnli", "qqp", "mrpc", "stsb"),
        unlabelled={
            "sst2": Unlabelled(texts="glue/sst2/train_full.jsonl.gz", epochs=4),
            "cola": Unlabelled(variants=3),
            "stsb": Unlabelled(variants=3),
        },
    ),
    Shape(
        "base",
        TASKS,
        # With the folded layer of a head, as many layers as the longest heads of the plan have on the same tap.
        LimbRecipe(tap=3, layers=4, epochs=3, max_length=MAX_LENGTH, learning_rate=1e-4, mixed_precision=True),
        others={},
        left_out=(),
        study=BASE,
    ),
)


class Records:
    """What was measured, by key; each is written at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "records.json"
        self.found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}

    def begin(self, shape: Shape, tasks: Sequence[str], where: str, limb: str) -> None:
        """Forget heads that stood on another limb, as one that is trained anew on another machine is."""
        name = f"{shape.name}: {where} of {', '.join(tasks)}"
        if self.found.get(name) != limb:
            old = {shape.key(task, 0, where=where).removesuffix("0") for task in tasks}
            self.found = {key: one for key, one in self.found.items() if key.rstrip("0123456789") not in old}
            self.add(name, limb)

    def add(self, key: str, value: object) -> None:
        """Keep a record."""
        self.found[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(self._path, json.dumps(dict(sorted(self.found.items())), indent=1) + "\n")

    def add_head(self, shape: Shape, task: str, seed: int, *, where: str = "limb", **measured: object) -> None:
        """Keep a head's record, and how it was trained."""
        self.add(shape.key(task, seed, where=where), {**measured, "how": shape.how(task)})

    def has_head(self, shape: Shape, task: str, seed: int, *, where: str = "limb") -> bool:
        """Return whether there is a record of a head that was trained as the shape says."""
        return bool(self.found.get(shape.key(task, seed, where=where), {}).get("how") == shape.how(task))

    def scores(self, shape: Shape, task: str, *, where: str = "limb", what: str = "score") -> list[float]:
        """Return the scores of all seeds of a head, or what else was measured of it."""
        start = shape.key(task, 0, where=where).removesuffix("0")
        seeds = [int(key.removeprefix(start)) for key in self.found if key.startswith(start)]
        return [
            self.found[shape.key(task, seed, where=where)][what]
            for seed in sorted(seeds)
            if self.has_head(shape, task, seed, where=where)
        ]
