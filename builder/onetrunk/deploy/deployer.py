"""``Deployer``: every change of a served repository, from Python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onetrunk.admin import AdminClient
from onetrunk.deploy.change import Context
from onetrunk.deploy.fleet import STEP_TIMEOUT_S, Fleet, ReplicaAnswer, Servers, State
from onetrunk.deploy.history import History, ListedTask, list_tasks
from onetrunk.deploy.operations import (
    Candidate,
    Deploy,
    Discard,
    Operation,
    Promote,
    Prune,
    Remove,
    Rollback,
    find_candidate,
)
from onetrunk.deploy.reconcile import (
    ReplicaState,
    load_rewritten,
    reconcile,
    replica_state,
    server_state,
    silent_replica,
    verify,
)
from onetrunk.deploy.rollout import clear_ended_candidates
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.admin_key import read_admin_key
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.integrity import check_files
from onetrunk.protocol.names import ENSEMBLES, TOKENIZER, head_name
from onetrunk.protocol.signature import Signer, Verifier
from onetrunk.protocol.tls import Tls
from onetrunk.protocol.traffic_split import TrafficSplit
from onetrunk.repository.configs import pinned_version
from onetrunk.repository.gate_settings import NO_OVERRIDES, GateOverrides
from onetrunk.repository.state import RepositoryState, changed_texts, read_state, required_manifest
from onetrunk.repository.transaction import check_signer, commit_state, locked, recover, signed_by

if TYPE_CHECKING:
    from onetrunk.deploy.comparison import Comparison


@dataclass(frozen=True)
class DeploymentReport:
    """What a deployment did, or with a dry run would do.

    Attributes:
        action: deploy, candidate, promote, discard, rollback, remove, prune or sync.
        task: The task; empty if it is about the whole repository.
        from_version: The version that was served before, None if none was; for a discard, the candidate's.
        to_version: The version that is served now; for a candidate, the candidate's.
        written: The files that were written, below the repository.
        removed: The folders that were removed.
        diff: For a dry run, how configs and label files would change.
        settled: What an earlier deployment had left undone, and this one finished first.
        seconds: Step -> seconds; ``all`` is the total.
        changed: Whether anything was, or would be, changed.
        notes: Remarks on the head that was added, and on files that were left out.
        replicas: What became of each of several servers.
    """

    action: str
    task: str
    from_version: int | None = None
    to_version: int | None = None
    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    diff: str = ""
    settled: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    changed: bool = True
    notes: tuple[str, ...] = ()
    replicas: tuple[ReplicaAnswer, ...] = ()


class Deployer:
    """Changes what a repository and the servers on it serve.

    Every operation holds the repository while it runs, and first brings files and servers in line. One that fails
    leaves what was served, or says what is served. Of several servers, all are changed or none.

    Example:
        >>> with Deployer(Path("model_repository"), url="127.0.0.1:8001") as deployer:  # doctest: +SKIP
        ...     deployer.deploy(Path("heads/rte"))
        ...     deployer.rollback("rte")
    """

    def __init__(
        self,
        repository: Path,
        *,
        url: str | None = "127.0.0.1:8001",
        servers: str | None = None,
        replica_timeout_s: float = STEP_TIMEOUT_S,
        trunk: str | Path | None = None,
        limbs: Path | None = None,
        admin_key: str | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        wait_s: float = 0.0,
        gate: GateOverrides = NO_OVERRIDES,
        sign: Path | None = None,
        verify_key: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        """Note where to work; touch nothing.

        Args:
            repository: The repository's folder, as the server sees it.
            url: The host and port of the server's gRPC endpoint; None changes the files only.
            servers: Several servers in place of `url`: a list separated by commas, ``dns:NAME:PORT``, or ``@FILE``; see
                `onetrunk.deploy.fleet.Servers`.
            replica_timeout_s: How long one of several servers may take for one step.
            trunk: The trunk; see ``onetrunk.nn.trunk.load_trunk``.
            limbs: The folder of the limbs on which heads stand; see ``onetrunk.tasks.head_spec.limbs_of``.
            admin_key: The key of the server's model-control endpoints; by default as
                `onetrunk.protocol.admin_key.read_admin_key` finds it in the environment.
            tls: The client's side of TLS; None connects without.
            insecure: Whether to send the key to another machine without TLS.
            wait_s: The seconds to wait for another deployment or build to end.
            gate: How a head is judged if the repository has a reduced precision; by default as its build judged.
            sign: The file of the private key by which the manifest is signed after a change; None for no signature.
            verify_key: The file of the public key by which the manifest must be signed before a change, and by which
                files are compared with it; None for no check.
            progress: Called as work proceeds; see ``onetrunk.progress.ProgressCallback``.

        Raises:
            UserError: A key cannot be used; see also `onetrunk.admin.AdminClient` and
                `onetrunk.protocol.admin_key.read_admin_key`.
        """
        self.repository = repository
        self.history = History(repository)
        self._signer = None if sign is None else Signer(sign)
        self._verifier = None if verify_key is None else Verifier(verify_key)
        key = (admin_key or read_admin_key()) if url or servers else None

        def connect(address: str) -> AdminClient:
            return AdminClient(address, key, tls=tls, insecure=insecure)

        if servers is not None:
            found = Servers(servers)
            self.fleet = Fleet(found.addresses, connect, step_timeout_s=replica_timeout_s, progress=progress)
            self._lasting_addresses = not found.changes
        else:
            self.fleet = Fleet(lambda: (url,) if url else (), connect)
            self._lasting_addresses = False
        if servers is None or self._lasting_addresses:
            self.fleet.refresh()
        self._context = Context(repository, trunk, limbs, gate, progress)
        self._wait_s = wait_s

    def __enter__(self) -> Deployer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.fleet.close()

    @property
    def server(self) -> AdminClient | None:
        """The server, or the first of several; None if only the files are changed."""
        return self.fleet.first

    def run(self, operation: Operation, *, dry_run: bool = False) -> DeploymentReport:
        """Carry out an operation.

        Args:
            operation: The operation.
            dry_run: Whether to report what would be done and change nothing. The server is not asked.

        Raises:
            UserError: The operation is not possible, or a head cannot be used.
            OneTrunkError: An export, a check or the server failed.
        """
        began = time.monotonic()
        if not dry_run:
            check_signer(self._signer, self.repository)
        with self._held(dry_run) as (state, settled):
            change = operation.plan(state, self._context)
            report = DeploymentReport(
                operation.action,
                change.task,
                change.from_version,
                change.to_version,
                settled=settled,
                changed=change.is_needed(self.repository),
                notes=(*self._context.trunk_notes, *state.notes),
            )
            if dry_run:
                preview = change.preview(self.repository)
                return replace(report, written=preview.written, removed=preview.removed, diff=preview.diff)
            if not report.changed:
                seconds = {"all": time.monotonic() - began}
                return replace(report, seconds=seconds, replicas=self.fleet.answers())
            about = operation.about if isinstance(operation, Deploy | Candidate) else {}
            with self._logged(report, about) as result:
                outcome = change.apply(self.repository, self.fleet, self._context.progress)
                seconds = {**outcome.seconds, "all": round(time.monotonic() - began, 3)}
                if outcome.hashes:
                    result |= {"hashes": outcome.hashes, "seconds": seconds["all"]}
            return replace(
                report,
                written=tuple(outcome.written),
                removed=tuple(outcome.removed),
                seconds=seconds,
                notes=(*report.notes, *change.notes),
                replicas=self.fleet.answers(),
            )

    def deploy(self, folder: Path, *, dry_run: bool = False) -> DeploymentReport:
        """Add a task, or serve the next version of its head; see ``Deploy`` and ``run``."""
        return self.run(Deploy(folder), dry_run=dry_run)

    def candidate(self, folder: Path, split: TrafficSplit | None = None, *, dry_run: bool = False) -> DeploymentReport:
        """Serve a head beside the live one, for a share of its traffic in its place; see ``Candidate`` and ``run``."""
        return self.run(Candidate(folder, split), dry_run=dry_run)

    def promote(self, task: str | None = None, *, dry_run: bool = False) -> DeploymentReport:
        """Make a candidate live; see ``Promote`` and ``run``."""
        return self.run(Promote(task), dry_run=dry_run)

    def discard(self, task: str | None = None, *, dry_run: bool = False) -> DeploymentReport:
        """End the trial of a candidate; see ``Discard`` and ``run``."""
        return self.run(Discard(task), dry_run=dry_run)

    def rollback(self, task: str, to: int | None = None, *, dry_run: bool = False) -> DeploymentReport:
        """Serve an earlier version again, or a task that was removed; see ``Rollback`` and ``run``."""
        return self.run(Rollback(task, to), dry_run=dry_run)

    def remove(self, task: str, *, dry_run: bool = False) -> DeploymentReport:
        """Take a task out of the ensembles; see ``Remove`` and ``run``."""
        return self.run(Remove(task), dry_run=dry_run)

    def prune(self, keep: int = 2, *, dry_run: bool = False) -> DeploymentReport:
        """Delete old versions, and models that nothing uses; see ``Prune`` and ``run``."""
        return self.run(Prune(keep), dry_run=dry_run)

    def sync(self) -> DeploymentReport:
        """Make the server serve what the files say, as after a build.

        Every other operation does that first; this one does nothing else.

        Raises:
            UserError: There is no server, or no repository.
            OneTrunkError: The server cannot load something.
        """
        self._need_server("--sync is about a server: leave --offline out")
        began = time.monotonic()
        with self._held(False, unfailed="done") as (state, settled):
            self.fleet.each("load what was rewritten", lambda server: load_rewritten(state, server))
            seconds = {"all": time.monotonic() - began}
            replicas = self.fleet.answers()
            return DeploymentReport(
                "sync", "", settled=settled, seconds=seconds, changed=bool(settled), replicas=replicas
            )

    def compare(self, texts: Path, task: str | None = None) -> Comparison:
        """Ask a candidate and the live head about the same texts; see ``onetrunk.deploy.comparison.compare``.

        Args:
            texts: A file of texts, with or without labels.
            task: The candidate's task; None for the only candidate there is.

        Raises:
            UserError: There is no candidate or no server, or the file cannot be used.
            OneTrunkError: The server does not answer.
        """
        # Imported here: the other operations need no tokenizer.
        from onetrunk.deploy.comparison import compare

        self._need_server("--compare asks a server: leave --offline out")
        with self._held(False) as (state, _):
            task, _ = find_candidate(state, task)
        assert self.server is not None  # the first of several, which hold equal files
        # Released: others may deploy while texts are asked about.
        tokenizer = self.repository / TOKENIZER / str(pinned_version(state.tokenizer)) / "tokenizer.json"
        return compare(state, self.server, task, texts, tokenizer, self._context.progress)

    def verify(self) -> list[str]:
        """Return what manifest, disk and servers disagree on; see ``onetrunk.deploy.reconcile.verify``."""
        found = verify(self.repository, None if self.fleet.is_several else self.server)
        for replica in self.replicas():
            found += [f"{replica.address}: {line}" for line in replica.differences]
        try:
            self._check_signature()
        except UserError as error:
            found.append(str(error))
        return found

    def tasks(self) -> list[ListedTask]:
        """Return what is deployed, a row a task, with the drift of its answers where a server can tell it."""
        if not self.fleet and self.fleet.is_several:
            self.fleet.refresh()
        told = dict(self.fleet.look(lambda server: (server.url, server.trials()), lambda address, _: (address, {})))
        return list_tasks(self.repository, self.server.drifts() if self.server is not None else None, told)

    def replicas(self) -> tuple[ReplicaState, ...]:
        """Return what each of several servers serves; nothing for a single one.

        Raises:
            UserError: There is no repository, or it cannot be read.
            NotReady: ``dns:`` was given, and the name has no address.
        """
        if not self.fleet.is_several:
            return ()
        self.fleet.refresh()
        state = read_state(self.repository)
        return self.fleet.look(lambda server: replica_state(state, server), silent_replica)

    def single(self) -> ReplicaState | None:
        """Return what the single server serves; see `reconcile.server_state`. None for several, or none.

        Raises:
            UserError: There is no repository, or it cannot be read.
        """
        if self.fleet.is_several or self.server is None:
            return None
        return server_state(read_state(self.repository), self.server)

    def _need_server(self, otherwise: str) -> None:
        if not (self.fleet or self.fleet.is_several):
            raise UserError(otherwise)

    @contextlib.contextmanager
    def _held(self, dry_run: bool, unfailed: State = "back") -> Iterator[tuple[RepositoryState, tuple[str, ...]]]:
        """Hold the repository with files and server in line; yield its state, and what had to be settled first."""
        if dry_run:
            yield read_state(self.repository), ()
            return
        required_manifest(self.repository)  # before a folder is created for the lock
        with locked(self.repository, wait_s=self._wait_s), signed_by(self._signer):
            self._check_signature()
            self.fleet.begin(unfailed)
            self.fleet.refresh()
            unfinished = self._unfinished()
            state, settled = self._settle()
            settled = [*unfinished, *settled]
            if settled:
                self.history.add(action="settle", task="", result="done", settled=settled)
            yield state, tuple(settled)

    def _check_signature(self) -> None:
        """Check the manifest's signature, and files against it, if there is a key."""
        if self._verifier is not None:
            # A running server may have left byte code beside the files.
            check_files(self.repository, ENSEMBLES, self._verifier, alone=False)

    def _settle(self) -> tuple[RepositoryState, list[str]]:
        """Finish what an earlier deployment or a build left undone; return the state then, and what it was."""
        settled = ["completed a transaction that had been interrupted"] if recover(self.repository) else []
        read = state = read_state(self.repository)
        for task, head in state.heads.items():
            if head.loaded != head.at_rest().loaded:
                state = state.with_head(task, head.at_rest())
                settled.append(f"{head_name(task)}: unloaded a version that was added and never served")
        changed = changed_texts(self.repository, state.texts)
        settled += [f"{name}: rewritten, as it did not match the manifest" for name in changed]
        if changed or state != read:
            state, _ = commit_state(self.repository, state)
        for address, found in self.fleet.each("follow the files", lambda server: reconcile(state, server)).items():
            where = f"{address}: " if self.fleet.is_several else ""
            settled += [f"{where}{one.model} {one.what}: fixed" for one in found]
        settled += [
            f"{name}/: removed, as its trial has ended" for name in clear_ended_candidates(self.repository, state)
        ]
        return state, settled

    def _unfinished(self) -> list[str]:
        """Return what is to be told of a deployment that died: the replicas that it changed and this one cannot see."""
        last = self.history.unfinished()
        servers = last.get("servers") if last is not None and self.fleet.is_several else None
        if last is None or not isinstance(servers, list):
            return []
        known = {replica.url for replica in self.fleet.replicas}
        missing = [str(address) for address in servers if address not in known] if self._lasting_addresses else []
        cut_off = f"{last.get('action')} {last.get('task')}"
        told = [f"finished or took back {cut_off}, which was cut off at {last.get('time')}"]
        if missing:
            names = ", ".join(missing)
            told.append(f"{cut_off} was also for {names}, not among --servers now: what they serve is not known")
        return told

    @contextlib.contextmanager
    def _logged(self, report: DeploymentReport, about: Mapping[str, str]) -> Iterator[dict[str, object]]:
        """Log that a deployment begins, and how it ended; yield what is to be logged with its end."""
        number = f"{time.time_ns():x}"
        fields: dict[str, object] = {
            "id": number,
            "action": report.action,
            "task": report.task,
            "from": report.from_version,
            "to": report.to_version,
        }
        if about:
            fields["from_where"] = dict(about)
        if self.fleet.is_several:
            fields["servers"] = [replica.url for replica in self.fleet.replicas]
        self.history.add(**fields, result="begun")
        result: dict[str, object] = {}
        try:
            yield result
        except BaseException as error:
            with contextlib.suppress(OneTrunkError):
                self.history.add(**fields, result="failed", reason=str(error) or type(error).__name__)
            raise
        try:
            self.history.add(**fields, result="done", **result)
        except OneTrunkError as error:
            raise OneTrunkError(f"the change is made and served, but the log does not say so: {error}") from error
