"""Each process of a server killed or stopped in turn, while all tasks are asked: who notices, when, and who suffers."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from dataclasses import dataclass

import psutil
from rich.console import Console

from benchmarks.hostile.clients import GoodClient
from benchmarks.hostile.target import Target

# A client gives up on an answer after this time, and asks again after the pause.
PATIENCE_S, PAUSE_S = 3.0, 0.1
# A task is well once it has been answered for so long without a failure.
CALM_S = 3.0
LIMIT_S = 120.0
# What the log calls the processes that are no models.
WORDS = {"triton": ("Triton", "server"), "front": ("front",), "guard": ("Triton", "guard", "server")}

console = Console(stderr=True)


@dataclass
class Asked:
    """One request of a watcher: its task, when it began and ended, and what went wrong."""

    task: str
    began: float
    ended: float
    fault: str | None


class Watchers:
    """One client for each task, which asks for it again and again."""

    def __init__(self, ready: dict) -> None:
        self.tasks = sorted(ready["tasks"])
        self.asked: list[Asked] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(ready, task)) for task in self.tasks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop asking."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def outage(self, task: str, since: float) -> float | None:
        """Seconds from a moment to the first answer after the last failure; 0 without one, None while it lasts."""
        return outage([one for one in list(self.asked) if one.task == task], since)

    def failures(self, task: str, since: float) -> int:
        """The requests for a task that failed since a moment."""
        return sum(one.task == task and one.fault is not None and one.ended >= since for one in list(self.asked))

    def calm(self, since: float) -> bool:
        """Whether every task has been answered for a while, and nothing has failed meanwhile."""
        now = time.monotonic()
        recent = [one for one in list(self.asked) if one.ended >= max(since, now - CALM_S)]
        answered = {one.task for one in recent if one.fault is None and one.began >= since}
        return now - since > CALM_S and answered == set(self.tasks) and all(one.fault is None for one in recent)

    def _run(self, ready: dict, task: str) -> None:
        client = GoodClient(ready, 0)
        while not self._stop.is_set():
            began, fault = time.monotonic(), None
            try:
                client.ask([0], [task], PATIENCE_S)
            except Exception as error:
                fault = str(error)[:200]
            self.asked.append(Asked(task, began, time.monotonic(), fault))
            self._stop.wait(PAUSE_S)


def outage(asked: list[Asked], since: float) -> float | None:
    """Seconds from a moment to the end of the first answer after the last failure, of one task's requests.

    Returns:
        0 if nothing failed, None if no answer has come since the last failure.
    """
    failures = [one.ended for one in asked if one.fault is not None and one.ended >= since]
    if not failures:
        return 0.0
    answers = [one.ended for one in asked if one.fault is None and one.began >= failures[-1]]
    return round(answers[0] - since, 2) if answers else None


def served_by(role: str, tasks: dict) -> set[str]:
    """The tasks that cannot be answered without a process."""
    if role.startswith("head_"):
        return {role.removeprefix("head_")}
    if match := re.fullmatch(r"trunk_(\d\d)_(\d\d)", role):
        return {task for task, info in tasks.items() if info["tap"] > int(match[1])}
    return set(tasks)


def one_fault(target: Target, watchers: Watchers, role: str, number: signal.Signals) -> dict:
    """Send a signal to a process, and wait until all tasks are well again."""
    process = target.processes()[role]
    since = time.monotonic()
    process.send_signal(number)
    while not watchers.calm(since) and time.monotonic() - since < LIMIT_S and target.exit_status is None:
        time.sleep(0.1)
    # A stopped process that nobody needs must not stay so.
    with contextlib.suppress(psutil.Error):
        if process.status() == psutil.STATUS_STOPPED:
            process.send_signal(signal.SIGCONT)
    affected = served_by(role, target.ready["tasks"])
    noticed = target.first_said(WORDS.get(role, (role,)), since)
    outages = {task: watchers.outage(task, since) for task in watchers.tasks}
    neighbours = [task for task in watchers.tasks if task not in affected]
    return {
        "noticed_s": None if noticed is None else round(noticed - since, 2),
        "outage_s": max((outages[task] if outages[task] is not None else LIMIT_S for task in affected), default=0.0),
        "outages_s": {task: outages[task] for task in sorted(affected)},
        "neighbours_failed": sum(watchers.failures(task, since) for task in neighbours),
        "said": [line for moment, line in target.said if moment >= since][:6],
    }


def faults(target: Target, only: list[str] | None = None) -> dict:
    """kill -9 and SIGSTOP of each process in turn, apart from the launcher, without which there is no service."""
    watchers = Watchers(target.ready)
    found: dict = {}
    try:
        began = time.monotonic()
        while not watchers.calm(began):
            time.sleep(0.1)
        roles = sorted(set(target.processes()) - {"serve-repo"})
        for role in only or roles:
            for number in (signal.SIGKILL, signal.SIGSTOP):
                found[f"{number.name} {role}"] = one = one_fault(target, watchers, role, number)
                short = {name: one[name] for name in ("noticed_s", "outage_s", "neighbours_failed")}
                console.print(f"  {number.name} {role}: {short}", highlight=False)
                if target.exit_status is not None:
                    return found | {"ended": {"said": target.last_words()}}
    finally:
        watchers.stop()
    return found
