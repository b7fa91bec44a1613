"""From one state of a head to the next: what may follow what, and what is refused. Nothing is touched here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import Dtype
from onetrunk.protocol.names import Segment, cut_trunk, segment_named
from onetrunk.repository.contents import Contents, HeadState
from onetrunk.repository.standing import Standing
from onetrunk.tasks.head_spec import HeadSpec


def tried_head(contents: Contents, task: str | None) -> tuple[str, HeadState, int]:
    """The task whose candidate is meant, its head, and the candidate's version.

    Raises:
        UserError: it has none; or no task was named, and there is not exactly one candidate.
    """
    if task is None:
        if len(contents.candidates) != 1:
            found = ", ".join(contents.candidates) or "none"
            raise UserError(f"which candidate is meant? Being tried: {found}; name one by --task")
        task = contents.candidates[0]
    head = known_head(contents, task)
    if head.candidate is None:
        found = ", ".join(contents.candidates) or "none"
        raise UserError(f"task {task} has no candidate; being tried: {found}")
    return task, head, head.candidate


def known_head(contents: Contents, task: str) -> HeadState:
    """A task's head. Raises UserError where the repository has none of this name."""
    if task not in contents.heads:
        raise UserError(f"no task {task!r} in this repository; there are: {', '.join(sorted(contents.heads))}")
    return contents.heads[task]


def earlier_version(head: HeadState, task: str) -> int:
    """The version that was served before, or of a removed task the last one. Raises UserError where there is none."""
    if head.previous in head.specs and head.previous is not None:
        return head.previous
    others = [version for version in head.specs if version not in (head.served, head.candidate)]
    lower = [version for version in others if head.served is None or version < head.served]
    if not lower:
        raise UserError(f"task {task} has no earlier version on disk; there are: {', '.join(map(str, head.specs))}")
    return max(lower)


def check_meaning(what_it_is: str, spec: HeadSpec, head: HeadState) -> None:
    """Raises UserError where the task's name stands for something else already: its clients would misread answers."""
    known = head.specs.get(head.served or head.previous or max(head.specs, default=0))
    if known is None:
        return
    for what in ("kind", "form", "labels", "range"):
        old, new = getattr(known, what), getattr(spec, what)
        if old != new:
            order = ", in this order" if what == "labels" and sorted(old or ()) == sorted(new or ()) else ""
            raise UserError(
                f"{what_it_is}: task {spec.task} is taken by a head with {what} {_shown(old)}{order}, this one has "
                f"{_shown(new)}: give it another name, or --remove and --prune the old one first"
            )


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_version(
    task: str, head: HeadState, version: int, spec: HeadSpec, action: str, numbers: Dtype = "fp32"
) -> HeadState:
    """The head with a version that has come in: live for ``deploy``, else beside the live one.

    Raises:
        UserError: it is live already, or another candidate is being tried.
    """
    specs = {**head.specs, version: head.specs.get(version, spec)}
    made_in = {**head.numbers, **({} if numbers == "fp32" else {version: numbers})}
    head = replace(head, specs=specs, numbers=made_in)
    if action == "deploy":
        return served_now(replace(head, candidate=None if head.candidate == version else head.candidate), version)
    if version == head.served:
        raise UserError(f"this head is version {version} of {task}, which is served already")
    if head.candidate not in (None, version):
        raise UserError(
            f"task {task} has a candidate already, version {head.candidate}: --promote or --discard it first"
        )
    return replace(head, candidate=version).at_rest()


def served_now(head: HeadState, version: int) -> HeadState:
    """The head served from a version; the one before stays loaded."""
    before = head.previous if head.served in (None, version) else head.served
    return replace(head, served=version, previous=before if before != version else None).at_rest()


def cut_for(now: Iterable[Segment], taps: set[int]) -> list[Segment]:
    """The segments for these taps, with the cuts that are there kept: what is loaded need not be exported again."""
    return cut_trunk({segment.stop for segment in now if 0 < segment.stop <= max(taps)} | taps)


def pruned(standing: Standing, keep: int) -> tuple[Contents, list[str]]:
    """The contents without old versions, and the folders that go."""
    contents, removed = standing.contents, []
    in_use = {segment.name for segment in contents.segments}
    # What a rollback goes to may stand on a segment that is not in use now.
    previous_taps = {
        spec.tap
        for head in contents.heads.values()
        for version, spec in head.specs.items()
        if head.served is not None and version == head.previous
    }
    for name, entry in sorted(standing.manifest.models.items()):
        head = contents.heads.get(name.removeprefix("head_")) if name.startswith("head_") else None
        if head is None:
            segment = segment_named(name)
            if name.startswith("heads_") and entry.served is None:
                removed.append(name)
            elif segment is not None and name not in in_use:
                if segment.stop not in previous_taps:
                    removed.append(name)
            elif entry.served is not None:
                removed += [f"{name}/{version}" for version in entry.versions if version != entry.served]
            continue
        task = name.removeprefix("head_")
        if head.served is None and head.candidate is None:
            removed.append(name)
            contents = replace(contents, heads={t: h for t, h in contents.heads.items() if t != task})
            continue
        stay = {version for version in (head.served, head.candidate) if version is not None}
        for version in [head.previous, *sorted(entry.versions, reverse=True)]:
            if version in entry.versions and len(stay - {head.candidate}) < keep:
                stay.add(version)
        removed += [f"{name}/{version}" for version in sorted(entry.versions) if version not in stay]
        specs = {version: spec for version, spec in head.specs.items() if version in stay}
        numbers = {version: made for version, made in head.numbers.items() if version in stay}
        previous = head.previous if head.previous in stay else None
        contents = contents.with_head(task, replace(head, specs=specs, numbers=numbers, previous=previous).at_rest())
    return replace(
        contents, groups=tuple(group for group in contents.groups if group.group.name not in removed)
    ), removed
