"""Heads whose upper layers see a few tokens only: what a head of several layers keeps, and whether it is worth it.

    python -m benchmarks.few_tokens --work /tmp/few --tasks mrpc,stsb

A head's first layer runs for k tokens, the first one and those that it attends to most, over the keys of all tokens;
the layers above see these k alone. With k = 1 it is the fold from the first layer on; with all tokens it is the head as
it is. So a whole layer would cost what k tokens of it cost. Each finished head of several layers is measured so with
some k, as it is and after it was trained for that on what the whole head says.

Records, README.md and summary.json lie in docs/results/few_tokens. Needs the GLUE data (see tasks/sst2.toml), found by
--data or ONETRUNK_DATA, and the heads: search-heads make docs/results/quality/plan.toml --heads DIR/teachers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.teachers import load_teachers
from onetrunk.cli.console import progress_line
from onetrunk.cli.training_options import load_tasks
from onetrunk.distill.markdown import gain, points, table
from onetrunk.files import atomic_write_text
from onetrunk.nn.bundle import Bundle
from onetrunk.nn.fold import folded_state
from onetrunk.nn.head import Head
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe
from onetrunk.training.compute import describe_machine
from onetrunk.training.evaluation import evaluate, raw_outputs
from onetrunk.training.experiment import Experiment, ExperimentConfig, open_experiment
from onetrunk.training.lessons import TEMPERATURE
from onetrunk.training.loop import fit
from onetrunk.training.objective import DistilObjective, LabelObjective

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "docs" / "results" / "few_tokens"
TASKS = ("mrpc", "stsb")
KEPT = (4, 8, 16)
MAX_LENGTH = 128


class FewTokensHead(Head):
    """A head of layers of BERT's form, all of which run for a few tokens only.

    Attributes:
        kept: The number of tokens, at most; the first one is always among them.
    """

    kept: int

    @classmethod
    def of(cls, head: Head, kept: int) -> FewTokensHead:
        """Return a copy of a head that runs so.

        Raises:
            UserError: It has one layer, which is folded already, or another query than the first token.
        """
        if len(head.layers) < 2 or head.by_token or head.query != "cls":
            raise UserError("a head of a few tokens has two layers or more, and asks from the first token")
        found = copy.deepcopy(head)
        found.__class__ = cls
        assert isinstance(found, cls)
        found.kept = kept
        return found

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """See ``Head.forward``."""
        context = self.shared.prepare(attention_mask, hidden_state)
        first: Any = self.layers[0]
        parts = self.encoder.take_apart(first, context)
        asked = torch.softmax(parts.scores(hidden_state[:, 0], hidden_state), dim=-1).mean(dim=1)
        asked = torch.cat([torch.full_like(asked[:, :1], 2.0), asked[:, 1:]], dim=1)
        chosen = asked.topk(min(self.kept, asked.shape[1]), dim=1).indices
        width, heads, size = parts.width, parts.attention_heads, parts.head_size
        states = torch.gather(hidden_state, 1, chosen[..., None].expand(-1, -1, width))
        # The fold of nn/fold.py with as many queries as tokens are kept.
        inner = first.attention.self
        queries = inner.query(states).view(*chosen.shape, heads, size)
        folded = torch.einsum("bkhs,hsw->bkhw", queries, inner.key.weight.view(heads, size, width)) * size**-0.5
        scores = folded.flatten(1, 2) @ hidden_state.transpose(1, 2) + context.mask_bias[:, 0]
        summed = (parts.dropout(torch.softmax(scores, dim=-1)) @ hidden_state).view(*chosen.shape, heads, width)
        values = torch.einsum("bkhw,hsw->bkhs", summed, inner.value.weight.view(heads, size, width))
        values = values + inner.value.bias.view(heads, size)
        state = parts.finish(values.flatten(2), states)
        few = self.shared.prepare(torch.gather(attention_mask, 1, chosen), state)
        for layer in self.layers[1:-1]:
            state = self.encoder.run_layer(layer, state, few)
        last = self.encoder.take_apart(self.layers[-1], few)
        return self._answer(folded_state(last, state[:, 0], state))


def measure_task(bundle: Bundle, experiment: Experiment, epochs: int, tell: ProgressCallback) -> dict[str, Any]:
    """Return the dev scores of a task's finished head: whole, and with a few tokens before and after training."""
    name = bundle.spec.task
    task = experiment.task(name)
    tap, head = bundle.spec.tap, bundle.head(experiment.trunk)
    assert isinstance(head, Head)
    for split in ("train", "dev"):
        experiment.states(name, split, [tap], tell)
    train, dev = (experiment.labelled_states(name, split, tap) for split in ("train", "dev"))
    said = raw_outputs(head, train.states)
    found: dict[str, Any] = {
        "metric": task.metric,
        "layers": bundle.spec.layers,
        "tap": tap,
        "mean_tokens": round(float(dev.states.lengths.mean()), 1),
        "whole": evaluate(head, dev, task).scores[task.metric],
        "kept": {},
        "epochs": epochs,
        "machine": describe_machine(),
    }
    for kept in KEPT:
        few = FewTokensHead.of(head, kept)
        before = evaluate(few, dev, task).scores[task.metric]
        few.requires_grad_(True)
        objective = DistilObjective(LabelObjective.of(task, train.targets, few), said, TEMPERATURE)
        recipe = Recipe(
            tap=tap, layers=bundle.spec.layers, epochs=epochs, learning_rate=1e-4, dropout=0.0, max_length=MAX_LENGTH
        )
        state = fit(few, task, recipe, train, dev, objective=objective, progress=tell)
        after = max(scores[task.metric] for scores in state.scores)
        found["kept"][str(kept)] = {"as_it_is": before, "trained": after}
    return found


