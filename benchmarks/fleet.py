"""Rolls heads out to several servers under load, while replicas are killed or stopped, and checks every answer.

    python -m benchmarks.fleet --output docs/results/fleet

Three servers read one repository of shipped heads on the loopback. Twelve clients ask them in turn, through the client
that balances its requests, two texts at a time. Every answer of the task that changes must be one version's, by the
scores that torch gives, and those of the other task must not change. Then heads are rolled out and back: undisturbed;
with a replica that is killed in each step of a rollout in turn; and with one that is stopped for some seconds. They
were exported before, so that the machine has time for the servers: a rollout loads, proves and switches.

The *split* of a change is the time in which two versions answered: from the end of the first request that was answered
by the new version to the start of the last one that was answered by the old.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.summary_file import set_figures
from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.deploy import Deployer
from onetrunk.deploy.artifacts import reference_answers
from onetrunk.deploy.fleet import FleetError
from onetrunk.export.batches import parity_texts
from onetrunk.export.onnx_file import ServedHead
from onetrunk.export.parity import HeadFile
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import head_name
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server

SERVERS, CLIENTS, TOLERANCE = 3, 12, 2e-4
# The task that changes, and another that must not.
CHANGED, OTHER = "sst2", "cola"
VERSIONS = 2  # different heads to roll out, one after the other
STEPS = ("load", "prove", "switch", "ask again")
SWITCHING = STEPS[2:]
STOP_S = 4.0
# Between two requests of one client, so that the machine has time for the servers.
PAUSE_S = 0.5
ROWS = [text for text, pair in parity_texts() if not pair and 10 < len(text) < 160][:8]

References = dict[str, Any]
"""Version -> the probability of the first label. *Shape:* (rows,)"""


@dataclass
class Seen:
    """What one client saw.

    Attributes:
        requests: How many requests it sent.
        failed: Message -> how many of them failed by it.
        wrong: Task -> answers that are no version's.
        answers: (start, end, version) of each request that the changing task answered.
    """

    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[float, float, str]] = field(default_factory=list)


@dataclass
class Change:
    """A rollout or rollback that ended.

    Attributes:
        old: The version before.
        new: The version after; the one before if it was taken back.
        began: When it began.
        ended: When it had ended.
        fault: What was done to a replica meanwhile; empty for nothing.
    """

    old: str
    new: str
    began: float
    ended: float
    fault: str = ""


def ask_for_ever(addresses: list[str], references: Mapping[str, References], stop: Any, seed: int, seen: Seen) -> None:
    """Be one client: a closed loop with a pause."""
    generator = random.Random(seed)
    with Client(addresses) as client:
        while not stop.is_set():
            rows = generator.sample(range(len(ROWS)), 2)
            tasks = [CHANGED, OTHER][: generator.randint(1, 2)]
            began = time.monotonic()
            seen.requests += 1
            try:
                answers = client.predict([ROWS[row] for row in rows], tasks=tasks)
            except OneTrunkError as error:
                seen.failed[str(error)[:200]] += 1
                continue
            ended = time.monotonic()
            for task in tasks:
                found = [first_probability(answer[task].scores) for answer in answers]
                version = version_of(found, references[task], rows)
                if version is None:
                    seen.wrong[task] += 1
                elif task == CHANGED:
                    seen.answers.append((began, ended, version))
            stop.wait(PAUSE_S)


def first_probability(scores: Mapping[str, float]) -> float:
    """Return the probability of the label that is the first in alphabetical order."""
    return scores[min(scores)]


def version_of(found: list[float], references: References, rows: list[int]) -> str | None:
    """Return the version whose scores these are; None if they are no version's."""
    distances = {name: float(np.abs(scores[rows] - found).max()) for name, scores in references.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] <= TOLERANCE else None


