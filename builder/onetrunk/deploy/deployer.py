"""`Deployer`: every change of a served repository, from Python."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onetrunk.admin import AdminClient
from onetrunk.deploy.change import Change, carry_out, clear_candidates
from onetrunk.deploy.history import History
from onetrunk.deploy.listing import ListedTask, list_tasks
from onetrunk.deploy.report import DeploymentReport, dry_run
from onetrunk.deploy.synchrony import synchronise
from onetrunk.deploy.transitions import (
    check_meaning,
    cut_for,
    earlier_version,
    known_head,
    pruned,
    served_now,
    tried_head,
    with_version,
)
from onetrunk.deploy.verification import verify
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import Manifest
from onetrunk.protocol.names import ADMIN_KEY_VARIABLE, TOKENIZER, head_name
from onetrunk.repository.configs import pinned_version
from onetrunk.repository.contents import Contents, HeadState
from onetrunk.repository.gate_settings import DEFAULT_WISH, GateWish
from onetrunk.repository.publication import finish_earlier, locked
from onetrunk.repository.publishing import publish
from onetrunk.repository.standing import Standing, changed_texts, read_standing, required_manifest
from onetrunk.repository.versions import PlannedModel, is_whole, plan_model, segment_source

if TYPE_CHECKING:
    from onetrunk.deploy.comparison import Comparison
    from onetrunk.nn.trunk import Trunk
    from onetrunk.repository.plan import HeadSource


class Deployer:
    """Changes what a repository and the server on it serve.

    Example:
        >>> with Deployer(Path("model_repository"), url="127.0.0.1:8001") as deployer:  # doctest: +SKIP
        ...     deployer.deploy(Path("heads/rte"))
        ...     deployer.rollback("rte")

    Every method holds the repository while it works. One that fails leaves what was served, or says what is.
    """

    def __init__(
        self,
        repository: Path,
        *,
        url: str | None = "127.0.0.1:8001",
        trunk: str | Path | None = None,
        admin_key: str | None = None,
        wait_s: float = 0.0,
        gate: GateWish = DEFAULT_WISH,
        progress: ProgressCallback = silent,
    ) -> None:
        """Says where; touches nothing.

        Args:
            repository: the repository's folder, as the server sees it.
            url: host and port of the server's gRPC endpoint; None changes the files only.
            trunk: see onetrunk.nn.trunk.load_trunk.
            admin_key: what the server's model-control endpoints ask for; by default the environment's
                ``ONETRUNK_ADMIN_KEY``.
            wait_s: seconds to wait for another deployment or build to end, before it is refused.
            gate: how a head is judged where the repository is of a reduced precision; by default as its build judged.
            progress: see ProgressCallback.

        Raises:
            UserError: the url names a protocol.
        """
        self.repository = repository
        self.history = History(repository)
        self.server = AdminClient(url, admin_key or os.environ.get(ADMIN_KEY_VARIABLE)) if url else None
        self._trunk_source = trunk
        self._trunk: Trunk | None = None
        self._wait_s = wait_s
        self._gate = gate
        self._progress = progress

    def __enter__(self) -> Deployer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.server is not None:
            self.server.close()

    def deploy(self, folder: Path, *, only_try: bool = False) -> DeploymentReport:
        """Adds a head, or brings the task's next version in and serves it; the version before stays loaded.

        Args:
            folder: a bundle, or a head that was exported elsewhere; its name need not be the task's.
            only_try: say what would be done.

        Raises:
            UserError: the head is broken, for another trunk, or means something else than the one that is served.
            OneTrunkError: an export, a check or the server failed.
        """
        return self._bring(folder, "deploy", only_try)

    def candidate(self, folder: Path, *, only_try: bool = False) -> DeploymentReport:
        """Serves a head beside the live one, by the ensemble ``candidate_<task>``. As deploy otherwise."""
        return self._bring(folder, "candidate", only_try)

    def promote(self, task: str | None = None, *, only_try: bool = False) -> DeploymentReport:
        """Makes a candidate live. None for the only one there is."""

        def change(standing: Standing) -> Change:
            name, head, version = tried_head(standing.contents, task)
            after = served_now(replace(head, candidate=None), version)
            return self._recut(standing, name, after)

        return self._change("promote", change, only_try)

    def discard(self, task: str | None = None, *, only_try: bool = False) -> DeploymentReport:
        """Ends the trial of a candidate. Its version stays on disk until it is pruned."""

        def change(standing: Standing) -> Change:
            name, head, _ = tried_head(standing.contents, task)
            return self._recut(standing, name, replace(head, candidate=None).at_rest())

        return self._change("discard", change, only_try)

    def rollback(self, task: str, to: int | None = None, *, only_try: bool = False) -> DeploymentReport:
        """Serves an earlier version again, or a task that was removed.

        Args:
            task: the task.
            to: the version; by default the one that was served before, or of a removed task the newest.
            only_try: say what would be done.

        Raises:
            UserError: there is no such version, or its files are not whole.
        """

        def change(standing: Standing) -> Change:
            head = known_head(standing.contents, task)
            version = earlier_version(head, task) if to is None else to
            if version == head.served:
                return self._recut(standing, task, head)  # nothing changes, the version before stays loaded
            self._check_version(standing, task, head, version)
            return self._recut(standing, task, served_now(head, version))

        return self._change("rollback", change, only_try)

    def remove(self, task: str, *, only_try: bool = False) -> DeploymentReport:
        """Takes a task out of the ensembles. Its files stay until they are pruned: ``rollback`` brings it back.

        Raises:
            UserError: it is not served, is the last one, or has a candidate.
        """

        def change(standing: Standing) -> Change:
            head = known_head(standing.contents, task)
            if head.served is None:
                raise UserError(f"task {task} is not served: it was removed before")
            if head.candidate is not None:
                raise UserError(f"task {task} has a candidate that is being tried: --discard or --promote it first")
            if standing.contents.tasks == (task,):
                raise UserError(f"task {task} is the only one that is served: stop the server instead")
            return self._recut(standing, task, replace(head, served=None, previous=head.served, loaded=()))

        return self._change("remove", change, only_try)

    def prune(self, keep: int = 2, *, only_try: bool = False) -> DeploymentReport:
        """Deletes old versions: of each head but the newest ``keep`` and what is served or tried, and models of no use.

        Raises:
            UserError: ``keep`` is less than 1.
        """
        if keep < 1:
            raise UserError(f"--keep {keep}: at least 1, the version that is served")
        began = time.monotonic()
        with self._held(only_try) as (standing, settled):
            after, removed = pruned(standing, keep)
            if removed and not only_try:
                with self._logged("prune", "", None, None):
                    # The server lets go of a version before its folder goes.
                    stands, _ = publish(after, self.repository, standing.manifest)
                    if self.server is not None:
                        synchronise(after, self.server)
                    publish(after, self.repository, stands, removed)
        seconds = {"all": time.monotonic() - began}
        return DeploymentReport(
            "prune", "", removed=tuple(removed), settled=settled, seconds=seconds, changed=bool(removed)
        )

    def compare(self, texts: Path, task: str | None = None) -> Comparison:
        """Asks a candidate and the live head about the same texts; see onetrunk.deploy.comparison.compare.

        Args:
            texts: a file of texts, labelled or not.
            task: whose candidate; None for the only one there is.

        Raises:
            UserError: there is no candidate or no server, or the file is wrong.
        """
        from onetrunk.deploy.comparison import compare

        if self.server is None:
            raise UserError("--compare asks a server: leave --offline out")
        with self._held(False) as (standing, _):
            contents = standing.contents
        # Not held any longer: others may deploy while texts are asked about.
        tokenizer = self.repository / TOKENIZER / str(pinned_version(contents.tokenizer)) / "tokenizer.json"
        return compare(contents, self.server, tried_head(contents, task)[0], texts, tokenizer, self._progress)

    def verify(self) -> list[str]:
        """What of manifest, disk and server does not agree; empty where all does."""
        return verify(self.repository, self.server)

    def tasks(self) -> list[ListedTask]:
        """What is deployed, a row a task."""
        return list_tasks(self.repository)

    def sync(self) -> DeploymentReport:
        """Makes the server serve what the files say, as after a build-repo."""
        if self.server is None:
            raise UserError("--sync is about a server: leave --offline out")
        began = time.monotonic()
        with self._held(False) as (_, settled):
            seconds = {"all": time.monotonic() - began}
            return DeploymentReport("sync", "", settled=settled, seconds=seconds, changed=bool(settled))

    def _bring(self, folder: Path, action: str, only_try: bool) -> DeploymentReport:
        def change(standing: Standing) -> Change:
            from onetrunk.repository.plan import head_source, load_head, numbers_of

            source = load_head(folder, self._load_trunk(standing.contents), any_folder=True)
            task = source.spec.task
            head = standing.contents.heads.get(task, HeadState({}, None, ()))
            check_meaning(str(folder), source.spec, head)
            if self._gate.max_loss is not None and not standing.contents.precision.is_reduced:
                raise UserError(f"--max-loss: {self.repository} is of fp32, by which nothing is lost: leave it out")
            numbers = numbers_of(source, standing.contents.precision)
            origin = head_source(source, numbers)
            model = plan_model(self.repository, head_name(task), origin, standing.manifest, numbers)
            after = with_version(task, head, model.version, source.spec, action, numbers)
            return self._recut(standing, task, after, source, model)

        return self._change(action, change, only_try)

    def _change(self, action: str, make: Callable[[Standing], Change], only_try: bool) -> DeploymentReport:
        began = time.monotonic()
        with self._held(only_try) as (standing, settled):
            change = make(standing)
            old = change.before.heads.get(change.task)
            new = change.after.heads[change.task]
            report = DeploymentReport(
                action,
                change.task,
                from_version=(old.candidate if action == "discard" else old.served) if old else None,
                to_version=new.candidate if action == "candidate" else new.served,
                settled=settled,
                notes=standing.notes,
                changed=bool(change.texts(self.repository) or change.gone or old != new),
            )
            if only_try:
                return dry_run(change, self.repository, report)
            if not report.changed:
                return replace(report, seconds={"all": time.monotonic() - began})
            with self._logged(action, change.task, report.from_version, report.to_version) as result:
                outcome = carry_out(change, self.repository, standing.manifest, self.server, self._progress)
                result["hashes"] = _hashes(required_manifest(self.repository), change)
                seconds = {**outcome.seconds, "all": round(time.monotonic() - began, 3)}
                result["seconds"] = seconds["all"]
            return replace(
                report,
                written=tuple(dict.fromkeys(outcome.written)),
                removed=tuple(change.gone),
                seconds=seconds,
                notes=(*standing.notes, *change.notes),
            )

    @contextlib.contextmanager
    def _held(self, only_try: bool) -> Iterator[tuple[Standing, tuple[str, ...]]]:
        """Holds the repository, with files and server agreeing; gives what stands, and what had to be settled first."""
        if only_try:
            yield read_standing(self.repository), ()
            return
        required_manifest(self.repository)  # before a folder is made for the lock
        with locked(self.repository, wait_s=self._wait_s):
            standing, settled = self._settle()
            if settled:
                self.history.add(action="settle", task="", result="done", settled=settled)
            yield standing, tuple(settled)

    def _settle(self) -> tuple[Standing, list[str]]:
        """Finishes what an earlier deployment, or a build, left undone; gives what stands then, and what it was."""
        settled = ["completed a publication that had been cut off"] if finish_earlier(self.repository) else []
        standing = read_standing(self.repository)
        contents = standing.contents
        for task, head in contents.heads.items():
            if head.loaded != head.at_rest().loaded:
                contents = contents.with_head(task, head.at_rest())
                settled.append(f"{head_name(task)}: a version was brought in and never served; not loaded any more")
        changed = changed_texts(self.repository, contents)
        if changed:
            settled += [f"{name}: was not as it follows from the manifest; written anew" for name in changed]
        if changed or contents != standing.contents:
            manifest, _ = publish(contents, self.repository, standing.manifest)
            standing = replace(standing, manifest=manifest, contents=contents)
        if self.server is not None:
            settled += [f"{change.model} {change.what}: put right" for change in synchronise(contents, self.server)]
        settled += [f"{name}/: its trial has ended; removed" for name in clear_candidates(self.repository, contents)]
        return standing, settled

    @contextlib.contextmanager
    def _logged(self, action: str, task: str, old: int | None, new: int | None) -> Iterator[dict[str, object]]:
        """Writes down that a deployment begins, and how it ended."""
        number = f"{time.time_ns():x}"
        fields = {"id": number, "action": action, "task": task, "from": old, "to": new}
        self.history.add(**fields, result="begun")
        result: dict[str, object] = {}
        try:
            yield result
        except BaseException as error:
            with contextlib.suppress(OneTrunkError):
                self.history.add(**fields, result="failed", reason=str(error) or type(error).__name__)
            raise
        self.history.add(**fields, result="done", **result)

    def _load_trunk(self, contents: Contents) -> Trunk:
        if self._trunk is None:
            from onetrunk.nn.trunk import load_trunk

            self._progress("loading the trunk", 0, 4)
            self._trunk = load_trunk(self._trunk_source)
        if self._trunk.identity != contents.trunk:
            raise UserError(
                f"{self.repository} stands on trunk {contents.trunk}, but this trunk is {self._trunk.identity}: "
                "give its own by --trunk"
            )
        return self._trunk

    def _check_version(self, standing: Standing, task: str, head: HeadState, version: int) -> None:
        if version == head.candidate:
            raise UserError(f"version {version} of {task} is the candidate: --promote makes it live")
        if version not in head.specs:
            known = ", ".join(map(str, sorted(head.specs)))
            raise UserError(f"task {task} has no version {version} on disk; there are: {known}")
        check_meaning(f"version {version}", head.specs[version], head)
        if not is_whole(self.repository, standing.manifest.models[head_name(task)], version):
            raise UserError(f"version {version} of {task} is not as it was written, and is not served again")

    def _recut(
        self,
        standing: Standing,
        task: str,
        head: HeadState,
        source: HeadSource | None = None,
        model: PlannedModel | None = None,
    ) -> Change:
        """The change to a head's new state, with a trunk cut so that every tap in use is an end of a segment."""
        after = standing.contents.with_head(task, head)
        if task in standing.contents.heads and standing.contents.heads[task].served != head.served:
            # What was measured is about another version, which may have other layers.
            after = replace(after, placement=after.placement.without(head_name(task)))
        arrivals = [] if model is None else [model]
        versions = {}
        for segment in cut_for(standing.contents.segments, after.taps):
            if segment in standing.contents.segments:
                versions[segment] = standing.contents.segments[segment]
            else:
                numbers = standing.contents.precision.of_segment(segment)
                origin = segment_source(segment, standing.contents.trunk, numbers)
                planned = plan_model(self.repository, segment.name, origin, standing.manifest, numbers)
                versions[segment] = planned.version
                arrivals.append(planned)
        after = replace(after, segments=versions)
        fresh = [planned for planned in arrivals if planned.fresh]
        if not fresh and source is None:
            return Change(task, standing.contents, after, tuple(arrivals))
        from onetrunk.deploy.making import Making

        trunk = self._load_trunk(standing.contents)
        gate = self._gate.settle(standing.manifest.gate_rule)
        making = Making(self.repository, standing, after, trunk, tuple(arrivals), source, gate, self._progress)
        return Change(task, standing.contents, after, tuple(arrivals), making.write, making.expected, making.notes)


def _hashes(manifest: Manifest, change: Change) -> dict[str, str]:
    """The files by which the change's versions are known: path -> SHA-256."""
    head = change.after.heads[change.task]
    entry = manifest.models[head_name(change.task)]
    versions = [version for version in (head.served, head.candidate) if version is not None]
    return {name: digest for version in versions for name, digest in entry.versions[version].files.items()}
