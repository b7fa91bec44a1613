"""The operations of ``deploy-head``, one class each: from the state of a repository to the change that is asked for.

Planning touches nothing. It decides what may follow what, and refuses the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from onetrunk.deploy.change import Change, Context, PruneChange, plan_head_change
from onetrunk.protocol.errors import UserError, did_you_mean
from onetrunk.protocol.manifest import ModelEntry
from onetrunk.protocol.names import head_name, head_task, is_group, segment_named
from onetrunk.protocol.traffic_split import TrafficSplit
from onetrunk.repository.state import HeadVersion, HeadVersions, RepositoryState, required_manifest
from onetrunk.repository.versions import ModelVersion, is_whole, plan_version, segments_for
from onetrunk.tasks.head_spec import HeadSpec, limbs_of

if TYPE_CHECKING:
    from onetrunk.nn.embedding import EmbeddingTap
    from onetrunk.protocol.head_json import LongTexts
    from onetrunk.repository.heads import HeadSource


class Operation(ABC):
    """A change of a repository that a user asks for."""

    action: ClassVar[str]
    """The operation's name in reports and in the log."""

    @abstractmethod
    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that the operation makes to a repository in this state.

        Raises:
            UserError: The operation is not possible.
        """


@dataclass(frozen=True)
class Deploy(Operation):
    """Add a task, or serve the next version of its head. The version before stays loaded.

    Attributes:
        folder: A bundle, or a head that was exported elsewhere. Its name need not be the task's.
        about: What the log is to tell of where it came from, such as a version of a registry.
    """

    folder: Path
    about: Mapping[str, str] = field(default_factory=dict)
    action: ClassVar[str] = "deploy"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that serves the head.

        Raises:
            UserError: The head is broken, belongs to another trunk, or means something other than the one served.
        """
        return _serve(_load(self.folder, state, context), str(self.folder), state, context)


@dataclass(frozen=True)
class Embed(Operation):
    """Add the task ``embedding``, or move it to another tap.

    Attributes:
        tap: The tap whose states are averaged.
        long_texts: What is read of a text that is longer than the server's longest.
    """

    tap: EmbeddingTap
    long_texts: LongTexts = "cut"
    action: ClassVar[str] = "deploy"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that serves the embedding.

        Raises:
            UserError: The trunk has no such tap, or a head of another kind has the name.
        """
        # Imported here: the other operations need no torch.
        from onetrunk.repository.heads import make_embedding

        return _serve(make_embedding(context.load_trunk(state), self.tap, self.long_texts), "--embed", state, context)


@dataclass(frozen=True)
class Candidate(Operation):
    """Serve a head beside the live one, by the ensemble ``candidate_<task>``.

    Attributes:
        folder: A bundle, or a head that was exported elsewhere. Its name need not be the task's.
        split: The share of the traffic that it answers in place of the live head; None for none.
        about: What the log is to tell of where it came from, such as a version of a registry.
    """

    folder: Path
    split: TrafficSplit | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    action: ClassVar[str] = "candidate"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that serves the candidate.

        Raises:
            UserError: The head cannot be used, is live already, or another candidate is being tried.
        """
        source = _load(self.folder, state, context)
        head, model = _add_version(source, str(self.folder), state, context)
        task, version = source.spec.task, model.version
        if version == head.served:
            raise UserError(f"this head is version {version} of {task}, which is served already")
        if head.candidate not in (None, version):
            raise UserError(
                f"task {task} has a candidate already, version {head.candidate}: --promote or --discard it first"
            )
        if self.split is not None and head.served is None:
            raise UserError(f"--share: task {task} has no live head, whose traffic could be split: leave it out")
        tried = replace(head, candidate=version, split=self.split).at_rest()
        return replace(plan_head_change(state, context, task, tried, source, model), to_version=version)


@dataclass(frozen=True)
class Promote(Operation):
    """Make a candidate live.

    Attributes:
        task: The candidate's task; None for the only candidate there is.
    """

    task: str | None = None
    action: ClassVar[str] = "promote"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that serves the candidate's version.

        Raises:
            UserError: There is no such candidate.
        """
        task, version = find_candidate(state, self.task)
        return plan_head_change(state, context, task, replace(state.heads[task], candidate=None).serving(version))


@dataclass(frozen=True)
class Discard(Operation):
    """End the trial of a candidate. Its version stays on disk until it is pruned.

    Attributes:
        task: The candidate's task; None for the only candidate there is.
    """

    task: str | None = None
    action: ClassVar[str] = "discard"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that ends the trial.

        Raises:
            UserError: There is no such candidate.
        """
        task, version = find_candidate(state, self.task)
        change = plan_head_change(state, context, task, replace(state.heads[task], candidate=None).at_rest())
        return replace(change, from_version=version)


