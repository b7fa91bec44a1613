"""A change of a repository and of the server on it, in steps of which each leaves something that serves.

1. The new files are added: version folders, and configs that let the server hold the new version beside the old one.
   No ensemble names them yet, so nothing that is served changes.
2. The server loads them, and an ensemble under another name proves what is to come.
3. The ensembles are switched on disk (one decision, then moves), then on the server, and asked again.

A failure in 1 or 2 is undone, one in 3 is switched back. A crash leaves the repository loadable at every point, and the
next deployment finishes what was decided and clears what was not.
"""

from __future__ import annotations

import contextlib
import difflib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onetrunk.admin import AdminClient, Answers
from onetrunk.deploy.proof import REDUCED_TOLERANCE, TOLERANCE, Allowed, check_answers, prove, score_outputs, smoke_rows
from onetrunk.deploy.reconcile import reconcile
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import NotReady, OneTrunkError
from onetrunk.protocol.names import (
    MANIFEST,
    MULTITASK,
    MULTITASK_TOKENS,
    candidate_ensemble,
    candidate_output,
    head_name,
)
from onetrunk.repository.configs import placed_text
from onetrunk.repository.state import RepositoryState, changed_texts, text_digest
from onetrunk.repository.transaction import Transaction, commit_state, is_decided
from onetrunk.repository.versions import ModelVersion
from onetrunk.tasks.head_spec import HeadSpec

if TYPE_CHECKING:
    from onetrunk.deploy.artifacts import ReleaseArtifacts

# How long a server that dies in the middle may take to come back: its launcher restarts it.
_RESTART_S = 60.0


@dataclass
class Outcome:
    """What applying a change did.

    Attributes:
        written: The files that were written, below the repository.
        removed: The folders that were removed.
        hashes: Path -> SHA-256 of the files that the change is about, for the log.
        seconds: Step -> seconds.
    """

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    hashes: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """What applying a change would do.

    Attributes:
        written: The files that would be written, below the repository.
        removed: The folders that would be removed.
        diff: How configs and label files would change, as a unified diff.
    """

    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    diff: str = ""


class Change(ABC):
    """A planned change from one state of a repository to another.

    Attributes:
        task: The task that it is about; empty if it is about the whole repository.
        from_version: The version before, for the report and the log.
        to_version: The version after.
    """

    task: str
    from_version: int | None
    to_version: int | None

    @property
    def notes(self) -> Sequence[str]:
        """Remarks for the user. Applying the change may add some."""
        return ()

    @abstractmethod
    def is_needed(self, repository: Path) -> bool:
        """Return whether the repository is not as the change would leave it."""

    @abstractmethod
    def preview(self, repository: Path) -> Preview:
        """Return what ``apply`` would do, without touching anything."""

    @abstractmethod
    def apply(self, repository: Path, server: AdminClient | None, progress: ProgressCallback = silent) -> Outcome:
        """Apply the change. The caller holds the repository, and files and server agree with the state before.

        Args:
            repository: The repository's folder.
            server: The server on it; None changes the files only.
            progress: Called as the steps proceed.

        Raises:
            OneTrunkError: A step failed. What was served before is still served or served again, or else the message
                says what is served.
        """


