"""How much of what is sent is padding, by the buckets that texts are padded to. Prints Markdown, or JSON.

    python benchmarks/padding.py --output docs/results/performance

Lengths are those of the default trunk's tokenizer on the tasks' dev and train files (see tasks/*.toml; --data where
they are elsewhere), pairs as pairs, cut at 128 tokens. All rows of all tasks are shuffled and sent one a request.
"""

from __future__ import annotations

import json
import platform
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

import click
import numpy as np
import onnxruntime
import tokenizers

from onetrunk.export.onnx_file import export_segment
from onetrunk.export.release import DEFAULT_RELEASE, get_release
from onetrunk.machine import processor_name
from onetrunk.nn.trunk import load_trunk
from onetrunk.protocol import __version__
from onetrunk.protocol.names import Segment
from onetrunk.repository.buckets import MAX_BUCKETS, STEP, buckets_up_to, choose_buckets, padding_share
from onetrunk.repository.configs import MAX_BATCH_SIZE
from onetrunk.repository.length_sample import count_lengths
from onetrunk.tasks import find_tasks, load_task, read_examples

ROOT = Path(__file__).resolve().parent.parent
MAX_LENGTH = 128
COUNTS = range(4, 13)
STEPS = (1, 4, 8)
FEWER = 8
TIMED = (8, 12, 16, 20, 24, 29, 32, 33, 40, 48, 56, 64, 72, 88, 96, 128)
REPEATS = 80


def read_lengths(trunk, split, data):
    """Task -> its lengths in tokens."""
    found = {}
    for file in find_tasks(ROOT / "tasks"):
        task = load_task(file)
        print(f"measuring the {split} texts of {task.name} ...", file=sys.stderr)
        texts = read_examples(task, split, data_root=data, skip_bad_rows=True).texts
        found[task.name] = list(count_lengths(texts, trunk, MAX_LENGTH).elements())
    return found


def equal_in_a_row(lengths, buckets):
    """Requests of one shape that come one after the other, on average: what Triton could batch if all were waiting."""
    padded = [next(bucket for bucket in buckets if bucket >= length) for length in lengths]
    runs = [min(len(list(run)), MAX_BATCH_SIZE) for _, run in groupby(padded)]
    return sum(runs) / len(runs)


def compare(dev, train):
    """One entry for each set of buckets, the first two not chosen from any texts."""
    whole, half, other = Counter(dev), Counter(dev[::2]), Counter(dev[1::2])
    rows = []
    for name, buckets in (
        ("powers of two", buckets_up_to(MAX_LENGTH, MAX_LENGTH)),
        ("by hand", (16, 32, 48, 64, 96, 128)),
    ):
        rows.append({"step": None, "most": None, "name": name, "buckets": buckets})
    for step in STEPS:
        for most in COUNTS:
            held_out = padding_share(other, choose_buckets(half, MAX_LENGTH, most, step))
            shifted = padding_share(whole, choose_buckets(Counter(train), MAX_LENGTH, most, step))
            buckets = choose_buckets(whole, MAX_LENGTH, most, step)
            rows.append({"step": step, "most": most, "name": f"{most}, multiples of {step}", "buckets": buckets})
            rows[-1] |= {"held_out_share": held_out, "chosen_on_train_share": shifted}
    for row in rows:
        row["padding_share"] = padding_share(whole, row["buckets"])
        row["equal_in_a_row"] = equal_in_a_row(dev, row["buckets"])
    return rows


