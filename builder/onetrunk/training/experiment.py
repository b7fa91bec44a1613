"""An experiment: the trunk, the tasks' data, the cache and the run records that its trainings share on one machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onetrunk.files import cache_root
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import LimbId
from onetrunk.tasks import Examples, Split, Task, read_examples
from onetrunk.tasks.examples import FileVersion, Texts, file_version, in_windows, overlap_notes
from onetrunk.tasks.head_spec import DEFAULT_LIMBS
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.records import SPLITS
from onetrunk.training.cache import CachedTexts, StateCache
from onetrunk.training.compute import ComputeConfig, DeviceName, TrunkDtype, choose_compute
from onetrunk.training.evaluation import LabelledStates, TeacherOutputs, labelled_targets
from onetrunk.training.lessons import Lessons
from onetrunk.training.runs import RunStore
from onetrunk.training.states import CachedStates, TokenStates, text_tokenizer, tokenise


@dataclass(frozen=True)
class ExperimentConfig:
    """The configuration of an experiment, in plain values: another process opens an equal experiment from it.

    Attributes:
        tasks: The tasks. Texts of each may serve as unlabelled texts for the students of the others.
        trunk: The trunk's folder, name or hub id; None is the default trunk.
        cache: The root folder of all caches; None is the user's own.
        runs: The folder of run records.
        data_root: The folder in which relative data files are looked for first.
        device: The device to compute on.
        trunk_dtype: The data type of the trunk's forward pass over train texts.
        max_length: The longest text in tokens, for all tasks.
        skip_bad_rows: Whether rows that cannot be used are left out, with a note, instead of refused.
        threads: The number of torch threads of each process; None is torch's own choice.
        limbs: The folders in which limbs are looked for on which heads stand.
    """

    tasks: tuple[Task, ...]
    trunk: str | None = None
    cache: Path | None = None
    runs: Path = Path("runs")
    data_root: Path | None = None
    device: DeviceName = "auto"
    trunk_dtype: TrunkDtype = "auto"
    max_length: int = 128
    skip_bad_rows: bool = False
    threads: int | None = None
    limbs: tuple[Path, ...] = (DEFAULT_LIMBS,)


@dataclass
class Experiment:
    """The shared state of trainings. Data and hidden states are read when they are first needed, and then kept.

    Attributes:
        config: The configuration.
        trunk: The frozen trunk.
    """

    config: ExperimentConfig
    trunk: Trunk
    _compute: ComputeConfig | None = None
    _examples: dict[tuple[str, Split], Examples] = field(default_factory=dict)
    _tokens: dict[tuple[str, Split], TokenStates] = field(default_factory=dict)
    _teacher_outputs: dict[str, TeacherOutputs] = field(default_factory=dict)
    _lessons: dict[str, Lessons] = field(default_factory=dict)
    _own_digests: dict[str, str] = field(default_factory=dict)

    def branch(self, limb: str | None) -> Experiment:
        """Return the same experiment on the trunk as heads on a limb see it.

        Args:
            limb: The identity of the limb; None is the trunk that the experiment has.

        Raises:
            UserError: There is no such limb, or it does not fit the trunk.
        """
        if limb is None or limb == self.trunk.identity:
            return self
        # The trunk keeps its branches, and both experiments share what they have read.
        return dataclasses.replace(self, trunk=self.trunk.branch(LimbId.parse(limb)))

    def beside(self, limb: str | None) -> Experiment:
        """Return the same experiment on another branch of the same trunk, wherever this one stands.

        Args:
            limb: The identity of the limb; None is the trunk itself.

        Raises:
            UserError: See ``branch``.
        """
        return dataclasses.replace(self, trunk=self.trunk.root).branch(limb)

    @property
    def compute(self) -> ComputeConfig:
        """The device and the trunk's data type, chosen when first needed: a finished task needs neither.

        Raises:
            UserError: CUDA was requested and is not available.
        """
        if self._compute is None:
            self._compute = choose_compute(self.trunk, self.config.device, self.config.trunk_dtype)
        return self._compute

    @property
    def cache_root(self) -> Path:
        """The root folder of all caches."""
        return cache_root(self.config.cache)

    @property
    def store(self) -> RunStore:
        """The records of finished and stopped runs."""
        return RunStore(self.config.runs)

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name."""
        return {task.name: task for task in self.config.tasks}

    def task(self, name: str) -> Task:
        """Return a task by its name.

        Raises:
            UserError: The experiment has no such task.
        """
        if name not in self.tasks:
            raise UserError(f"there is no task {name!r} in this experiment; its tasks are {', '.join(self.tasks)}")
        return self.tasks[name]

    def teach(self, name: str, lessons: Lessons) -> None:
        """Have a task's heads learn from a teacher outside; its lessons are the task's data from now on."""
        if lessons.labelled:
            self._own_digests[name] = self.task_digest(name)
        self._lessons[name] = lessons
        self._examples[name, "train"], self._examples[name, "dev"] = lessons.train, lessons.dev

    def lessons(self, name: str) -> Lessons | None:
        """Return what a task's heads learn from a teacher outside; None if there is none."""
        return self._lessons.get(name)

    def examples(self, name: str, split: Split) -> Examples:
        """Return a task's labelled texts; of one that labels words and reads windows, long texts window by window."""
        if (name, split) not in self._examples:
            task = self.task(name)
            found = read_examples(task, split, data_root=self.config.data_root, skip_bad_rows=self.config.skip_bad_rows)
            if labels_windows(task):
                found = in_windows(
                    found,
                    get_kind(task.kind),
                    text_tokenizer(self.trunk, self.config.max_length, pair=False),
                    split=split,
                    max_length=self.config.max_length,
                    overlap=task.window_overlap,
                )
            self._examples[name, split] = found
        return self._examples[name, split]

    def data_notes(self, name: str) -> tuple[str, ...]:
        """Return what a reader of the scores should know about a task's data, such as texts in train and dev alike."""
        splits = (*SPLITS, *self.task(name).test_splits)
        return (*(note for split in splits for note in self.examples(name, split).notes), *self.overlaps(name))

    def overlaps(self, name: str) -> tuple[str, ...]:
        """Return how many of a task's texts are in two of its splits, or may be because of the limb below it."""
        train, dev = self.examples(name, "train"), self.examples(name, "dev")
        notes = overlap_notes(train, dev)
        if self.task(name).test is not None:
            test = self.examples(name, "test")
            notes = (*notes, *overlap_notes(train, test, "test"), *overlap_notes(dev, test, "test", "dev"))
        of_limb = self.trunk.family.get(name)
        if of_limb is not None and of_limb != self.task_digest(name):
            notes = (
                *notes,
                f"limb {self.trunk.limb} was trained on other data of {name}, in which dev or test texts of these may "
                "be: the scores may be too good",
            )
        return notes

    def data_facts(self, name: str) -> dict[str, str | int]:
        """Return the row counts and hashes of a task's data, for a record."""
        facts: dict[str, str | int] = {}
        for split in SPLITS:
            rows = self.examples(name, split)
            facts |= {f"{split}_rows": len(rows), f"{split}_sha256": rows.sha256}
        return facts

    def task_digest(self, name: str) -> str:
        """Return a hash over a task, as far as its targets depend on it, and its own data, whoever teaches it."""
        if name in self._own_digests:
            return self._own_digests[name]
        task = self.task(name)
        facts = [task.kind, task.form, task.labels, task.range, task.options, self.data_facts(name) | task.columns]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def targets(self, name: str, split: Split) -> Tensor:
        """Return a task's labels as its kind's targets. *Shape:* (texts, ...)."""
        return labelled_targets(
            self.task(name), self.examples(name, split), trunk=self.trunk, max_length=self.config.max_length
        )

    def tokens(self, name: str, split: Split) -> TokenStates:
        """Return a task's texts as token ids: the input of a whole encoder."""
        if (name, split) not in self._tokens:
            rows = tokenise(self.trunk, self.examples(name, split).texts, self.config.max_length)
            self._tokens[name, split] = TokenStates(rows, self.trunk.pad_token_id)
        return self._tokens[name, split]

    def states(self, name: str, split: Split, taps: Sequence[int], progress: ProgressCallback = silent) -> CachedTexts:
        """Return a task's hidden states at some taps, computing into the cache those that are missing.

        Args:
            name: The task.
            split: The split. Dev and test states are always fp32, as in serving.
            taps: The taps.
            progress: Called as the trunk's pass goes on.

        Raises:
            UserError: The trunk has no such tap, or cannot read texts of ``max_length`` tokens.
            OneTrunkError: The disk is full, or a state does not fit fp16.
        """
        compute = self.compute if split == "train" else self.compute.exact
        texts = self.examples(name, split).texts
        return self.text_states(texts, taps, what=f"{name}: trunk on {split} texts", compute=compute, progress=progress)

    def text_states(
        self,
        texts: Texts,
        taps: Sequence[int],
        *,
        what: str,
        compute: ComputeConfig | None = None,
        progress: ProgressCallback = silent,
    ) -> CachedTexts:
        """Return the hidden states of any texts at some taps, computing into the cache those that are missing.

        Args:
            texts: The texts.
            taps: The taps.
            what: The name of the texts in the progress.
            compute: The device and data type; None is the experiment's own.
            progress: Called as the trunk's pass goes on.

        Raises:
            UserError: See ``states``.
            OneTrunkError: See ``states``.
        """
        return self._cache(compute).states(texts, taps, max_length=self.config.max_length, what=what, progress=progress)

    def encoder_states(
        self, name: str, encoder: Trunk, taps: Sequence[int], progress: ProgressCallback = silent
    ) -> Mapping[int, CachedStates]:
        """Return the states of a task's train texts at some taps of another encoder: a teacher's own.

        Args:
            name: The task.
            encoder: The encoder, which reads texts as long as the trunk does.
            taps: Its taps.
            progress: Called as its pass goes on.

        Raises:
            OneTrunkError: See ``states``.
        """
        cache = StateCache(self.cache_root, encoder, self.compute)
        return cache.states(
            self.examples(name, "train").texts,
            taps,
            max_length=self.config.max_length,
            what=f"{name}: the teacher's layers on train texts",
            progress=progress,
        ).states

    def drawn_states(
        self, name: str, rows: NDArray[np.int64], tap: int, progress: ProgressCallback = silent
    ) -> tuple[CachedStates, NDArray[np.int64]]:
        """Return the states of some of a task's train texts, and where in them the texts are.

        They are those of all its texts where these are in the cache; otherwise only what was drawn is computed.

        Args:
            name: The task.
            rows: The row numbers of the texts. *Shape:* (texts,)
            tap: The tap.
            progress: Called as the trunk's pass goes on.

        Raises:
            OneTrunkError: See ``states``.
        """
        texts = self.examples(name, "train").texts
        if self._cache().has(texts, tap, max_length=self.config.max_length):
            return self.states(name, "train", [tap], progress).states[tap], rows
        drawn = [texts[row] for row in rows]
        found = self.text_states(drawn, [tap], what=f"{name}: trunk on drawn texts", progress=progress)
        return found.states[tap], np.arange(len(rows))

    def _cache(self, compute: ComputeConfig | None = None) -> StateCache:
        return StateCache(self.cache_root, self.trunk, compute or self.compute)

    def labelled_tokens(self, name: str, split: Split) -> LabelledStates:
        """Return a task's token ids with their targets, for a whole encoder."""
        return LabelledStates(self.tokens(name, split), self.targets(name, split), self._dev_raw(name, split))

    def labelled_states(self, name: str, split: Split, tap: int) -> LabelledStates:
        """Return a task's hidden states at a tap with their targets, for a head."""
        states = self.states(name, split, [tap]).states[tap]
        return LabelledStates(states, self.targets(name, split), self._dev_raw(name, split))

    def _dev_raw(self, name: str, split: Split) -> Tensor | None:
        lessons = self._lessons.get(name)
        raw = lessons.dev_raw if lessons is not None and split == "dev" else None
        return None if raw is None else torch.from_numpy(raw)

    def teacher_outputs(self, key: str, compute: Callable[[], TeacherOutputs]) -> TeacherOutputs:
        """Return a teacher's outputs, computed once for several students in a row.

        Args:
            key: The teacher and the texts. Outputs of one key are kept at a time.
            compute: Computes the outputs.
        """
        if key not in self._teacher_outputs:
            self._teacher_outputs = {key: compute()}
        return self._teacher_outputs[key]


def labels_windows(task: Task) -> bool:
    """Return whether long texts of a task are trained window by window: its labels are those of words."""
    return task.long_texts == "windows" and get_kind(task.kind).by_token


def open_experiment(config: ExperimentConfig) -> Experiment:
    """Open an experiment; within a process, the same configuration returns the same one with what it has read.

    A configuration is not the same any more once a data file was written again.

    Raises:
        UserError: The trunk cannot be loaded, or CUDA was requested and is not available.
    """
    splits = ((task, split) for task in config.tasks for split in (*SPLITS, *task.test_splits))
    return _opened(config, tuple(file_version(task, split, config.data_root) for task, split in splits))


@lru_cache(maxsize=2)
def _opened(config: ExperimentConfig, versions: tuple[FileVersion | None, ...]) -> Experiment:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trunk = load_trunk(config.trunk, cache=config.cache)
    trunk.limbs = config.limbs
    return Experiment(config, trunk, choose_compute(trunk, config.device, config.trunk_dtype))
