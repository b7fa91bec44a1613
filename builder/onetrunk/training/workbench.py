"""What trainings share on one machine: the trunk, the tasks' data, the cache, and the records of what has been done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Examples, Split, Task, read_examples
from onetrunk.tasks.offsets import Texts
from onetrunk.training.arithmetic import Arithmetic, DeviceName, Precision, choose_arithmetic
from onetrunk.training.cache import CachedTexts, StateCache, cache_root
from onetrunk.training.labelling import TeacherAnswers
from onetrunk.training.run_record import RunStore
from onetrunk.training.states import TokenStates
from onetrunk.training.targets import labelled_targets
from onetrunk.training.tokens import tokenise

SPLITS: tuple[Split, ...] = ("train", "dev")


@dataclass(frozen=True)
class BenchSettings:
    """What a workbench is made from. Plain values: another process makes an equal workbench from it.

    Attributes:
        tasks: the tasks; texts of each may serve the others' students.
        trunk: see onetrunk.nn.trunk.load_trunk.
        cache: the folder of all caches; None is the user's own.
        runs: the folder of run records.
        data_root: where relative data files are looked for first.
        device: where to compute.
        precision: of the trunk's pass over train texts.
        max_length: longest text in tokens, of all tasks.
        skip_bad_rows: leave out rows that cannot be used, and say so.
        threads: of each process; None is torch's own choice.
    """

    tasks: tuple[Task, ...]
    trunk: str | None = None
    cache: Path | None = None
    runs: Path = Path("runs")
    data_root: Path | None = None
    device: DeviceName = "auto"
    precision: Precision = "auto"
    max_length: int = 128
    skip_bad_rows: bool = False
    threads: int | None = None


@dataclass
class Workbench:
    """See the module. Data and states are read when they are first asked for."""

    settings: BenchSettings
    trunk: Trunk
    arithmetic: Arithmetic
    root: Path
    store: RunStore
    _examples: dict[tuple[str, Split], Examples] = field(default_factory=dict)
    _tokens: dict[tuple[str, Split], TokenStates] = field(default_factory=dict)
    _answers: dict[str, TeacherAnswers] = field(default_factory=dict)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Name -> task."""
        return {task.name: task for task in self.settings.tasks}

    def task(self, name: str) -> Task:
        """A task by its name. Raises UserError where there is none."""
        if name not in self.tasks:
            raise UserError(f"no task {name!r} here; there are: {', '.join(self.tasks)}")
        return self.tasks[name]

    def examples(self, name: str, split: Split) -> Examples:
        """A task's labelled texts."""
        if (name, split) not in self._examples:
            self._examples[name, split] = read_examples(
                self.task(name), split, data_root=self.settings.data_root, skip_bad_rows=self.settings.skip_bad_rows
            )
        return self._examples[name, split]

    def targets(self, name: str, split: Split) -> Tensor:
        """What the kind's ``targets`` gives. *Shape:* (texts, ...)."""
        task, examples = self.task(name), self.examples(name, split)
        return labelled_targets(task, examples, self.trunk, self.settings.max_length)

    def tokens(self, name: str, split: Split) -> TokenStates:
        """A task's texts as token ids: what a whole encoder trains on."""
        if (name, split) not in self._tokens:
            rows = tokenise(self.trunk, self.examples(name, split).texts, self.settings.max_length)
            self._tokens[name, split] = TokenStates(rows, self.trunk.pad_token_id)
        return self._tokens[name, split]

    def states(self, name: str, split: Split, taps: Sequence[int], progress: ProgressCallback = silent) -> CachedTexts:
        """A task's states at some taps, from the cache, or computed into it.

        Heads are served on states in fp32, so that is what their scores are measured on.
        """
        precise = split == "dev"
        texts = self.examples(name, split).texts
        return self.text_states(texts, taps, what=f"{name}: trunk on {split} texts", precise=precise, progress=progress)

    def text_states(
        self,
        texts: Texts,
        taps: Sequence[int],
        *,
        what: str,
        precise: bool = False,
        progress: ProgressCallback = silent,
    ) -> CachedTexts:
        """States of any texts at some taps, from the cache, or computed into it."""
        arithmetic = Arithmetic(self.arithmetic.device, "fp32") if precise else self.arithmetic
        cache = StateCache(self.root, self.trunk, arithmetic)
        return cache.states(texts, taps, max_length=self.settings.max_length, what=what, progress=progress)

    def answers(self, key: str, ask: Callable[[], TeacherAnswers]) -> TeacherAnswers:
        """A teacher's answers for a list of texts, asked for once for several students that follow each other.

        Args:
            key: says which teacher and which texts.
            ask: gives the answers.
        """
        if key not in self._answers:
            self._answers = {key: ask()}
        return self._answers[key]

    def data_facts(self, name: str) -> dict[str, str | int]:
        """Hashes and rows of a task's data, for a record."""
        facts: dict[str, str | int] = {}
        for split in SPLITS:
            rows = self.examples(name, split)
            facts |= {f"{split}_rows": len(rows), f"{split}_sha256": rows.sha256}
        return facts


@lru_cache(maxsize=2)
def open_workbench(settings: BenchSettings) -> Workbench:
    """The workbench of some settings; the same one again within a process, with what it has read."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    trunk = load_trunk(settings.trunk)
    arithmetic = choose_arithmetic(trunk, settings.device, settings.precision)
    return Workbench(settings, trunk, arithmetic, cache_root(settings.cache), RunStore(settings.runs))
