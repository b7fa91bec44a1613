"""Writes the checkpoints that peers serve: one Hugging Face sequence classifier a task.

    python -m benchmarks.peers.checkpoints FOLDER --shape bert-base

Their weights are random, or the default trunk's with a random classifier: what they answer means nothing, and takes as
long as if it did.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from benchmarks.peers.tasks import TASKS
from onetrunk.nn.trunk import load_trunk

VOCABULARY = 30522
# As the repository truncates, so that all answer about the same tokens.
MAX_LENGTH = 128
# Above the usual 0.02, so that scores differ from text to text, and not so far that they are all 0 or 1.
CLASSIFIER_STD = 0.1
DEFAULT_TRUNK = "trunk"
SHAPES: dict[str, BertConfig | DistilBertConfig | str] = {
    "bert-base": BertConfig(vocab_size=VOCABULARY),
    "distilbert": DistilBertConfig(vocab_size=VOCABULARY),
    "trunk": DEFAULT_TRUNK,
}


def write_checkpoints(
    folder: Path,
    shape: BertConfig | DistilBertConfig | str = DEFAULT_TRUNK,
    tasks: Mapping[str, int] = TASKS,
    seed: int = 0,
) -> Path:
    """Writes ``folder/<task>/`` with config.json, model.safetensors and tokenizer files.

    All tasks have the same encoder weights, each in a checkpoint of its own as if they had been fine-tuned one by one:
    nothing that serves them can know, and making them takes a fraction of the time. Only the classifiers differ.

    Args:
        folder: where to; what lies there under the same names is overwritten.
        shape: of the encoder, whose weights are then random; ``"trunk"``: the default trunk, weights and all.
        tasks: task -> number of outputs; 1 is a regression.
        seed: of everything random.

    Returns:
        The folder.
    """
    trunk = load_trunk()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _untrained(BertConfig.from_pretrained(trunk.folder) if isinstance(shape, str) else copy.deepcopy(shape))
        if isinstance(shape, str):
            model.bert = BertModel.from_pretrained(trunk.folder, dtype=torch.float32)
        for task, outputs in tasks.items():
            labels = [f"label_{place}" for place in range(outputs)]
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {label: place for place, label in enumerate(labels)}
            model.config.problem_type = "regression" if outputs == 1 else "single_label_classification"
            model.classifier = torch.nn.Linear(model.classifier.in_features, outputs)
            torch.nn.init.normal_(model.classifier.weight, std=CLASSIFIER_STD)
            model.save_pretrained(folder / task)
            _save_tokenizer(folder / task, trunk.tokenizer(), model.config.model_type)
    return folder


def _untrained(
    config: BertConfig | DistilBertConfig,
) -> BertForSequenceClassification | DistilBertForSequenceClassification:
    if isinstance(config, DistilBertConfig):
        return DistilBertForSequenceClassification(config)
    return BertForSequenceClassification(config)


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, family: str) -> None:
    # By hand, so that every version of transformers reads it.
    tokenizer.save(str(folder / "tokenizer.json"))
    types = [] if family == "distilbert" else ["token_type_ids"]
    settings: dict[str, Any] = {
        "tokenizer_class": "DistilBertTokenizerFast" if family == "distilbert" else "BertTokenizerFast",
        "do_lower_case": True,
        "model_max_length": MAX_LENGTH,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def main() -> None:
    """Writes the eight checkpoints of a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="bert-base")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(write_checkpoints(options.folder, SHAPES[options.shape], seed=options.seed))


if __name__ == "__main__":
    main()
