"""Peer: Infinity's own server, with one model a task.

    python serve_infinity.py --models FOLDER --port N --threads T --engine optimum|torch

It is ``infinity_emb v2`` with its arguments filled in. A classifier answers at POST /classify, a regression, which
Infinity takes for a reranker, at POST /rerank. Engine optimum serves what export_onnx.py wrote.
Stands alone: it imports only what requirements.txt installs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def set_onnx_threads(threads: int) -> None:
    """Gives every ONNX Runtime session this many threads, for which Infinity has no setting."""
    import onnxruntime

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: Any, sess_options: Any = None, **more: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = threads
            super().__init__(path, sess_options=sess_options, **more)

    onnxruntime.InferenceSession = Session


def arguments(models: Path, port: int, engine: str, preload_only: bool) -> list[str]:
    """What is given to ``infinity_emb``."""
    root = models / ".onnx" if engine == "optimum" else models
    folders = sorted(config.parent for config in root.glob("[!.]*/config.json"))
    given = ["v2", "--host", "127.0.0.1", "--port", str(port), "--engine", engine, "--device", "cpu"]
    for folder in folders:
        given += ["--model-id", str(folder), "--served-model-name", folder.name]
    # Its warm-up runs batches of 32 texts of the greatest length, for minutes on a CPU, and changes no setting.
    given += ["--no-model-warmup", "--log-level", "warning"]
    return [*given, "--preload-only"] if preload_only else given


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with a checkpoint a task")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="threads of torch, or of each ONNX Runtime session")
    parser.add_argument("--engine", choices=("optimum", "torch"), default="optimum")
    parser.add_argument("--preload-only", action="store_true", help="let Infinity optimize the models, then end")
    options = parser.parse_args()
    if options.engine == "optimum":
        set_onnx_threads(options.threads)
    else:
        import torch

        torch.set_num_threads(options.threads)
    sys.argv = [
        "infinity_emb",
        *arguments(options.models.resolve(), options.port, options.engine, options.preload_only),
    ]
    from infinity_emb.cli import cli

    cli()


if __name__ == "__main__":
    main()