def clients(addresses: list[str], references: Mapping[str, References], stop: Any, results: Any) -> None:
    """Be the process of all clients."""
    seen = [Seen() for _ in range(CLIENTS)]
    threads = [
        threading.Thread(target=ask_for_ever, args=(addresses, references, stop, number, one))
        for number, one in enumerate(seen)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(seen)


def make_bundles(trunk: Trunk, heads: Path, folder: Path) -> tuple[list[Path], dict[str, References]]:
    """Make heads to roll out, which answer differently; return them, and what every version of a task answers."""
    rows = [(text, "") for text in ROWS]

    def reference(path: Path) -> Any:
        bundle = load_bundle(path, any_folder=True)
        module = ServedHead(bundle.head(trunk), bundle.spec)
        scores = reference_answers(trunk, HeadFile(head_name(bundle.spec.task), path, bundle.spec, module), rows, 128)
        labels = bundle.spec.labels or ()
        return scores[:, labels.index(min(labels))]

    references = {task: {"1": reference(heads / task)} for task in (CHANGED, OTHER)}
    bundles = []
    for number in range(VERSIONS):
        source = load_bundle(heads / CHANGED)
        head = source.head(trunk)
        with torch.no_grad():
            head.output.bias[0] += 0.4 * (number + 1)
        bundles.append(folder / f"bundle_{number}")
        save_bundle(bundles[-1], source.spec, head)
        references[CHANGED][str(number + 2)] = reference(bundles[-1])
    return bundles, references


class Fleet:
    """The servers, and what can be done to one of them while a step is carried out on it."""

    def __init__(self, repository: Path, key: str) -> None:
        self.repository = repository
        self.servers = [
            Server(repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=key) for _ in range(SERVERS)
        ]

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            for server in self.servers:
                stack.callback(server.stop)
            for server in self.servers:
                server.start()
            with ThreadPoolExecutor(SERVERS) as pool:
                list(pool.map(lambda server: server.wait_ready(300), self.servers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def addresses(self) -> list[str]:
        """The servers' addresses."""
        return [server.grpc_url for server in self.servers]

    @contextmanager
    def fault(self, deployer: Deployer, step: str, number: int, act: Callable[[int], None]) -> Iterator[None]:
        """Do something to the Triton of one server when a step begins on it."""
        victim, original = self.servers[number], deployer.fleet.each

        def each(doing: str, action: Callable[[AdminClient], Any], *rest: Any) -> Any:
            def disturbed(server: AdminClient) -> Any:
                if doing == step and server.url == victim.grpc_url and victim.pid is not None:
                    act(victim.pid)
                return action(server)

            return original(doing, disturbed, *rest)

        deployer.fleet.each = each  # type: ignore[method-assign]
        try:
            yield
        finally:
            deployer.fleet.each = original  # type: ignore[method-assign]

    def wait_until_all_answer(self, timeout_s: float = 180.0) -> None:
        """Wait for a server that is being restarted."""
        end = time.monotonic() + timeout_s
        for address in self.addresses:
            with Client(address, retries=0) as client:
                while True:
                    try:
                        client.predict(ROWS[0], tasks=[CHANGED])
                        break
                    except OneTrunkError:
                        if time.monotonic() > end:
                            raise
                        time.sleep(0.2)


def kill(process: int) -> None:
    """Kill a process as a machine that loses its power does."""
    os.kill(process, signal.SIGKILL)


def pause(process: int) -> None:
    """Stop a process for some seconds."""
    os.kill(process, signal.SIGSTOP)
    threading.Timer(STOP_S, go_on, (process,)).start()


def go_on(process: int) -> None:
    """Let a stopped process go on, if the watchdog has not replaced it."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


class Rollouts:
    """Changes the fleet, and notes what happened when."""

    def __init__(self, fleet: Fleet, deployer: Deployer, bundles: list[Path]) -> None:
        self._fleet, self._deployer, self._bundles = fleet, deployer, bundles
        self.changes: list[Change] = []
        self.killed = self.taken_back = 0
        self._turn = 0

    def undisturbed(self) -> None:
        """Roll a head out, and back."""
        self._roll_out()
        self._roll_back()

    def with_fault(self, step: str, number: int, act: Callable[[int], None]) -> None:
        """Roll a head out while something happens to a server in a step, and back."""
        self.killed += act is kill
        with self._fleet.fault(self._deployer, step, number, act):
            self._roll_out(f"{act.__name__} while it should {step}")
        self._fleet.wait_until_all_answer()
        self._deployer.sync()
        if self.changes[-1].old != self.changes[-1].new:
            self._roll_back()

    def _roll_out(self, fault: str = "") -> None:
        number, self._turn = self._turn % len(self._bundles), self._turn + 1
        new, began = str(number + 2), time.monotonic()
        try:
            seconds = self._deployer.deploy(self._bundles[number]).seconds
        except FleetError as error:
            if not fault:
                raise
            click.echo(f"taken back: {error}", err=True)
            self.taken_back += 1
            new, seconds = "1", {}
        self._note("1", new, began, fault, seconds)

    def _roll_back(self) -> None:
        old, began = self.changes[-1].new, time.monotonic()
        self._note(old, "1", began, "", self._deployer.rollback(CHANGED, 1).seconds)

    def _note(self, old: str, new: str, began: float, fault: str, seconds: Mapping[str, float]) -> None:
        self.changes.append(Change(old, new, began, time.monotonic(), fault))
        click.echo(f"{old} -> {new} {fault}: {dict(seconds)}", err=True)


def split_ms(change: Change, answers: list[tuple[float, float, str]]) -> float:
    """Return how long two versions answered, in milliseconds."""
    if change.old == change.new:
        return 0.0
    ends = [end for start, end, version in answers if version == change.new and end > change.began]
    starts = [start for start, end, version in answers if version == change.old and start < change.ended]
    return max(0.0, 1e3 * (max(starts) - min(ends))) if ends and starts else 0.0


def mixed_after(changes: list[Change], answers: list[tuple[float, float, str]]) -> int:
    """Return how many requests that began after a change had ended, and ended before the next, had another version."""
    found = 0
    for change, following in zip(changes, [*changes[1:], None], strict=True):
        until = following.began if following is not None else float("inf")
        quiet = [version for start, end, version in answers if start > change.ended and end < until]
        found += sum(version != change.new for version in quiet)
    return found


def report(rollouts: Rollouts, seen: list[Seen], problems: list[str], equal: bool) -> dict[str, Any]:
    """Return the keys of the summary that this part of it has."""
    answers = sorted(answer for one in seen for answer in one.answers)
    changes = rollouts.changes
    calm = [split_ms(change, answers) for change in changes if not change.fault]
    disturbed = {change.fault: round(split_ms(change, answers), 1) for change in changes if change.fault}
    failed: Counter[str] = Counter()
    for one in seen:
        failed.update(one.failed)
    for message, count in failed.items():
        click.echo(f"failed {count} times: {message}", err=True)
    return {
        "servers": SERVERS,
        "clients": CLIENTS,
        "requests": sum(one.requests for one in seen),
        "failed": sum(failed.values()),
        "wrong_answers": sum(sum(one.wrong.values()) for one in seen),
        "rollouts": sum(change.old == "1" and change.new != "1" for change in changes),
        "rollbacks": sum(change.old != "1" for change in changes),
        "rollouts_taken_back": rollouts.taken_back,
        "replicas_killed": rollouts.killed,
        "split_window_ms": round(max(calm), 1),
        "split_window_median_ms": round(float(np.median(calm)), 1),
        "split_window_with_faults_ms": disturbed,
        "mixed_after_the_switch": mixed_after(changes, answers),
        "replicas_equal_at_the_end": equal,
        "differences_at_the_end": problems,
    }


@click.command()
@click.option("--heads", type=click.Path(path_type=Path), default="heads", show_default=True)
@click.option("--rounds", default=17, show_default=True, help="Undisturbed rollouts, each with its rollback.")
@click.option("--output", type=click.Path(path_type=Path), default="docs/results/fleet", show_default=True)
def main(heads: Path, rounds: int, output: Path) -> None:
    """Roll heads out and back under load, with and without faults, and write what the clients saw."""
    work = Path(tempfile.mkdtemp(prefix="onetrunk-fleet-"))
    try:
        keys = run(work, heads, rounds)
    finally:
        shutil.rmtree(work)
    set_figures(output / "summary.json", keys)
    click.echo(json.dumps(keys, indent=2))
    sys.exit(bool(keys["failed"] or keys["wrong_answers"] or keys["mixed_after_the_switch"]))


def run(work: Path, heads: Path, rounds: int) -> dict[str, Any]:
    """Do everything in a folder."""
    key = secrets.token_hex(16)
    began = time.monotonic()
    trunk = load_trunk()
    for task in (CHANGED, OTHER):
        shutil.copytree(heads / task, work / "heads" / task)
    repository = work / "model_repository"
    build_repository(BuildRequest(output=repository, heads=work / "heads"))
    bundles, references = make_bundles(trunk, work / "heads", work)
    with Deployer(repository, url=None) as deployer:
        for bundle in bundles:
            deployer.deploy(bundle)
        deployer.rollback(CHANGED, 1)
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    with Fleet(repository, key) as fleet:
        click.echo(f"{SERVERS} servers after {time.monotonic() - began:.0f} s", err=True)
        process = context.Process(target=clients, args=(fleet.addresses, references, stop, results))
        process.start()
        with Deployer(repository, servers=",".join(fleet.addresses), admin_key=key) as deployer:
            rollouts = Rollouts(fleet, deployer, bundles)
            for _ in range(rounds):
                rollouts.undisturbed()
            for number, step in enumerate(STEPS):
                rollouts.with_fault(step, number % SERVERS, kill)
            for step in ("load", "switch"):
                rollouts.with_fault(step, 1, pause)
            time.sleep(2)
            stop.set()
            seen = results.get(timeout=120)
            process.join()
            replicas, problems = deployer.replicas(), deployer.verify()
    equal = len({tuple(sorted((one.serves or {}).items())) for one in replicas}) == 1
    return report(rollouts, seen, problems, equal) | {"seconds": round(time.monotonic() - began)}


if __name__ == "__main__":
    main()