def time_tokens(trunk, timed):
    """Length -> rows -> microseconds a token, padding included, of the trunk's first three layers in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_segment(trunk, Segment(0, min(3, trunk.depth)), file, get_release(DEFAULT_RELEASE))
        session = onnxruntime.InferenceSession(file, options)
    for _ in range(REPEATS):
        for length in timed:
            for batch in (1, 4):
                feed = {tensor.name: np.ones((batch, length), np.int64) for tensor in session.get_inputs()}
                began = time.perf_counter()
                session.run(None, feed)
                times.setdefault((length, batch), []).append((time.perf_counter() - began) / (batch * length))
    # The machine is shared: the fastest run is the one that nobody else disturbed.
    return {length: {batch: 1e6 * min(times[length, batch]) for batch in (1, 4)} for length in timed}


def measure(trunk, data):
    dev, train = (read_lengths(trunk, split, data) for split in ("dev", "train"))
    mixed = [length for lengths in dev.values() for length in lengths]
    random.Random(0).shuffle(mixed)
    rows = compare(mixed, [length for lengths in train.values() for length in lengths])
    fewer, default = (
        next(row for row in rows if (row["most"], row["step"]) == (most, STEP)) for most in (FEWER, MAX_BUCKETS)
    )
    powers = rows[0]["buckets"]
    times = time_tokens(trunk, sorted({*TIMED, *powers, *default["buckets"]}))

    def milliseconds(buckets):
        padded = (next(bucket for bucket in buckets if bucket >= length) for length in mixed)
        return sum(1e-3 * bucket * times[bucket][1] for bucket in padded) / len(mixed)

    return {
        "padding_share": default["padding_share"],
        "padding_share_powers_of_two": rows[0]["padding_share"],
        "padding_share_held_out": default["held_out_share"],
        "padding_share_chosen_on_train": default["chosen_on_train_share"],
        "buckets": default["buckets"],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": processor_name(),
        "versions": {
            "onetrunk": __version__,
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "command": shlex.join(["python", "benchmarks/padding.py", *sys.argv[1:]]),
        "trunk": trunk.identity,
        "max_length": MAX_LENGTH,
        "dev_rows": {task: len(lengths) for task, lengths in dev.items()},
        "train_rows": {task: len(lengths) for task, lengths in train.items()},
        "choices": rows,
        "tasks": {
            task: {
                "tokens": float(np.mean(lengths)),
                "powers_of_two": padding_share(Counter(lengths), rows[0]["buckets"]),
                "fewer": padding_share(Counter(lengths), fewer["buckets"]),
                "chosen": padding_share(Counter(lengths), default["buckets"]),
            }
            for task, lengths in dev.items()
        },
        "microseconds_a_token": times,
        "milliseconds_a_row": {"powers_of_two": milliseconds(powers), "chosen": milliseconds(default["buckets"])},
    }


def percent(share):
    return "" if share is None else f"{100 * share:.1f}"


def markdown(result):
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows, trained = sum(result["dev_rows"].values()), sum(result["train_rows"].values())
    yield f"""# Padding

`{result["command"]}`, {result["date"]}, {result["machine"]}, {versions}, trunk {result["trunk"]}.

Share of padding in all tokens sent, in percent: all {rows:,} rows in the dev files of
{len(result["tasks"])} GLUE tasks, cut at {result["max_length"]} tokens, shuffled, one row a request.
`build-repo --buckets auto` chooses at most
{MAX_BUCKETS} buckets, multiples of {STEP}: **{percent(result["padding_share"])}%**, instead of
{percent(result["padding_share_powers_of_two"])}% with the powers of two.

- *dev*: chosen on all dev rows and measured on them.
- *other half*: chosen on one half of the dev rows, measured on the other.
- *from train*: chosen on {trained:,} train rows, another mix of tasks and lengths; measured on all dev rows.
- *in a row*: requests of one shape that come one after the other, on average. Triton batches no more of them than
  that, even if all are waiting: it stops at the first of another shape. (Rows of one request always are a batch; they
  are padded together, to the longest.)

| buckets | | dev | other half | from train | in a row |
|---|---|---:|---:|---:|---:|"""
    for row in result["choices"]:
        bold = "**" if (row["most"], row["step"]) == (MAX_BUCKETS, STEP) else ""
        held_out, shifted = (percent(row.get(key)) for key in ("held_out_share", "chosen_on_train_share"))
        sizes, share = ",".join(map(str, row["buckets"])), f"{bold}{percent(row['padding_share'])}{bold}"
        yield f"| {row['name']} | {sizes} | {share} | {held_out} | {shifted} | {row['equal_in_a_row']:.2f} |"
    yield f"""
By task, each with the same buckets: the powers of two, and at most {FEWER} and {MAX_BUCKETS} (multiples of {STEP})
that were chosen for the mix. With fewer, a task of short texts pays for the others.

| task | dev rows | mean tokens | powers of two | {FEWER} | {MAX_BUCKETS} |
|---|---:|---:|---:|---:|---:|"""
    for task, row in result["tasks"].items():
        shares = " | ".join(percent(row[key]) for key in ("powers_of_two", "fewer", "chosen"))
        yield f"| {task} | {result['dev_rows'][task]:,} | {row['tokens']:.1f} | {shares} |"
    yield f"""
What a token costs, padding included: microseconds a token in the trunk's first three layers, ONNX Runtime, one thread
of this shared machine (fastest of {REPEATS} runs). Where a column is level, time goes with tokens, and padding is
what it costs; what four rows at once take less is what batching saves. Weighed by the mix, one row at a time, these
layers take {result["milliseconds_a_row"]["powers_of_two"]:.2f} ms a row with the powers of two and
{result["milliseconds_a_row"]["chosen"]:.2f} ms with the buckets that were chosen.

| tokens | one row | four rows |
|---:|---:|---:|"""
    for length, times in result["microseconds_a_token"].items():
        yield f"| {length} | {times[1]:.0f} | {times[4]:.0f} |"


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Where data files are looked for first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Also write padding.md, padding.json.")
def main(data: Path | None, as_json: bool, output: Path | None) -> None:
    """Measures, and prints the result."""
    result = measure(load_trunk(), data)
    texts = {
        "padding.json": json.dumps(result, indent=1) + "\n",
        "padding.md": "".join(f"{line}\n" for line in markdown(result)),
    }
    click.echo(texts["padding.json" if as_json else "padding.md"], nl=False)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (output / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
