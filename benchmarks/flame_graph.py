"""Where the process of one model spends its time under load, as a flame graph of its Python frames.

    pip install py-spy
    python -m benchmarks.flame_graph --repository model_repository --model heads_03 --output flame.svg

It may need root, as every profiler that looks into another process.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
from pathlib import Path

import psutil

from benchmarks.compare.load import run_load
from benchmarks.compare.systems import TritonSystem
from benchmarks.compare.texts import texts_of_length
from onetrunk.nn.trunk import load_trunk
from onetrunk.serving.stubs import parse_stub


def process_of(triton: int, model: str) -> int:
    """The process that runs a model."""
    for child in psutil.Process(triton).children():
        stub = parse_stub(child.cmdline())
        if stub is not None and stub.model == model:
            return child.pid
    raise SystemExit(f"the server runs no model {model}")


def main() -> None:
    """Records, while four texts at a time are asked about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--trunk", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    texts = texts_of_length(load_trunk(options.trunk), options.tokens)
    with TritonSystem("profiled", "", options.repository, tasks=0).running() as target:
        requests = [target.requests(text) for text in texts]
        load = threading.Thread(target=run_load, args=(target.host, target.port, requests, 4, options.seconds + 5))
        load.start()
        subprocess.run(
            [
                *("py-spy", "record", "--rate", "200", "--duration", str(options.seconds)),
                *("--pid", str(process_of(target.pid, options.model)), "--output", str(options.output)),
            ],
            check=True,
        )
        load.join()


if __name__ == "__main__":
    main()