@dataclass(frozen=True)
class HeadChange(Change):
    """The change of one head, and of the trunk's segments with it.

    Attributes:
        task: The head's task.
        before: The state that the repository has.
        after: The state that it is to have.
        models: Versions of models that ``after`` needs; ``artifacts`` makes the fresh ones.
        artifacts: What is made for the change; None if nothing is.
        from_version: The version before, for the report and the log.
        to_version: The version after.
    """

    task: str
    before: RepositoryState
    after: RepositoryState
    models: tuple[ModelVersion, ...] = ()
    artifacts: ReleaseArtifacts | None = None
    from_version: int | None = None
    to_version: int | None = None

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the artifacts."""
        return () if self.artifacts is None else self.artifacts.notes

    @property
    def between(self) -> RepositoryState:
        """The state while old and new are both there: served as before, with all versions loaded."""
        old, new = self.before.heads.get(self.task), self.after.heads[self.task]
        if old is None:
            head = replace(new, served=None, candidate=None, previous=None)
        else:
            loaded = tuple(sorted({*old.loaded, *new.loaded}))
            head = replace(old, versions={**old.versions, **new.versions}, loaded=loaded)
        # New segments are on disk then, with their configs, and not in use.
        files: dict[str, dict[str, str]] = {}
        for name, text in self._new_segment_texts().items():
            files.setdefault(name.split("/")[0], {})[name] = text_digest(text)
        state = self.before.with_head(self.task, head)
        return replace(state, recorded_files={**state.recorded_files, **files})

    def _new_segment_texts(self) -> dict[str, str]:
        """Return the configs of segments that only ``after`` has."""
        return {
            f"{config.name}/config.pbtxt": placed_text(config, self.after.placement)
            for segment, config in self.after.segment_configs().items()
            if self.before.segments.get(segment) != self.after.segments[segment]
        }

    @property
    def allowed(self) -> Allowed:
        """How far answers may deviate."""
        specs: dict[str, HeadSpec] = {}
        for task, head in self.after.heads.items():
            for version in head.versions.values():  # what a head may answer is the same in all its versions
                specs |= dict.fromkeys((task, candidate_output(task)), version.spec)
        return Allowed(specs, REDUCED_TOLERANCE if self._is_reduced else TOLERANCE)

    @property
    def _is_reduced(self) -> bool:
        """Whether answers may come from a precision below fp32, and so vary with the batch."""
        both = (self.before, self.after)
        if any(state.precision.is_reduced for state in both):
            return True
        # After a build in fp32, an older version may still be served in a reduced precision.
        heads = [head for state in both for head in state.heads.values()]
        return any(version.dtype != "fp32" for head in heads for version in head.versions.values())

    @property
    def _ended_candidates(self) -> list[str]:
        """The folders of candidates' ensembles that the change ends."""
        return [candidate_ensemble(task) for task in self.before.candidates if task not in self.after.candidates]

    @property
    def _ensemble(self) -> str:
        """The ensemble in which the change shows: the candidate's if nothing else differs."""
        before, after = self.before, self.after
        live = [{task: state.heads[task].served for task in state.tasks} for state in (before, after)]
        is_trial = after.heads[self.task].candidate is not None and live[0] == live[1]
        return candidate_ensemble(self.task) if is_trial else MULTITASK

    def is_needed(self, repository: Path) -> bool:
        """Return whether texts, candidates or versions would change."""
        same_head = self.before.heads.get(self.task) == self.after.heads[self.task]
        return bool(self._texts(repository) or self._ended_candidates or not same_head)

    def _texts(self, repository: Path) -> dict[str, str]:
        return changed_texts(repository, {**self._new_segment_texts(), **self.after.texts})

    def preview(self, repository: Path) -> Preview:
        """Return the files that would be made and written, the folders that would go, and a diff of the configs."""
        texts = self._texts(repository)
        files = [name for model in self.models if model.fresh for name in model.files]
        shown = {name: text for name, text in texts.items() if name.endswith((".pbtxt", ".txt"))}
        diff = "".join(_diff(repository, name, text) for name, text in shown.items())
        return Preview(written=(*files, *texts), removed=tuple(self._ended_candidates), diff=diff)

    def apply(self, repository: Path, server: AdminClient | None, progress: ProgressCallback = silent) -> Outcome:
        """Add the files, prove the state after, and switch to it; see the module's description."""
        outcome, clock = Outcome(removed=self._ended_candidates), _Clock()
        replaced: dict[str, str] = {}
        answers: Answers = {}
        between = self._add_files(repository, outcome, replaced, progress)
        outcome.seconds["bring in"] = clock.lap()
        try:
            if server is not None:
                progress("loading and proving", 1, 4)
                self._load(server)
                outcome.seconds["load"] = clock.lap()
                answers = self._prove(server)
                outcome.seconds["prove"] = clock.lap()
            progress("switching", 2, 4)
            switched, written = commit_state(repository, self.after.with_records_of(between))
            outcome.written += written
        except BaseException:
            # Once the switch is decided, only moves remain; the next deployment completes them.
            if not is_decided(repository):
                with contextlib.suppress(OneTrunkError):
                    self._undo(repository, replaced, server)
            raise
        if server is not None:
            try:
                self._switch_server(server, answers, outcome, clock, progress)
            except BaseException as error:
                self._switch_back(repository, switched, server, error)
                raise
        clear_ended_candidates(repository, self.after)
        outcome.written = list(dict.fromkeys(outcome.written))
        outcome.hashes = self._hashes(switched)
        return outcome

    def _add_files(
        self, repository: Path, outcome: Outcome, replaced: dict[str, str], progress: ProgressCallback
    ) -> RepositoryState:
        """Commit the new versions, and the configs that let a server hold them.

        Args:
            repository: The repository's folder.
            outcome: Gets the files that were written.
            replaced: Gets the content of the texts that are overwritten, so that they can be restored.
            progress: Called as the files are made.

        Returns:
            The state of the repository then.
        """
        between = self.between
        texts = {**self._new_segment_texts(), **between.part_texts}
        fresh = [model for model in self.models if model.fresh]
        changed = changed_texts(repository, texts)
        if not fresh and not changed:
            return self.before
        with Transaction(repository) as transaction:
            progress("exporting and checking", 0, 4)
            if self.artifacts is not None:
                between = replace(between, gate={**between.gate, **self.artifacts.write(transaction)})
            for name in (*changed, MANIFEST):
                if (repository / name).is_file():
                    replaced[name] = (repository / name).read_text(encoding="utf-8")
            between, written = transaction.stage_state(between, texts, self.models)
            transaction.commit(loadable=True)
        outcome.written += [name for model in fresh for name in model.files] + written
        return between

    def _load(self, server: AdminClient) -> None:
        """Load what ``between`` names and the server lacks, and the new segments, which no ensemble names yet."""
        reconcile(self.between, server)
        held = server.loaded_versions()
        for segment, version in self.after.segments.items():
            if version not in held.get(segment.name, set()):
                server.load(segment.name)

    def _prove(self, server: AdminClient) -> Answers:
        expected = {} if self.artifacts is None else self.artifacts.expected()
        answers = prove(server, self.after.ensemble(self._ensemble), expected, self.allowed)
        live = answers
        if self._ensemble != MULTITASK and self.before.segments != self.after.segments:
            # The candidate's tap cuts the trunk anew, for all heads.
            live = prove(server, self.after.ensemble(MULTITASK), {})
        own = {self.task, candidate_output(self.task)}
        same = [task for task in self.before.tasks if task in live and task not in own]
        if same:
            check_answers(live, server.ask(MULTITASK, smoke_rows(), same), self.allowed)
        return answers

    def _undo(self, repository: Path, replaced: Mapping[str, str], server: AdminClient | None) -> None:
        """Restore the texts that were overwritten, and remove the fresh versions."""
        fresh = [model for model in self.models if model.fresh]
        # Of a model that is new, the whole folder goes.
        new = [model.name for model in fresh if model.name not in self.before.on_disk]
        folders = [*new, *(f"{model.name}/{model.version}" for model in fresh if model.name not in new)]
        if server is not None:
            with contextlib.suppress(OneTrunkError):
                for name in new:
                    server.unload(name)
        with Transaction(repository) as transaction:
            for name, text in replaced.items():
                transaction.write(name, text)
            transaction.commit(folders, loadable=True)
        if server is not None:
            reconcile(self.before, server)

    def _switch_server(
        self, server: AdminClient, answers: Answers, outcome: Outcome, clock: _Clock, progress: ProgressCallback
    ) -> None:
        try:
            reconcile(self.after, server)
            outcome.seconds["switch"] = clock.lap()
            progress("asking again", 3, 4)
            self._ask_again(server, answers)
        except NotReady:
            # The server died in the middle: its launcher restarts it, from files that are switched already.
            try:
                server.wait_until_back(_RESTART_S)
            except NotReady as error:
                raise _NotBackError(
                    f"the files are switched, but the server went away and has not come back ({error}); "
                    "once it is restarted, it serves the new state: then run deploy-head --verify"
                ) from error
            reconcile(self.after, server)
            self._ask_again(server, answers)
        outcome.seconds["ask again"] = clock.lap()

    def _ask_again(self, server: AdminClient, expected: Answers) -> None:
        """Ask the ensemble that was switched to; its answers must be those of the proof."""
        outputs = score_outputs(self.after.ensemble(self._ensemble))
        check_answers(server.ask(self._ensemble, smoke_rows(), outputs), expected, self.allowed)
        if self._ensemble == MULTITASK:
            answers = server.ask_tokens(MULTITASK_TOKENS, np.zeros((1, 3), dtype=np.int64), self.after.tasks)
            check_answers(answers, {})

    def _switch_back(
        self, repository: Path, switched: RepositoryState, server: AdminClient, error: BaseException
    ) -> None:
        """Serve the state before again, after the new one turned out to be wrong.

        Raises:
            OneTrunkError: What the user needs to know: the error, and what is served now.
        """
        if isinstance(error, _NotBackError):
            return
        before = self.before.with_records_of(switched)
        try:
            commit_state(repository, before)
            reconcile(before, server)
            clear_ended_candidates(repository, before)
        except OneTrunkError as another:
            raise OneTrunkError(
                f"{error}; switching back failed too ({another}): see deploy-head --verify, then --sync"
            ) from error
        if isinstance(error, OneTrunkError):
            raise OneTrunkError(f"{error}; what was served before is served again") from error

    def _hashes(self, state: RepositoryState) -> dict[str, str]:
        """Return path -> SHA-256 of the files of the served version and of the candidate."""
        head, versions = state.heads[self.task], state.on_disk[head_name(self.task)]
        used = [version for version in (head.served, head.candidate) if version is not None]
        return {name: digest for version in used for name, digest in versions[version].files.items()}


