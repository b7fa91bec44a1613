"""Exports the checkpoints with Optimum, for Infinity's engine of that name.

    python export_onnx.py --models FOLDER

FOLDER/<task>/ becomes FOLDER/.onnx/<task>/, a folder of its own since Infinity writes into what it serves.
Stands alone: it imports only what requirements.txt installs.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch


def main() -> None:
    """Exports what is not exported yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder with a checkpoint a task")
    models = parser.parse_args().models
    # Optimum means this exporter, which was torch's default until 2.9; it never names it.
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    from optimum.exporters.onnx import main_export

    for config in sorted(models.glob("[!.]*/config.json")):
        task = config.parent.name
        output = models / ".onnx" / task
        if not (output / "model.onnx").is_file():
            main_export(str(config.parent), output, task="text-classification", do_validation=False)


if __name__ == "__main__":
    main()