@dataclass(frozen=True)
class Rollback(Operation):
    """Serve an earlier version again, or a task that was removed.

    Attributes:
        task: The task.
        to: The version; None for the one that was served before.
    """

    task: str
    to: int | None = None
    action: ClassVar[str] = "rollback"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that serves the version.

        Raises:
            UserError: There is no such version, or its files are not whole.
        """
        head = _find_head(state, self.task)
        version = _earlier_version(head, self.task) if self.to is None else self.to
        if version != head.served:
            self._check_version(state, context.repository, head, version)
            head = head.serving(version)
        return plan_head_change(state, context, self.task, head)

    def _check_version(self, state: RepositoryState, repository: Path, head: HeadVersions, version: int) -> None:
        if version == head.candidate:
            raise UserError(f"version {version} of {self.task} is the candidate: --promote makes it live")
        if version not in head.versions:
            known = ", ".join(map(str, sorted(head.versions)))
            raise UserError(f"task {self.task} has no version {version} on disk; there are: {known}")
        _check_meaning(f"version {version}", head.spec(version), head)
        if not is_whole(repository, state.on_disk[head_name(self.task)][version]):
            raise UserError(f"version {version} of {self.task} is not as it was written, and is not served again")


@dataclass(frozen=True)
class Remove(Operation):
    """Take a task out of the ensembles. Its files stay until they are pruned, so that a rollback brings it back.

    Attributes:
        task: The task.
    """

    task: str
    action: ClassVar[str] = "remove"

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that removes the task.

        Raises:
            UserError: The task is not served, is the last one, or has a candidate.
        """
        head = _find_head(state, self.task)
        if head.served is None:
            raise UserError(f"task {self.task} is not served: it was removed before")
        if head.candidate is not None:
            raise UserError(f"task {self.task} has a candidate that is being tried: --discard or --promote it first")
        if state.tasks == (self.task,):
            raise UserError(f"task {self.task} is the only one that is served: stop the server instead")
        removed = replace(head, served=None, previous=head.served, loaded=())
        return plan_head_change(state, context, self.task, removed)


@dataclass(frozen=True)
class Prune(Operation):
    """Delete old versions of heads, tasks that were removed, and models that nothing uses.

    Attributes:
        keep: The number of versions of a head to keep, the served one included. A candidate is kept in any case.

    Raises:
        UserError: ``keep`` is less than 1.
    """

    keep: int = 2
    action: ClassVar[str] = "prune"

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError(f"--keep {self.keep}: at least 1, the version that is served")

    def plan(self, state: RepositoryState, context: Context) -> Change:
        """Return the change that deletes them."""
        heads, removed, parts = dict(state.heads), [], {}
        for name, entry in sorted(required_manifest(context.repository).models.items()):
            task = head_task(name)
            if task not in heads or task is None:
                parts[name] = entry
            elif heads[task].served is None and heads[task].candidate is None:
                removed.append(name)
                del heads[task]
            else:
                heads[task], old = self._without_old(heads[task], sorted(entry.versions))
                removed += [f"{name}/{version}" for version in old]
        # What nothing uses once old heads are gone.
        left = replace(state, heads=heads)
        removed = sorted(
            [*removed, *(folder for name, entry in parts.items() for folder in _unused(left, name, entry))]
        )
        on_disk = {
            name: {version: record for version, record in versions.items() if f"{name}/{version}" not in removed}
            for name, versions in state.on_disk.items()
            if name not in removed
        }
        groups = tuple(group for group in state.groups if group.group.name not in removed)
        return PruneChange(state, replace(state, heads=heads, groups=groups, on_disk=on_disk), tuple(removed))

    def _without_old(self, head: HeadVersions, on_disk: list[int]) -> tuple[HeadVersions, list[int]]:
        """Return the head without its old versions, and these."""
        stay = {version for version in (head.served, head.candidate) if version is not None}
        for version in [head.previous, *reversed(on_disk)]:
            if version in on_disk and version is not None and len(stay - {head.candidate}) < self.keep:
                stay.add(version)
        versions = {number: version for number, version in head.versions.items() if number in stay}
        previous = head.previous if head.previous in stay else None
        old = [version for version in on_disk if version not in stay]
        return replace(head, versions=versions, previous=previous).at_rest(), old