def page(found: Mapping[str, Any]) -> str:
    """Return README.md."""
    rows = [
        (
            name,
            one["metric"],
            f"{one['layers']} on tap {one['tap']}",
            f"{one['mean_tokens']:.1f}",
            points(one["whole"]),
            *(
                f"{points(few['as_it_is'])}, {points(few['trained'])} ({gain(few['trained'] - one['whole'])})"
                for few in one["kept"].values()
            ),
        )
        for name, one in found["tasks"].items()
    ]
    columns = ("task", "metric", "layers", "tokens a text", "whole", *(f"{kept} tokens" for kept in KEPT))
    return (
        "\n\n".join(
            [
                "# Heads of a few tokens",
                "Finished heads of several layers, all of whose layers run for a few tokens of each text: the first "
                "one, and those that it attends to most in the head's first layer. Dev scores in hundredths: of the "
                "head as it is, and trained for it on what the whole head says and on the labels (best epoch), with "
                "the difference from the whole head.",
                "\n".join(table(columns, rows)),
                *([found["note"]] if found.get("note") else []),
                "Made by `python -m benchmarks.few_tokens --work DIR`. The same as JSON, with the machine of each: "
                "[summary.json](summary.json).",
            ]
        )
        + "\n"
    )


@click.command(help=__doc__.splitlines()[0])
@click.option("--work", type=click.Path(path_type=Path), required=True, help="The folder of caches.")
@click.option("--tasks", "task_list", default=",".join(TASKS), show_default=True, metavar="A,B")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True, help="Passes over the train texts.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data are. [default: $ONETRUNK_DATA]")
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, help="Where results go.")
def main(work: Path, task_list: str, epochs: int, data: Path | None, study: Path) -> None:
    """Measure heads of a few tokens, and write the page."""
    with errors_end_command(), progress_line() as tell:
        names = task_list.split(",")
        config = ExperimentConfig(
            tasks=tuple(load_tasks(names, ROOT / "tasks")),
            cache=work / "cache",
            runs=work / "runs",
            data_root=data,
            device="cpu",
            max_length=MAX_LENGTH,
        )
        experiment = open_experiment(config)
        path = study / "summary.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tasks": {}}
        teachers = load_teachers(work / "teachers", names, experiment.trunk)
        for name in names:
            found["tasks"][name] = measure_task(teachers[name], experiment, epochs, tell)
            atomic_write_text(path, json.dumps(found, indent=1) + "\n")
            atomic_write_text(study / "README.md", page(found))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.few_tokens")
