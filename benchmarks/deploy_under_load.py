"""Changes a served repository again and again while eight clients ask it, and checks every answer. Prints Markdown.

    python benchmarks/deploy_under_load.py > docs/results/deploying.md

Every request is for two texts and a random subset of the tasks, and must be answered for both texts by one version of
each head: the one before or the one after, by the scores that torch gives for either. No request is tried again.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from onetrunk.admin import AdminClient
from onetrunk.deploy import Deployer
from onetrunk.deploy.artifacts import reference_answers
from onetrunk.export.batches import parity_texts
from onetrunk.export.onnx_file import ServedHead
from onetrunk.export.parity import HeadFile
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol.names import MULTITASK, head_name
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from onetrunk.tasks.head_spec import find_bundles

CLIENTS = 8
TOLERANCE = 1e-4
ROWS = [(text, pair) for text, pair in parity_texts() if len(text) + len(pair) < 200][:8]
EXTRA = "extra_{:02d}"


@dataclass
class Tally:
    """What the clients saw."""

    sent: int = 0
    failed: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    times: list = field(default_factory=list)  # (begin, seconds)
    seen: dict = field(default_factory=lambda: defaultdict(Counter))  # task -> version by its scores -> answers
    largest: float = 0.0


def distance(scores, reference):
    """The greatest difference of a number; of answers for each token, over the tokens that both have."""
    width = min(scores.shape[1], reference.shape[1])
    return float(np.abs(scores[:, :width] - reference[:, :width]).max())


def ask_for_ever(url, references, tasks, stop, results, seed):
    """One client: closed loop, no retries."""
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    generator, tally = random.Random(seed), Tally()
    client = InferenceServerClient(url)
    while not stop.is_set():
        rows = generator.sample(range(len(ROWS)), 2)
        known = list(tasks)
        wanted = generator.sample(known, generator.randint(1, min(4, len(known))))
        inputs = []
        for name, texts in (("text", [ROWS[row][0] for row in rows]), ("text_pair", [ROWS[row][1] for row in rows])):
            tensor = InferInput(name, [2, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=np.object_))
            inputs.append(tensor)
        tally.sent += 1
        began = time.monotonic()
        try:
            answer = client.infer(MULTITASK, inputs, outputs=[InferRequestedOutput(task) for task in wanted])
        except Exception as error:
            tally.failed[str(error)[:200]] += 1
            continue
        tally.times.append((began, time.monotonic() - began))
        for task in wanted:
            scores = answer.as_numpy(task)
            distances = {v: distance(scores, reference[rows]) for v, reference in references[task].items()}
            version = min(distances, key=distances.get)
            if distances[version] <= TOLERANCE:
                tally.seen[task][version] += 1
                tally.largest = max(tally.largest, distances[version])
            else:
                tally.wrong[task] += 1
    results.put((tally.sent, tally.failed, tally.wrong, tally.times, dict(tally.seen), tally.largest))


def clients(url, references, tasks, stop, results):
    """The process of all clients."""
    threads = [
        threading.Thread(target=ask_for_ever, args=(url, references, tasks, stop, results, seed))
        for seed in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def variants(trunk, heads, folder, updates, additions):
    """Bundles to deploy: versions of one task that answer otherwise, and new tasks. Gives their references too."""
    references, bundles = {}, {}

    def reference(path):
        bundle = load_bundle(path, any_folder=True)
        module = ServedHead(bundle.head(trunk), bundle.spec)
        task = HeadFile(head_name(bundle.spec.task), path, bundle.spec, module)
        return reference_answers(trunk, task, ROWS, 128)

    def changed(source, path, task, shift):
        bundle = load_bundle(source)
        head = bundle.head(trunk)
        with torch.no_grad():
            head.output.bias[0] += shift
        save_bundle(path, bundle.spec.model_copy(update={"task": task}), head)

    for path in find_bundles(heads):
        references[path.name] = {"old": reference(path)}
    for number in range(updates):
        path = folder / f"update_{number}"
        changed(heads / "rte", path, "rte", 0.4 + 0.15 * number)
        references["rte"][f"update {number}"] = reference(path)
        bundles["rte", number] = path
    for number in range(additions):
        task = EXTRA.format(number)
        changed(heads / "sst2", folder / task, task, 0.1 * (number + 1))
        references[task] = {"new": reference(folder / task)}
        bundles[task, 0] = folder / task
    return references, bundles


@click.command()
@click.option("--heads", type=click.Path(path_type=Path), default="heads", show_default=True)
@click.option("--additions", default=20, show_default=True)
@click.option("--updates", default=20, show_default=True)
@click.option("--rollbacks", default=20, show_default=True)
@click.option("--removals", default=5, show_default=True)
def main(heads: Path, additions: int, updates: int, rollbacks: int, removals: int) -> None:
    """Adds, updates, rolls back and removes heads under load, and says what the clients saw."""
    key = os.environ["ONETRUNK_ADMIN_KEY"] = secrets.token_hex(16)
    work = Path(tempfile.mkdtemp(prefix="onetrunk-deploy-"))
    try:
        run(work, key, heads, additions, updates, rollbacks, removals)
    finally:
        shutil.rmtree(work)


def run(work: Path, key: str, heads: Path, additions: int, updates: int, rollbacks: int, removals: int) -> None:
    """Everything, in a folder of its own."""
    trunk = load_trunk()
    repository = work / "model_repository"
    build_repository(BuildRequest(output=repository, heads=heads))
    references, bundles = variants(trunk, heads, work, max(updates, 7), additions)
    spans, seconds = [], defaultdict(list)
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        Server(repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=key) as server,
        Deployer(repository, url=server.grpc_url) as deployer,
    ):
        first = first_answers(server.grpc_url, repository, deployer, bundles, references)
        tasks = manager.list(sorted(path.name for path in find_bundles(heads)))
        stop, results = context.Event(), context.Queue()
        process = context.Process(target=clients, args=(server.grpc_url, references, tasks, stop, results))
        process.start()
        time.sleep(10)

        def do(what, call):
            began = time.monotonic()
            report = call()
            spans.append((what, began, time.monotonic(), report.seconds.get("switch", 0.0)))
            seconds[what].append(time.monotonic() - began)
            click.echo(f"{what} {report.task}: {dict(report.seconds)}", err=True)
            time.sleep(0.5)

        for number in range(max(additions, updates)):
            if number < updates:
                do("update", lambda number=number: deployer.deploy(bundles["rte", number]))
            if number < rollbacks:
                do("rollback", lambda: deployer.rollback("rte"))
            if number < additions:
                task = EXTRA.format(number)
                do("addition", lambda task=task: deployer.deploy(bundles[task, 0]))
                tasks.append(task)
        for number in range(removals):
            tasks.remove(EXTRA.format(number))  # nobody asks for it from here on
            time.sleep(1)
            do("removal", lambda number=number: deployer.remove(EXTRA.format(number)))
        time.sleep(5)
        stop.set()
        tallies = [results.get(timeout=60) for _ in range(CLIENTS)]
        process.join()
        problems = deployer.verify()
    tell(len(find_bundles(heads)), tallies, spans, seconds, problems, first)


def first_answers(url, repository, deployer, bundles, references):
    """Without load: seconds from giving a bundle, or asking for a rollback, to the first answer of that version."""
    rows = {row: index for index, row in enumerate(ROWS)}
    row = next(row for row in ROWS if row[1])

    def seconds_to(version, call):
        seen = threading.Event()
        moment = []

        def watch():
            with AdminClient(url) as server:
                wanted = references["rte"][version][rows[row]]
                while not seen.is_set():
                    if np.abs(server.ask(MULTITASK, [row], ["rte"])["rte"][0] - wanted).max() <= TOLERANCE:
                        moment.append(time.monotonic())
                        seen.set()
                    time.sleep(0.25)  # asking without a pause would be a load

        watcher = threading.Thread(target=watch)
        began = time.monotonic()
        watcher.start()
        call()
        watcher.join(timeout=60)
        return moment[0] - began

    def command(*arguments):
        program = Path(sys.executable).parent / "deploy-head"
        subprocess.run([program, "--repository", repository, "--url", url, *arguments], check=True, capture_output=True)

    deployer.deploy(bundles["rte", 0])  # torch and the trunk are loaded once
    deployer.rollback("rte")
    found = defaultdict(list)
    for number in (1, 2, 3):
        call = partial(deployer.deploy, bundles["rte", number])
        found["a bundle to its first answer, from Python"].append(seconds_to(f"update {number}", call))
        found["a rollback to the old answers, from Python"].append(
            seconds_to("old", partial(deployer.rollback, "rte", 1))
        )
    for number in (4, 5, 6):
        call = partial(command, str(bundles["rte", number]))
        found["a bundle to its first answer, `deploy-head`"].append(seconds_to(f"update {number}", call))
        call = partial(command, "--rollback", "rte", "--to", "1")
        found["a rollback to the old answers, `deploy-head`"].append(seconds_to("old", call))
    return found


def tell(shipped, tallies, spans, seconds, problems, first) -> None:
    """Prints the report."""
    sent = sum(tally[0] for tally in tallies)
    failed, wrong, seen = Counter(), Counter(), defaultdict(Counter)
    for tally in tallies:
        failed.update(tally[1])
        wrong.update(tally[2])
        for task, versions in tally[4].items():
            seen[task].update(versions)
    times = sorted(moment for tally in tallies for moment in tally[3])
    inside, outside = [], []
    for began, took in times:
        overlaps = any(began < end and began + took > start for _, start, end, _ in spans)
        (inside if overlaps else outside).append(1e3 * took)
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.split(":")[1].strip() for line in cpus if line.startswith("model name")), "")
    print("# Deploying under load\n")
    print("`python benchmarks/deploy_under_load.py > docs/results/deploying.md`\n")
    print(f"{os.cpu_count()} cores, {processor}, Python {platform.python_version()}; {shipped} heads at first,")
    print(f"{CLIENTS} clients in a closed loop, two texts and one to four tasks a request, no retries.\n")
    print("| what | |\n|---|---|")
    print(f"| requests sent | {sent:,} |")
    print(f"| failed | {sum(failed.values())} |")
    print(f"| answers that are neither the old head's nor the new one's | {sum(wrong.values())} |")
    print(f"| answers checked | {sum(sum(v.values()) for v in seen.values()):,} |")
    print(f"| greatest difference from torch | {max(tally[5] for tally in tallies):.1e} |")
    print(f"| versions of the updated task that were seen | {len(seen['rte'])} |")
    print(
        f"| p50, p99 outside of deployments, ms | {np.percentile(outside, 50):.0f}, {np.percentile(outside, 99):.0f} |"
    )
    print(f"| p50, p99 during deployments, ms | {np.percentile(inside, 50):.0f}, {np.percentile(inside, 99):.0f} |")
    print(f"| manifest, disk and server agree at the end | {'yes' if not problems else '; '.join(problems)} |\n")
    print("| change | times | seconds, median | seconds, longest |\n|---|---|---|---|")
    for what, values in seconds.items():
        print(f"| {what} | {len(values)} | {np.median(values):.2f} | {max(values):.2f} |")
    print("\nWithout load, seen by a client that asks four times a second:\n")
    print("| from ... to ... | times | seconds, median | seconds, longest |")
    print("|---|---|---|---|")
    for what, values in first.items():
        print(f"| {what} | {len(values)} | {np.median(values):.2f} | {max(values):.2f} |")
    for message, count in failed.items():
        print(f"\nfailed {count} times: {message}")


if __name__ == "__main__":
    main()