def _unused(state: RepositoryState, name: str, entry: ModelEntry) -> list[str]:
    """Return the folders to remove of a model that is no head."""
    # A rollback may need a segment that is not in use now.
    previous = [
        head.spec(head.previous)
        for head in state.heads.values()
        if head.served is not None and head.previous is not None and head.previous in head.versions
    ]
    needed = {one.output for one in segments_for(previous)}
    segment = segment_named(name)
    if segment is not None and segment not in state.segments:
        return [] if segment.output in needed else [name]
    if entry.served is None:
        return [name] if is_group(name) else []
    return [f"{name}/{version}" for version in entry.versions if version != entry.served]


def find_candidate(state: RepositoryState, task: str | None) -> tuple[str, int]:
    """Return the task whose candidate is meant, and the candidate's version.

    Args:
        state: The repository's state.
        task: The task; None for the only candidate there is.

    Raises:
        UserError: The task has no candidate; or no task was named, and there is not exactly one candidate.
    """
    tried = ", ".join(state.candidates)
    if task is not None:
        _find_head(state, task)
    if not tried:
        raise UserError("no candidate is being tried: deploy-head --candidate BUNDLE first")
    if task is None:
        if len(state.candidates) != 1:
            raise UserError(f"which candidate is meant? Being tried: {tried}; name one by --task")
        task = state.candidates[0]
    version = state.heads[task].candidate
    if version is None:
        raise UserError(f"task {task} has no candidate; being tried: {tried}")
    return task, version


def _find_head(state: RepositoryState, task: str) -> HeadVersions:
    if task not in state.heads:
        known = sorted(state.heads)
        hint = did_you_mean(task, known)
        raise UserError(f"no task {task!r} in this repository{hint}; there are: {', '.join(known)}")
    return state.heads[task]


def _earlier_version(head: HeadVersions, task: str) -> int:
    """Return the version that was served before, or for a removed task the last one."""
    if head.previous is not None and head.previous in head.versions:
        return head.previous
    others = [version for version in head.versions if version not in (head.served, head.candidate)]
    lower = [version for version in others if head.served is None or version < head.served]
    if not lower:
        raise UserError(f"task {task} has no earlier version on disk; there are: {', '.join(map(str, head.versions))}")
    return max(lower)


def _check_meaning(what_it_is: str, spec: HeadSpec, head: HeadVersions) -> None:
    """Refuse a head that means something other than the one of its name: clients would misread its answers."""
    number = head.served or head.previous or max(head.versions, default=0)
    if number not in head.versions:
        return
    for what in ("kind", "form", "labels", "range"):
        old, new = getattr(head.spec(number), what), getattr(spec, what)
        if old != new:
            order = ", in this order" if what == "labels" and sorted(old or ()) == sorted(new or ()) else ""
            raise UserError(
                f"{what_it_is}: task {spec.task} is taken by a head with {what} {_format(old)}{order}, this one has "
                f"{_format(new)}: give it another name, or --remove and --prune the old one first"
            )


def _format(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _load(folder: Path, state: RepositoryState, context: Context) -> HeadSource:
    # Imported here: the other operations need no torch.
    from onetrunk.repository.heads import load_head

    trunk = context.load_trunk(state)
    trunk.limbs = limbs_of(folder.absolute().parent, context.limbs)
    return load_head(folder, trunk, any_folder=True)


def _serve(source: HeadSource, what_it_is: str, state: RepositoryState, context: Context) -> Change:
    """Return the change that serves a head, which is no candidate any more."""
    head, model = _add_version(source, what_it_is, state, context)
    ended = head.candidate == model.version
    head = replace(head, candidate=None if ended else head.candidate).serving(model.version)
    return plan_head_change(state, context, source.spec.task, head, source, model)


def _add_version(
    source: HeadSource, what_it_is: str, state: RepositoryState, context: Context
) -> tuple[HeadVersions, ModelVersion]:
    """Return the versions of a head's task, itself among them, and its own version."""
    # Imported here: the other operations need no torch.
    from onetrunk.repository.heads import head_dtype, head_source

    spec = source.spec
    head = state.heads.get(spec.task, HeadVersions())
    _check_meaning(what_it_is, spec, head)
    if context.gate.max_loss is not None and not state.precision.is_reduced:
        raise UserError(f"--max-loss: {context.repository} is of fp32, by which nothing is lost: leave it out")
    dtype = head_dtype(source, state.precision)
    manifest = required_manifest(context.repository)
    model = plan_version(context.repository, head_name(spec.task), head_source(source, dtype), manifest, dtype)
    known = head.versions.get(model.version, HeadVersion(spec))
    versions = {**head.versions, model.version: HeadVersion(known.spec, dtype)}
    return replace(head, versions=versions), model
