"""Carrying out a change of a head, in steps of which each leaves something that serves.

1. The new files are added: version folders, and configs that let a server hold the new version beside the old one.
   No ensemble names them yet, so nothing that is served changes.
2. The server loads them, and an ensemble under another name proves what is to come.
3. The ensembles are switched on disk (one decision, then moves), then on the server, and asked again.

If several servers read the repository, each step is carried out on all of them at once, and the next one begins when
all have done it: so 1 and 2 are the first phase of a commit in two phases, and 3 is the second.

A failure in 1 or 2 is undone, one in 3 is switched back, on all servers. A crash leaves the repository loadable at
every point, and the next deployment finishes what was decided and clears what was not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onetrunk.admin import AdminClient, Answers
from onetrunk.deploy.fleet import Fleet, FleetError
from onetrunk.deploy.proof import ProofError, check_answers, prove, score_outputs, smoke_rows
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
from onetrunk.repository.state import RepositoryState, changed_texts
from onetrunk.repository.transaction import Transaction, commit_state, is_decided

if TYPE_CHECKING:
    from onetrunk.deploy.change import HeadChange

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


class Rollout:
    """One change of a head on its way to the servers.

    The caller holds the repository, and files and servers agree with the state before.
    """

    def __init__(
        self,
        change: HeadChange,
        repository: Path,
        fleet: Fleet,
        progress: ProgressCallback = silent,
    ) -> None:
        """Prepare the rollout; touch nothing.

        Args:
            change: The change.
            repository: The repository's folder.
            fleet: The servers on it; without any, only the files are changed.
            progress: Called as the steps proceed.
        """
        self.change, self.repository, self.fleet, self.progress = change, repository, fleet, progress
        self._outcome = Outcome(removed=change.ended_candidates)
        # The content of texts that step 1 overwrites, by path, so that they can be restored.
        self._replaced: dict[str, str] = {}
        self._step_began = time.monotonic()

    def run(self) -> Outcome:
        """Add the files, prove the state after, and switch to it.

        Raises:
            OneTrunkError: A step failed. What was served before is still served or served again, or else the message
                says what is served.
        """
        change, outcome = self.change, self._outcome
        answers: dict[str, Answers] = {}
        between = self._add_files()
        self._end_step("bring in")
        try:
            if self.fleet:
                self.progress("loading and proving", 1, 4)
                self.fleet.each("load", self._load)
                self._end_step("load")
                expected = {} if change.artifacts is None else change.artifacts.expected()
                answers = self.fleet.each("prove", lambda server: self._prove(server, expected))
                self._check_agreement(answers)
                self._end_step("prove")
            self.progress("switching", 2, 4)
            switched, written = commit_state(self.repository, change.after.with_records_of(between))
            outcome.written += written
        except BaseException as error:
            # Once the switch is decided, only moves remain; the next deployment completes them.
            if not is_decided(self.repository):
                try:
                    self._undo()
                except OneTrunkError as fault:
                    raise OneTrunkError(
                        f"{error}; taking it back failed, too: {fault}; mend that, then run deploy-head --sync with "
                        "the same servers: until then what they serve is not known"
                    ) from error
                if self.fleet.is_several and isinstance(error, OneTrunkError):
                    raise self._back_again(error) from error
            raise
        if self.fleet:
            try:
                self._switch_servers(answers)
            except BaseException as error:
                self._switch_back(switched, error)
                raise
            # A replica that started in the middle may have read the files before they were switched.
            self.fleet.take_in(lambda server: reconcile(change.after, server))
        clear_ended_candidates(self.repository, change.after)
        outcome.written = list(dict.fromkeys(outcome.written))
        outcome.hashes = self._hashes(switched)
        return outcome

    def _end_step(self, name: str) -> None:
        now = time.monotonic()
        self._outcome.seconds[name] = round(now - self._step_began, 3)
        self._step_began = now

    def _add_files(self) -> RepositoryState:
        """Commit the new versions, and the configs that let a server hold them; return the state then."""
        change, between = self.change, self.change.between
        texts = {**change.new_segment_texts(), **between.part_texts}
        fresh = [model for model in change.models if model.fresh]
        changed = changed_texts(self.repository, texts)
        if not fresh and not changed:
            return change.before
        with Transaction(self.repository) as transaction:
            self.progress("exporting and checking", 0, 4)
            if change.artifacts is not None:
                between = replace(between, gate={**between.gate, **change.artifacts.write(transaction)})
            for name in (*changed, MANIFEST):
                if (self.repository / name).is_file():
                    self._replaced[name] = (self.repository / name).read_text(encoding="utf-8")
            between, written = transaction.stage_state(between, texts, change.models)
            transaction.commit(loadable=True)
        self._outcome.written += [name for model in fresh for name in model.files] + written
        return between

    def _load(self, server: AdminClient) -> None:
        """Load what ``between`` names and the server lacks, and the new segments, which no ensemble names yet."""
        reconcile(self.change.between, server)
        held = server.loaded_versions()
        for segment, version in self.change.after.segments_in_use.items():
            if version not in held.get(segment.name, set()):
                server.load(segment.name)

    def _prove(self, server: AdminClient, expected: Answers) -> Answers:
        change = self.change
        before, after = change.before, change.after
        answers = prove(server, after.ensemble(change.ensemble), expected, change.allowed)
        live = answers
        if change.ensemble != MULTITASK and before.segments != after.segments:
            # The candidate's tap cuts the trunk anew, for all heads.
            live = prove(server, after.ensemble(MULTITASK), {})
        same = [task for task in before.tasks if task in live and task not in self._own_outputs]
        if same:
            check_answers(live, server.ask(MULTITASK, smoke_rows(), same), change.allowed)
        return answers

    @property
    def _own_outputs(self) -> set[str]:
        """The outputs of the head that is changed."""
        return {self.change.task, candidate_output(self.change.task)}

    def _check_agreement(self, answers: Mapping[str, Answers]) -> None:
        """Check that all servers loaded the same head: folders of their own may hold different files."""
        (_, first), *others = answers.items()
        own = {output: scores for output, scores in first.items() if output in self._own_outputs}
        for address, found in others:
            try:
                check_answers(found, own, self.change.allowed)
            except ProofError as error:
                raise self.fleet.refuse(address, f"it does not answer as the other replicas do: {error}") from error

    def _undo(self) -> None:
        """Restore the texts that were overwritten, and remove the fresh versions."""
        fresh = [model for model in self.change.models if model.fresh]
        # Of a model that is new, the whole folder goes.
        new = [model.name for model in fresh if model.name not in self.change.before.on_disk]
        folders = [*new, *(f"{model.name}/{model.version}" for model in fresh if model.name not in new)]

        def release(server: AdminClient) -> None:
            with contextlib.suppress(OneTrunkError):
                for name in new:
                    server.unload(name)

        if new:
            self.fleet.take_back(release)
        with Transaction(self.repository) as transaction:
            for name, text in self._replaced.items():
                transaction.write_manifest(text) if name == MANIFEST else transaction.write(name, text)
            transaction.commit(folders, loadable=True)
        self.fleet.take_back(lambda server: self._restore(server, self.change.before))

    def _switch_servers(self, answers: Mapping[str, Answers]) -> None:
        after = self.change.after
        self.fleet.each("switch", lambda server: self._survive(server, lambda: reconcile(after, server)))
        self._end_step("switch")
        self.progress("asking again", 3, 4)
        self.fleet.each(
            "ask again",
            lambda server: self._survive(server, lambda: self._ask_again(server, answers[server.url])),
        )
        self._end_step("ask again")

    def _survive(self, server: AdminClient, step: Callable[[], object]) -> None:
        """Carry out a step of the switch, although the server may die in the middle.

        Its launcher restarts it, from files that are switched already.
        """
        try:
            step()
        except NotReady:
            try:
                server.wait_until_back(_RESTART_S)
            except NotReady as error:
                if self.fleet.is_several:
                    raise
                raise _NotBackError(
                    f"the files are switched, but the server went away and has not come back ({error}); "
                    "once it is restarted, it serves the new state: then run deploy-head --verify"
                ) from error
            reconcile(self.change.after, server)
            step()

    def _restore(self, server: AdminClient, before: RepositoryState) -> None:
        """Have a server serve the state before. One of several that died is waited for, so that its answer is known."""
        try:
            reconcile(before, server)
        except NotReady:
            if not self.fleet.is_several:
                raise
            server.wait_until_back(_RESTART_S)
            reconcile(before, server)

    def _ask_again(self, server: AdminClient, expected: Answers) -> None:
        """Ask the ensemble that was switched to; its answers must be those of the proof."""
        change = self.change
        outputs = score_outputs(change.after.ensemble(change.ensemble))
        check_answers(server.ask(change.ensemble, smoke_rows(), outputs), expected, change.allowed)
        if change.ensemble == MULTITASK:
            answers = server.ask_tokens(MULTITASK_TOKENS, np.zeros((1, 3), dtype=np.int64), change.after.tasks)
            check_answers(answers, {})

    def _switch_back(self, switched: RepositoryState, error: BaseException) -> None:
        """Serve the state before again, after the new one turned out to be wrong.

        Raises:
            OneTrunkError: What the user needs to know: the error, and what is served now.
        """
        if isinstance(error, _NotBackError):
            return
        before = self.change.before.with_records_of(switched)
        try:
            commit_state(self.repository, before)
            failed = self.fleet.take_back(lambda server: self._restore(server, before))
            if not self.fleet.is_several:
                for another in failed.values():
                    raise another
            clear_ended_candidates(self.repository, before)
        except OneTrunkError as another:
            raise OneTrunkError(
                f"{error}; switching back failed too ({another}): see deploy-head --verify, then --sync"
            ) from error
        if isinstance(error, OneTrunkError):
            raise self._back_again(error) from error

    def _back_again(self, error: OneTrunkError) -> OneTrunkError:
        """Return an error, with what is served now."""
        answers = self.fleet.answers()
        if unknown := [answer.address for answer in answers if answer.state == "unknown"]:
            served = (
                f"what was served before is served again, but what {', '.join(unknown)} serves is not known: once it "
                "answers, run deploy-head --sync with the same --servers"
            )
        else:
            served = "what was served before is served again"
        return FleetError(f"{error}; {served}", answers) if answers else OneTrunkError(f"{error}; {served}")

    def _hashes(self, state: RepositoryState) -> dict[str, str]:
        """Return path -> SHA-256 of the files of the served version and of the candidate."""
        head, versions = state.heads[self.change.task], state.on_disk[head_name(self.change.task)]
        used = [version for version in (head.served, head.candidate) if version is not None]
        return {name: digest for version in used for name, digest in versions[version].files.items()}


class _NotBackError(OneTrunkError):
    """The server went away in the middle of a switch, and has not come back."""


def clear_ended_candidates(repository: Path, state: RepositoryState) -> list[str]:
    """Remove the folders of candidates' ensembles that are over, and return their names.

    The server must have unloaded them: a model whose folder is gone is still served, but no longer listed.
    """
    names = [candidate_ensemble(task) for task in sorted(state.heads) if task not in state.candidates]
    ended = [name for name in names if (repository / name).is_dir()]
    if ended:
        with Transaction(repository) as transaction:
            transaction.commit(ended, loadable=True)
    return ended
