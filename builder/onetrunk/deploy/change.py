"""What an operation comes to: a change from one state of a repository to another, planned and not yet carried out."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onetrunk.deploy.fleet import Fleet
from onetrunk.deploy.proof import REDUCED_TOLERANCE, TOLERANCE, Allowed
from onetrunk.deploy.reconcile import reconcile
from onetrunk.deploy.rollout import Outcome, Rollout
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Manifest
from onetrunk.protocol.names import (
    CONFIG_FILE,
    MULTITASK,
    Segment,
    candidate_ensemble,
    candidate_output,
    head_name,
)
from onetrunk.repository.configs import placed_text
from onetrunk.repository.gate_settings import NO_OVERRIDES, GateOverrides
from onetrunk.repository.state import HeadVersions, RepositoryState, changed_texts, required_manifest, text_digest
from onetrunk.repository.transaction import commit_state
from onetrunk.repository.versions import ModelVersion, plan_version, segment_source, segments_for
from onetrunk.tasks.head_spec import HeadSpec

if TYPE_CHECKING:
    from onetrunk.deploy.artifacts import ReleaseArtifacts
    from onetrunk.nn.trunk import Trunk
    from onetrunk.repository.heads import HeadSource


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
    def apply(self, repository: Path, fleet: Fleet, progress: ProgressCallback = silent) -> Outcome:
        """Apply the change. The caller holds the repository, and files and servers agree with the state before.

        Args:
            repository: The repository's folder.
            fleet: The servers on it; without any, only the files are changed.
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
        for name, text in self.new_segment_texts().items():
            files.setdefault(name.split("/")[0], {})[name] = text_digest(text)
        state = self.before.with_head(self.task, head)
        return replace(state, recorded_files={**state.recorded_files, **files})

    def new_segment_texts(self) -> dict[str, str]:
        """Return the configs of segments that only ``after`` has."""
        return {
            f"{config.name}/{CONFIG_FILE}": placed_text(config, self.after.placement)
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
    def ended_candidates(self) -> list[str]:
        """The folders of candidates' ensembles that the change ends."""
        return [candidate_ensemble(task) for task in self.before.candidates if task not in self.after.candidates]

    @property
    def ensemble(self) -> str:
        """The ensemble in which the change shows: the candidate's if nothing else differs."""
        before, after = self.before, self.after
        live = [{task: state.heads[task].served for task in state.tasks} for state in (before, after)]
        is_trial = after.heads[self.task].candidate is not None and live[0] == live[1]
        return candidate_ensemble(self.task) if is_trial else MULTITASK

    def is_needed(self, repository: Path) -> bool:
        """Return whether texts, candidates or versions would change."""
        same_head = self.before.heads.get(self.task) == self.after.heads[self.task]
        return bool(self._texts(repository) or self.ended_candidates or not same_head)

    def _texts(self, repository: Path) -> dict[str, str]:
        return changed_texts(repository, {**self.new_segment_texts(), **self.after.texts})

    def preview(self, repository: Path) -> Preview:
        """Return the files that would be made and written, the folders that would go, and a diff of the configs."""
        texts = self._texts(repository)
        files = [name for model in self.models if model.fresh for name in model.files]
        shown = {name: text for name, text in texts.items() if name.endswith((".pbtxt", ".txt"))}
        diff = "".join(_diff(repository, name, text) for name, text in shown.items())
        return Preview(written=(*files, *texts), removed=tuple(self.ended_candidates), diff=diff)

    def apply(self, repository: Path, fleet: Fleet, progress: ProgressCallback = silent) -> Outcome:
        """Add the files, prove the state after, and switch to it; see ``onetrunk.deploy.rollout``."""
        return Rollout(self, repository, fleet, progress).run()


@dataclass
class Context:
    """What an operation needs besides the repository's state.

    Attributes:
        repository: The repository's folder.
        trunk_source: The trunk; see ``onetrunk.nn.trunk.load_trunk``.
        limbs: The folder of the limbs on which heads stand; see ``onetrunk.tasks.head_spec.limbs_of``.
        gate: What overrides the repository's gate rule.
        progress: Called as work proceeds.
    """

    repository: Path
    trunk_source: str | Path | None = None
    limbs: Path | None = None
    gate: GateOverrides = NO_OVERRIDES
    progress: ProgressCallback = silent
    _trunk: Trunk | None = field(default=None, init=False)

    @property
    def trunk_notes(self) -> tuple[str, ...]:
        """What a user should know about how the trunk was loaded; empty if no operation has needed it."""
        return () if self._trunk is None else tuple(f"note: {note}" for note in self._trunk.notes)

    def load_trunk(self, state: RepositoryState) -> Trunk:
        """Load the trunk, once.

        Raises:
            UserError: The trunk cannot be loaded, or the repository stands on another one.
        """
        if self._trunk is None:
            # Imported here: most operations need no trunk, and so no torch.
            from onetrunk.nn.trunk import load_trunk

            self.progress("loading the trunk", 0, 4)
            self._trunk = load_trunk(self.trunk_source, self.progress)
        if self._trunk.identity != state.trunk:
            raise UserError(
                f"{self.repository} stands on trunk {state.trunk}, but this trunk is {self._trunk.identity}: "
                "give its own by --trunk"
            )
        return self._trunk


def plan_head_change(
    state: RepositoryState,
    context: Context,
    task: str,
    head: HeadVersions,
    source: HeadSource | None = None,
    model: ModelVersion | None = None,
) -> HeadChange:
    """Return the change to another state of one head, with the trunk cut so that a segment ends at every tap in use.

    Args:
        state: The state before.
        context: The repository and what else is needed.
        task: The head's task.
        head: The head as it is to be.
        source: Where the head's fresh version comes from; None if no version is added.
        model: The version that is added.
    """
    after, before = state.with_head(task, head), state.heads.get(task)
    if before is not None and before.served != head.served:
        # Threads were measured for another version, which may have other layers.
        after = replace(after, placement=after.placement.without(head_name(task)))
    manifest = required_manifest(context.repository)
    cut = _cut(state.segments, after.specs_in_use)
    segments = {one: _plan_segment(one, state, manifest, context) for one in cut}
    after = replace(after, segments={one: version for one, (version, _) in segments.items()})
    models = [planned for planned in (model, *(planned for _, planned in segments.values())) if planned is not None]
    change = HeadChange(
        task,
        before=state,
        after=after,
        models=tuple(models),
        from_version=before.served if before else None,
        to_version=head.served,
    )
    if source is None and not any(planned.fresh for planned in models):
        return change
    # Imported here: a change that makes nothing, such as a rollback, needs no torch.
    from onetrunk.deploy.artifacts import ReleaseArtifacts

    artifacts = ReleaseArtifacts(
        repository=context.repository,
        after=after,
        trunk=context.load_trunk(state),
        models=change.models,
        head=source,
        gate=context.gate.apply(state.gate_rule),
        progress=context.progress,
    )
    return replace(change, artifacts=artifacts)


def _cut(now: Iterable[Segment], specs: Sequence[HeadSpec]) -> list[Segment]:
    """Return the segments for these heads. Cuts that exist are kept, so that loaded segments are not exported again."""
    deepest = max(spec.trunk_tap for spec in specs)
    return segments_for(specs, [one.stop for one in now if not one.limb and 0 < one.stop <= deepest])


def _plan_segment(
    segment: Segment, state: RepositoryState, manifest: Manifest, context: Context
) -> tuple[int, ModelVersion | None]:
    """Return a segment's version, and the planned version if the segment is not in use yet."""
    if segment in state.segments:
        return state.segments[segment], None
    dtype = state.precision.of_segment(segment)
    source = segment_source(segment, state.trunk, dtype)
    planned = plan_version(context.repository, segment.name, source, manifest, dtype)
    return planned.version, planned


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

    def apply(self, repository: Path, fleet: Fleet, progress: ProgressCallback = silent) -> Outcome:
        """Make configs and servers release the versions, then remove their folders."""
        commit_state(repository, replace(self.after, on_disk=self.before.on_disk))
        fleet.each("unload", lambda server: reconcile(self.after, server))
        commit_state(repository, self.after, self.removed)
        return Outcome(removed=list(self.removed))


def _diff(repository: Path, name: str, text: str) -> str:
    path = repository / name
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), text.splitlines(keepends=True), f"now/{name}" if before else "/dev/null", name
    )
    return "".join(lines)