class _NotBackError(OneTrunkError):
    """The server went away in the middle of a switch, and has not come back."""


@dataclass(frozen=True)
class PruneChange(Change):
    """The removal of versions and models that nothing uses.

    Attributes:
        before: The state that the repository has.
        after: The state without them.
        removed: The folders to remove, below the repository.
        task: Empty: the change is about the whole repository.
        from_version: None.
        to_version: None.
    """

    before: RepositoryState
    after: RepositoryState
    removed: tuple[str, ...]
    task: str = ""
    from_version: int | None = None
    to_version: int | None = None

    def is_needed(self, repository: Path) -> bool:
        """Return whether there is anything to remove."""
        return bool(self.removed)

    def preview(self, repository: Path) -> Preview:
        """Return the folders that would be removed."""
        return Preview(removed=self.removed)

    def apply(self, repository: Path, server: AdminClient | None, progress: ProgressCallback = silent) -> Outcome:
        """Make configs and server release the versions, then remove their folders."""
        commit_state(repository, replace(self.after, on_disk=self.before.on_disk))
        if server is not None:
            reconcile(self.after, server)
        commit_state(repository, self.after, self.removed)
        return Outcome(removed=list(self.removed))


def clear_ended_candidates(repository: Path, state: RepositoryState) -> list[str]:
    """Remove the folders of candidates' ensembles that are over, and return their names.

    The server must have unloaded them: a model whose folder is gone is still served, and not listed any more.
    """
    names = [candidate_ensemble(task) for task in sorted(state.heads) if task not in state.candidates]
    ended = [name for name in names if (repository / name).is_dir()]
    if ended:
        with Transaction(repository) as transaction:
            transaction.commit(ended, loadable=True)
    return ended


def _diff(repository: Path, name: str, text: str) -> str:
    path = repository / name
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), text.splitlines(keepends=True), f"now/{name}" if before else "/dev/null", name
    )
    return "".join(lines)


class _Clock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        now = time.monotonic()
        lap, self._began = now - self._began, now
        return round(lap, 3)
