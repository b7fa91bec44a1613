"""The classifiers that are adopted: one ordinary fine-tuned model a task, saved as `transformers` saves models.

Each is trained from the weights of the default trunk, or of the base-size one, which are free to change, with a plain
loop of `transformers`' own model, so that nothing of OneTrunk is in it. Two have another shape: the default trunk's
weights in the classes of DistilBERT and of RoBERTa, which compute the same before they are fine-tuned.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig, RobertaConfig
from transformers import BertForSequenceClassification as Bert
from transformers import DistilBertForSequenceClassification as DistilBert
from transformers import RobertaForSequenceClassification as Roberta

from onetrunk.nn.trunk_source import trunk_folder
from onetrunk.tasks import Examples, Task, load_task, read_examples
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import measure

ROOT = Path(__file__).resolve().parents[2]
MAX_LENGTH = 128
BATCH_SIZE = 32
ABOUT = "about.json"


@dataclass(frozen=True)
class Plan:
    """One model to be fine-tuned.

    Attributes:
        name: Its name, and its folder's.
        task: The task file of its data.
        shape: ``bert``, ``mpnet``, ``distilbert`` or ``roberta``.
        rows: The number of train rows, the first ones.
        epochs: Passes over them.
        trunk: The trunk from whose weights it is fine-tuned; None is the default one.
    """

    name: str
    task: str
    shape: str = "bert"
    rows: int = 1000
    epochs: int = 2
    trunk: str | None = None


# A part of each task's rows, so that some are left which the model has not seen: what a model learned by heart is no
# traffic. Quick ones first, so that there is something to adopt early.
PLANS = (
    Plan("cola", "cola", rows=4500, epochs=3),
    Plan("mrpc", "mrpc", rows=1800, epochs=3),
    Plan("stsb", "stsb", rows=3000, epochs=3),
    Plan("sst2", "sst2", rows=12000),
    Plan("qqp", "qqp", rows=4300),
    Plan("rte", "rte", rows=1200, epochs=3),
    Plan("mnli", "mnli", rows=6000),
    Plan("qnli", "qnli", rows=8000),
    Plan("sst2_distilbert", "sst2", "distilbert", rows=6000),
    Plan("cola_roberta", "cola", "roberta", rows=4500, epochs=3),
    Plan("cola_base", "cola", "mpnet", rows=4500, trunk="base"),
)


def task_of(plan: Plan) -> Task:
    """The task whose data a model is fine-tuned on."""
    return load_task(ROOT / "tasks" / f"{plan.task}.toml")


def make_teacher(plan: Plan, folder: Path, data_root: Path | None = None) -> Path:
    """Fine-tune a model, or find it.

    Args:
        plan: What to fine-tune.
        folder: The folder of all models.
        data_root: The folder in which relative data files are looked for first.
    """
    target = folder / plan.name
    if (target / ABOUT).is_file():
        return target
    began = time.monotonic()
    task = task_of(plan)
    train, dev = (read_examples(task, split, data_root=data_root) for split in ("train", "dev"))
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(trunk_folder(plan.trunk))
    model = _new_model(plan, task)
    _fine_tune(model, tokenizer, task, train, plan)
    raw = _outputs(model, tokenizer, dev)
    kind = get_kind(task.kind)
    targets = kind.codec.targets(dev.targets, task)
    served = kind.output.scores(torch.from_numpy(raw), task).numpy()
    scores, _ = measure(task.metrics, kind.answers.predictions(served, task), targets)
    aside = target.with_name(f".{plan.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    about = {**asdict(plan), "train_rows": _count(train, plan), "scores": scores}
    about["seconds"] = round(time.monotonic() - began, 1)
    (aside / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    os.replace(aside, target)
    return target


def _count(train: Examples, plan: Plan) -> int:
    return min(plan.rows, len(train))


def _new_model(plan: Plan, task: Task) -> torch.nn.Module:
    labels = task.labels or ("score",)
    names = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
    }
    model = AutoModelForSequenceClassification.from_pretrained(trunk_folder(plan.trunk), **names)
    if plan.shape == model.config.model_type:
        return model
    return _as_distilbert(model, names) if plan.shape == "distilbert" else _as_roberta(model, names)


def _as_distilbert(bert: Bert, names: dict[str, object]) -> DistilBert:
    """The same encoder in the classes of DistilBERT, which has no token types: type 0 is part of every position."""
    old = bert.config
    model = DistilBert(
        DistilBertConfig(
            vocab_size=old.vocab_size,
            dim=old.hidden_size,
            n_layers=old.num_hidden_layers,
            n_heads=old.num_attention_heads,
            hidden_dim=old.intermediate_size,
            max_position_embeddings=old.max_position_embeddings,
            **names,
        )
    )
    theirs = {
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    for ours, layer in zip(bert.bert.encoder.layer, model.distilbert.transformer.layer, strict=True):
        for name, other in theirs.items():
            layer.get_submodule(other).load_state_dict(ours.get_submodule(name).state_dict())
    ours, embeddings = bert.bert.embeddings, model.distilbert.embeddings
    embeddings.word_embeddings.load_state_dict(ours.word_embeddings.state_dict())
    embeddings.LayerNorm.load_state_dict(ours.LayerNorm.state_dict())
    with torch.no_grad():
        embeddings.position_embeddings.weight.copy_(
            ours.position_embeddings.weight + ours.token_type_embeddings.weight[0]
        )
    return model


def _as_roberta(bert: Bert, names: dict[str, object]) -> Roberta:
    """The same encoder in the classes of RoBERTa, whose positions begin behind that of the padding."""
    old = bert.config
    model = Roberta(
        RobertaConfig(
            vocab_size=old.vocab_size,
            hidden_size=old.hidden_size,
            num_hidden_layers=old.num_hidden_layers,
            num_attention_heads=old.num_attention_heads,
            intermediate_size=old.intermediate_size,
            max_position_embeddings=old.max_position_embeddings + 1,
            type_vocab_size=old.type_vocab_size,
            layer_norm_eps=old.layer_norm_eps,
            pad_token_id=0,
            bos_token_id=101,
            eos_token_id=102,
            **names,
        )
    )
    model.roberta.encoder.load_state_dict(bert.bert.encoder.state_dict())
    weights = {name: tensor for name, tensor in bert.bert.embeddings.state_dict().items() if "position" not in name}
    model.roberta.embeddings.load_state_dict(weights, strict=False)
    with torch.no_grad():
        model.roberta.embeddings.position_embeddings.weight[1:].copy_(bert.bert.embeddings.position_embeddings.weight)
    return model


def _batch(tokenizer, texts, rows) -> dict[str, torch.Tensor]:
    some = [texts[row] for row in rows]
    columns = zip(*some, strict=True) if not isinstance(some[0], str) else (some,)
    found = tokenizer(
        *(list(column) for column in columns),
        truncation=True,
        max_length=MAX_LENGTH,
        padding=True,
        return_tensors="pt",
    )
    return dict(found)


def _inputs(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in batch.items() if name != "token_type_ids" or model.config.model_type == "bert"}


def _fine_tune(model, tokenizer, task: Task, train: Examples, plan: Plan) -> None:
    kind, count = get_kind(task.kind), _count(train, plan)
    texts, targets = train.texts[:count], torch.from_numpy(kind.codec.targets(train.targets[:count], task))
    low, high = task.range or (0.0, 1.0)
    steps, done = plan.epochs * -(-count // BATCH_SIZE), 0
    # Wider encoders are trained at lower rates, as in the usual recipes.
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4 if plan.trunk is None else 5e-5, weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    lengths = np.array([len("".join(text)) for text in texts])
    # In bf16 where a processor has matrix units for it, which halves the time.
    fast = torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported())
    model.train()
    for epoch in range(plan.epochs):
        order = np.random.default_rng(epoch).permutation(count)
        pools = [order[start : start + 32 * BATCH_SIZE] for start in range(0, count, 32 * BATCH_SIZE)]
        ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = [ordered[start : start + BATCH_SIZE] for start in range(0, count, BATCH_SIZE)]
        for place in np.random.default_rng(epoch).permutation(len(batches)):
            rows = batches[place]
            with fast:
                raw = model(**_inputs(model, _batch(tokenizer, texts, rows))).logits.float()
            if task.kind == "regression":
                loss = torch.nn.functional.mse_loss(raw[:, 0], targets[rows] * (high - low) + low)
            else:
                loss = torch.nn.functional.cross_entropy(raw, targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done % 20 == 0:
                print(f"{plan.name}: step {done} of {steps}, loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.no_grad()
def _outputs(model, tokenizer, dev: Examples) -> np.ndarray:
    parts = [
        model(**_inputs(model, _batch(tokenizer, dev.texts, range(start, min(start + 64, len(dev)))))).logits
        for start in range(0, len(dev), 64)
    ]
    # Of a regression only correlations are measured, which no scale changes.
    return torch.cat(parts).numpy()
