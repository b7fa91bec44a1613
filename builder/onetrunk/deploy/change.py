"""One change of a repository and of the server on it, in steps of which each leaves something that serves.

1. The new files are brought in: version folders, and configs that let the server hold the new version beside the old.
   No ensemble names them yet, so nothing that is served changes.
2. The server loads them, and an ensemble under another name proves what is to come.
3. The ensembles are switched on disk (one decision, then moves), then on the server, and asked again.
A failure in 1 or 2 is undone, one in 3 is switched back. A crash leaves the repository loadable at every point, and
the next deployment finishes what was decided and clears what was not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.admin import AdminClient, Answers
from onetrunk.deploy.proof import REDUCED_TOLERANCE, TOLERANCE, Allowed, check_answers, outputs_of, prove, smoke_rows
from onetrunk.deploy.synchrony import synchronise
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import NotReady, OneTrunkError
from onetrunk.protocol.manifest import GateResult, Manifest
from onetrunk.protocol.names import MANIFEST, MULTITASK, MULTITASK_TOKENS, candidate_ensemble, candidate_output
from onetrunk.repository.arrivals import holds_text, make_manifest, merged_versions
from onetrunk.repository.configs import placed_text
from onetrunk.repository.contents import Contents
from onetrunk.repository.publication import Publication, is_decided
from onetrunk.repository.publishing import publish, told_on_disk
from onetrunk.repository.versions import PlannedModel
from onetrunk.tasks.head_spec import HeadSpec

Scores = NDArray[np.float32]
Write = Callable[[Publication], Mapping[str, GateResult]]
Expected = Callable[[], Mapping[str, Scores]]

# How long a server that goes away in the middle may take to come back: its launcher starts it anew.
_BACK_S = 60.0


@dataclass(frozen=True)
class Change:
    """What is to be done.

    Attributes:
        task: the task that it is about.
        before: what the repository serves.
        after: what it shall serve.
        arrivals: versions of models that ``after`` needs; the fresh ones are written by ``write``.
        write: writes the fresh versions aside, and checks them; gives what the gate found, by task.
        expected: gives, for smoke_rows(), the scores that outputs of the ensemble to be must have.
        notes: what a user should know of what was written; filled by ``write``.
    """

    task: str
    before: Contents
    after: Contents
    arrivals: tuple[PlannedModel, ...] = ()
    write: Write = lambda publication: {}
    expected: Expected = dict
    notes: Sequence[str] = ()

    @property
    def between(self) -> Contents:
        """What stands while both old and new are there: served as before, with all versions loaded."""
        old, new = self.before.heads.get(self.task), self.after.heads[self.task]
        if old is None:
            head = replace(new, served=None, candidate=None, previous=None)
        else:
            loaded = tuple(sorted({*old.loaded, *new.loaded}))
            head = replace(old, specs={**old.specs, **new.specs}, loaded=loaded)
        return self.before.with_head(self.task, head)

    def new_segment_texts(self) -> dict[str, str]:
        """The configs of segments that only ``after`` has."""
        return {
            f"{config.name}/config.pbtxt": placed_text(config, self.after.placement)
            for segment, config in self.after.segment_configs().items()
            if self.before.segments.get(segment) != self.after.segments[segment]
        }

    @property
    def _is_reduced(self) -> bool:
        """Whether answers may come from a precision lower than fp32, and so differ from time to time."""
        both = (self.before, self.after)
        if any(contents.precision.is_reduced for contents in both):
            return True
        # After a build in fp32, a version of before it may be served again.
        return any(head.numbers for contents in both for head in contents.heads.values())

    @property
    def allowed(self) -> Allowed:
        """How far answers may be off."""
        specs: dict[str, HeadSpec] = {}
        for task, head in self.after.heads.items():
            for spec in head.specs.values():  # what it may answer is the same in all of them
                specs |= dict.fromkeys((task, candidate_output(task)), spec)
        return Allowed(specs, REDUCED_TOLERANCE if self._is_reduced else TOLERANCE)

    @property
    def gone(self) -> list[str]:
        """Folders of ensembles that are there no more."""
        return [candidate_ensemble(task) for task in self.before.candidates if task not in self.after.candidates]

    @property
    def ensemble(self) -> str:
        """The ensemble that the change is seen in: that of the candidate, where only that one differs."""
        tried = self.after.heads[self.task].candidate
        if tried is not None and self.before.tasks == self.after.tasks and self._serves_the_same():
            return candidate_ensemble(self.task)
        return MULTITASK

    def _serves_the_same(self) -> bool:
        return all(self.before.heads[task].served == self.after.heads[task].served for task in self.after.tasks)

    def texts(self, repository: Path) -> dict[str, str]:
        """All texts that it writes or changes."""
        wanted = {**self.new_segment_texts(), **self.after.texts}
        return {name: text for name, text in wanted.items() if not holds_text(repository / name, text)}


@dataclass
class Outcome:
    """What carrying a change out came to.

    Attributes:
        written: files that were written, below the repository.
        answers: what the ensemble to be answered for smoke_rows(); empty without a server.
        seconds: step -> seconds.
    """

    written: list[str] = field(default_factory=list)
    answers: Answers = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def carry_out(
    change: Change,
    repository: Path,
    manifest: Manifest,
    server: AdminClient | None,
    progress: ProgressCallback = silent,
) -> Outcome:
    """Carries a change out. The caller holds the repository, and files and server agree with ``change.before``.

    Args:
        change: the change.
        repository: its folder.
        manifest: the manifest of ``change.before``.
        server: the server on it; None changes the files only.
        progress: see ProgressCallback.

    Raises:
        OneTrunkError: something failed; what was served before is served still or again, or the message says what is.
    """
    outcome, clock = Outcome(), _Clock()
    replaced: dict[str, str] = {}
    between = _bring_in(change, repository, manifest, outcome, replaced, progress)
    outcome.seconds["bring in"] = clock.lap()
    try:
        if server is not None:
            progress("loading and proving", 1, 4)
            synchronise_parts(change, server)
            outcome.seconds["load"] = clock.lap()
            outcome.answers = _prove(change, server)
            outcome.seconds["prove"] = clock.lap()
        progress("switching", 2, 4)
        switched, written = publish(change.after, repository, between)
        outcome.written += written
    except BaseException:
        # Once a switch is decided, what is left is to move; the next deployment does that.
        if not is_decided(repository):
            with contextlib.suppress(OneTrunkError):
                _undo(change, repository, manifest, replaced, server)
        raise
    if server is not None:
        try:
            _switch_server(change, server, outcome, clock, progress)
        except BaseException as error:
            _switch_back(change, repository, switched, server, error)
            raise
    clear_candidates(repository, change.after)
    return outcome


def _switch_server(
    change: Change, server: AdminClient, outcome: Outcome, clock: _Clock, progress: ProgressCallback
) -> None:
    try:
        synchronise(change.after, server)
        outcome.seconds["switch"] = clock.lap()
        progress("asking again", 3, 4)
        _ask_again(change, server, outcome.answers)
    except NotReady:
        # It died in the middle: its launcher starts it anew, from files that are switched already.
        try:
            server.wait_until_back(_BACK_S)
        except NotReady as error:
            raise _NotBackError(
                f"the files are switched, but the server went away and has not come back ({error}); "
                "started anew, it serves the new state: then see deploy-head --verify"
            ) from error
        synchronise(change.after, server)
        _ask_again(change, server, outcome.answers)
    outcome.seconds["ask again"] = clock.lap()


def _switch_back(
    change: Change, repository: Path, switched: Manifest, server: AdminClient, error: BaseException
) -> None:
    """Serves again what was served before, after the new state turned out to be wrong. Raises what to tell the user."""
    if isinstance(error, _NotBackError):
        return
    try:
        publish(change.before, repository, switched)
        synchronise(change.before, server)
        clear_candidates(repository, change.before)
    except OneTrunkError as another:
        raise OneTrunkError(
            f"{error}; switching back failed too ({another}): see deploy-head --verify, then --sync"
        ) from error
    if isinstance(error, OneTrunkError):
        raise OneTrunkError(f"{error}; what was served before is served again") from error


class _NotBackError(OneTrunkError):
    """The server went away in the middle of a switch."""


def clear_candidates(repository: Path, contents: Contents) -> list[str]:
    """Removes the folders of candidates' ensembles that are there no more; gives their names.

    A server must have unloaded them: one whose folder is gone goes on being served, and is not listed any more.
    """
    names = [candidate_ensemble(task) for task in sorted(contents.heads) if task not in contents.candidates]
    gone = [name for name in names if (repository / name).is_dir()]
    if gone:
        with Publication(repository) as publication:
            publication.commit(gone, loadable=True)
    return gone


def synchronise_parts(change: Change, server: AdminClient) -> None:
    """Loads what ``between`` names and the server lacks, and the new segments, which no config names yet."""
    synchronise(change.between, server)
    held = server.loaded_versions()
    for segment, version in change.after.segments.items():
        if version not in held.get(segment.name, set()):
            server.load(segment.name)


def _bring_in(
    change: Change,
    repository: Path,
    manifest: Manifest,
    outcome: Outcome,
    replaced: dict[str, str],
    progress: ProgressCallback,
) -> Manifest:
    """Publishes the new versions and the configs that let a server hold them. Gives the manifest that stands then.

    ``replaced`` gets the content of the texts that were there before and are written over.
    """
    between, new = change.between, change.new_segment_texts()
    fresh = [model for model in change.arrivals if model.fresh]
    texts = {**new, **between.part_texts}
    changed = [name for name, text in texts.items() if not holds_text(repository / name, text)]
    if not fresh and not changed:
        return manifest
    with Publication(repository) as publication, told_on_disk(repository):
        progress("exporting and checking", 0, 4)
        gate = {**manifest.gate, **change.write(publication)}
        for name in changed:
            if (repository / name).is_file():
                replaced[name] = (repository / name).read_text(encoding="utf-8")
            publication.write(name, texts[name])
        versions = merged_versions(repository, manifest, change.arrivals, publication)
        stands = make_manifest(between, manifest.triton_release, versions, manifest, idle=new, gate=gate)
        publication.write(MANIFEST, stands.text())
        publication.commit([], loadable=True)
    outcome.written += [name for model in fresh for name in model.files] + changed
    return stands


def _prove(change: Change, server: AdminClient) -> Answers:
    answers = prove(server, _ensemble(change.after, change.ensemble), change.expected(), change.allowed)
    live = answers
    if change.ensemble != MULTITASK and change.before.segments != change.after.segments:
        # The candidate's tap cuts the trunk anew, for all.
        live = prove(server, _ensemble(change.after, MULTITASK), {})
    own = {change.task, candidate_output(change.task)}
    same = [task for task in change.before.tasks if task in live and task not in own]
    if same:
        check_answers(live, server.ask(MULTITASK, smoke_rows(), same), change.allowed)
    return answers


def _ensemble(contents: Contents, name: str) -> pb.ModelConfig:
    return next(config for config, _ in contents.ensembles if config.name == name)


def _undo(
    change: Change, repository: Path, manifest: Manifest, replaced: Mapping[str, str], server: AdminClient | None
) -> None:
    """Takes back what was brought in: texts as before, and the fresh versions are gone."""
    before = change.before
    folders = [f"{model.name}/{model.version}" for model in change.arrivals if model.fresh]
    # Of a model that is new as a whole, the whole folder.
    folders = [name.split("/")[0] if name.split("/")[0] not in manifest.models else name for name in folders]
    if server is not None:
        with contextlib.suppress(OneTrunkError):
            for name in folders:
                if "/" not in name:
                    server.unload(name)
    with Publication(repository) as publication, told_on_disk(repository):
        for name, text in replaced.items():
            publication.write(name, text)
        publication.write(MANIFEST, manifest.text())
        publication.commit(folders, loadable=True)
    if server is not None:
        synchronise(before, server)


def _ask_again(change: Change, server: AdminClient, expected: Answers) -> None:
    ensemble = change.ensemble
    outputs = outputs_of(_ensemble(change.after, ensemble))
    check_answers(server.ask(ensemble, smoke_rows(), outputs), expected, change.allowed)
    if ensemble == MULTITASK:
        answers = server.ask_tokens(MULTITASK_TOKENS, np.zeros((1, 3), dtype=np.int64), change.after.tasks)
        check_answers(answers, {})


class _Clock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        lap, self._began = now - self._began, now
        return round(lap, 3)
