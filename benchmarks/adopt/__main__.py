"""Real classifiers adopted from unlabelled texts alone, and how far the heads agree with them.

    python -m benchmarks.adopt --work /tmp/adopt
    python -m benchmarks.adopt --work /tmp/adopt --models cola,sst2 --rows 2000

Fine-tunes the classifiers of `benchmarks.adopt.teachers` from the default trunk, where they are not in the work folder
yet, and gives them to what `adopt-models` runs. Heads learn from the task's train texts without labels; its dev rows
are only measured. Records and summary.json lie in docs/results/adopting/, and models that are not named keep theirs.
What was killed goes on.

Needs the GLUE data (see tasks/sst2.toml), found by --data or ONETRUNK_DATA.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import click

from benchmarks.adopt.teachers import ABOUT, PLANS, ROOT, Plan, make_teacher, task_of
from onetrunk.adopt.adoption import Workshop, adopt_model
from onetrunk.adopt.classifier import open_classifier
from onetrunk.adopt.page import cost_rows, summary_rows
from onetrunk.adopt.records import AdoptedModel, AdoptSettings
from onetrunk.adopt.request import ModelRequest
from onetrunk.adopt.serving_cost import ServingCost, measure_serving
from onetrunk.cli.console import progress_line
from onetrunk.distill.cost_measurement import untrained_head
from onetrunk.distill.markdown import table
from onetrunk.files import atomic_write_text
from onetrunk.machine import processor_name
from onetrunk.nn.bundle import save_bundle
from onetrunk.nn.trunk import load_trunk
from onetrunk.progress import ProgressCallback
from onetrunk.tasks import read_examples
from onetrunk.tasks.text_file import read_texts

STUDY = ROOT / "docs" / "results" / "adopting"
EARLIER = (
    "Not measured anew yet, since heads learn the states of models of the trunk's form as well as their answers: {}."
)
ON_DEFAULT = {plan.name for plan in PLANS if plan.trunk is None}
GOAL_AGREEMENT, GOAL_KEPT = 0.97, 0.99


def write_data(plan: Plan, folder: Path, rows: int | None, data_root: Path | None) -> tuple[Path, Path]:
    """Write the train texts that the model has not seen, without labels, and the dev rows with labels."""
    task = task_of(plan)
    train, dev = (read_examples(task, split, data_root=data_root) for split in ("train", "dev"))
    texts = train.texts[plan.rows :][:rows]
    low, high = task.range or (0.0, 1.0)
    labels = [task.labels[one] if task.labels else one * (high - low) + low for one in dev.targets]
    paths = folder / f"{plan.name}-{len(texts)}.jsonl", folder / f"{plan.name}-dev.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(paths[0], "".join(json.dumps(_fields(text)) + "\n" for text in texts))
    atomic_write_text(
        paths[1],
        "".join(
            json.dumps({**_fields(text), "label": label}) + "\n" for text, label in zip(dev.texts, labels, strict=True)
        ),
    )
    return paths


def _fields(text: str | tuple[str, str]) -> dict[str, str]:
    return {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def adopt(
    plan: Plan,
    workshop: Workshop,
    settings: AdoptSettings,
    work: Path,
    rows: int | None,
    data_root: Path | None,
    progress: ProgressCallback,
) -> AdoptedModel:
    """Adopt one model from texts without labels: what stops the search is its agreement on texts, not the labels."""
    folder = make_teacher(plan, work / "models", data_root)
    texts, dev = write_data(plan, work / "texts", rows, data_root)
    bounds = task_of(plan).range
    classifier = open_classifier(str(folder), name=plan.name)
    request = ModelRequest(classifier=classifier, texts=read_texts(texts), dev=dev, range=bounds)
    return adopt_model(request, workshop, settings, progress)


def summary(adopted: Sequence[AdoptedModel], cost: ServingCost | None) -> dict[str, object]:
    """What came of it, as summary.json holds it. Correlations are not shares of texts, and are averaged apart."""
    shares = [one.agreement for one in adopted if one.agreement_measure == "share"]
    kept = [one.kept for one in adopted if one.kept is not None]
    teachers = [one.teacher_score for one in adopted if one.teacher_score is not None]
    heads = [one.head_score for one in adopted if one.head_score is not None]
    whole_ms, trunk_ms = (cost.whole_models()[0], cost.one_trunk()[0]) if cost else (0.0, 0.0)
    return {
        "models": [one.name for one in adopted],
        "not_run": [plan.name for plan in PLANS if plan.name not in {one.name for one in adopted}],
        "texts": {one.name: one.train_texts for one in adopted},
        "agreement_average": round(fmean(shares), 4) if shares else None,
        "correlations": {one.name: round(one.agreement, 4) for one in adopted if one.agreement_measure != "share"},
        "metric_kept_average": round(fmean(heads) / fmean(teachers), 4) if teachers else None,
        "metric_kept_min": round(min(kept), 4) if kept else None,
        "cost_share": round(trunk_ms / whole_ms, 4) if whole_ms else None,
        "minutes": round(sum(attempt.seconds for one in adopted for attempt in one.attempts) / 60, 1),
        "goals": {"agreement_average": GOAL_AGREEMENT, "metric_kept_average": GOAL_KEPT},
        "machine": processor_name(),
    }


def report(adopted: Sequence[AdoptedModel], cost: ServingCost | None, found: dict[str, object]) -> str:
    """The page of results."""
    not_run = ", ".join(found["not_run"]) or "none"  # type: ignore[arg-type]
    trained = ", ".join(f"{plan.name} {plan.rows:,} x {plan.epochs}" for plan in PLANS if plan.name in found["models"])  # type: ignore[operator]
    parts = [
        "# Adopted classifiers",
        "Classifiers that were fine-tuned on GLUE from the default trunk, and those named `_base` from the base-size "
        "one (`benchmarks/adopt/teachers.py`), adopted on that trunk from train texts without labels; the labels of "
        "the dev rows are only measured. No model had seen the texts that it labels. Agreement is measured on a tenth "
        "of them, from which nothing was learned; for `stsb` it is the correlation.",
        f"The models were trained on so many rows, so many times: {trained}. What is measured here is whether a head "
        "says the same, not whether that is right.",
        *([EARLIER.format(", ".join(earlier))] if (earlier := _earlier(adopted)) else []),
        "\n".join(table(*summary_rows(adopted))),
        f"Agreement is {_points(found['agreement_average'])} of texts on average (goal: 97%), and heads keep "
        f"{_points(found['metric_kept_average'])} of the models' average metric (goal: 99%). Their trainings took "
        f"{found['minutes']} minutes together, most of them beside others on two cores. Not run: {not_run}.",
        "What each head that was tried came to, the cheapest first; the first that is enough ends the search:",
        "\n".join(table(*tried_rows(adopted))),
    ]
    if cost is not None and cost.whole:
        parts += [
            f"One text of {cost.tokens} tokens, one thread, ONNX Runtime, on {cost.machine}; the default trunk's:",
            "\n".join(table(*cost_rows(cost))),
        ]
    return "\n\n".join(parts) + "\n"


def tried_rows(adopted: Sequence[AdoptedModel]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of how far each head that was tried agrees, by its share of the trunk's depth."""
    shapes = list(dict.fromkeys((tried.layers, tried.tap) for one in adopted for tried in one.attempts))
    shapes.sort()
    columns = ["model", *(f"tap {tap}, {layers} layer{'s' if layers > 1 else ''}" for layers, tap in shapes)]
    rows = []
    for one in adopted:
        found = {(tried.layers, tried.tap): tried.agreement for tried in one.attempts}
        form = "{:.1%}" if one.agreement_measure == "share" else "{:.3f}"
        rows.append([one.name, *(form.format(found[shape]) if shape in found else "" for shape in shapes)])
    return columns, rows


def read_records(study: Path) -> list[AdoptedModel]:
    """Read the records of all models that there are, in the order of the plans."""
    paths = [study / "records" / f"{plan.name}.json" for plan in PLANS]
    return [AdoptedModel.model_validate_json(path.read_bytes()) for path in paths if path.exists()]


def measure_costs(adopted: Sequence[AdoptedModel], work: Path, progress: ProgressCallback) -> ServingCost:
    """Time whole models of the default trunk's form, and heads of these shapes on it.

    Neither's time depends on what it answers, so no trained weights are needed. Models of another trunk have heads on
    that one, whose costs are those of another plan.
    """
    trunk = load_trunk()
    shapes = [one.model_copy(update={"source": str(trunk.folder)}) for one in adopted if one.name in ON_DEFAULT]
    with tempfile.TemporaryDirectory(dir=work) as heads:
        for one in shapes:
            head, spec = untrained_head(trunk, tap=one.tap, layers=one.layers, task=one.name)
            save_bundle(Path(heads) / one.name, spec, head)
        return measure_serving(shapes, trunk, Path(heads), progress=progress)


def _earlier(adopted: Sequence[AdoptedModel]) -> list[str]:
    """Return the models whose heads would learn their states today, and did not."""
    return [one.name for one in adopted if one.start == "teacher" and one.layers > 1 and not one.learned_states]


def _points(share: object) -> str:
    return f"{100 * share:.2f}%" if isinstance(share, float) else "not measured"


@click.command(help=__doc__.splitlines()[0])
@click.option("--work", type=click.Path(path_type=Path), required=True, help="The folder of models, texts and caches.")
@click.option("--study", type=click.Path(path_type=Path), default=STUDY, show_default=True, help="Where results go.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data are. [default: $ONETRUNK_DATA]")
@click.option("--models", help="Their names, separated by commas; '' only writes the page anew. [default: all]")
@click.option("--rows", type=click.IntRange(1), help="Texts of each task at most. [default: all that are left]")
@click.option("--epochs", type=click.IntRange(1), default=4, show_default=True, help="Passes over the texts.")
@click.option("--no-costs", is_flag=True, help="Do not time both ways to serve; the page then has no costs.")
def main(
    work: Path,
    study: Path,
    data: Path | None,
    models: str | None,
    rows: int | None,
    epochs: int,
    no_costs: bool,
) -> None:
    """Adopt the models, and write the records."""
    names = [plan.name for plan in PLANS] if models is None else models.split(",")
    plans = [plan for plan in PLANS if plan.name in names]
    workshops = {
        trunk: Workshop(trunk=load_trunk(trunk), output=work / "adopted", cache=work / "cache", device="cpu")
        for trunk in dict.fromkeys(plan.trunk for plan in plans)
    }
    settings = AdoptSettings(stop_by="agreement", epochs=epochs)
    with progress_line() as progress:
        for plan in plans:
            one = adopt(plan, workshops[plan.trunk], settings, work, rows, data, progress)
            click.echo(f"{plan.name}: agreement {one.agreement:.3f}", err=True)
            (study / "models").mkdir(parents=True, exist_ok=True)
            shutil.copy(work / "models" / plan.name / ABOUT, study / "models" / f"{plan.name}.json")
            atomic_write_text(study / "records" / f"{plan.name}.json", published(one))
        adopted = read_records(study)
        # Costs of other heads are none of these.
        (study / "costs.json").unlink(missing_ok=True)
        cost = None
        if not no_costs:
            cost = measure_costs(adopted, work, progress)
            atomic_write_text(study / "costs.json", cost.model_dump_json(indent=1) + "\n")
    found = summary(adopted, cost)
    atomic_write_text(study / "summary.json", json.dumps(found, indent=1) + "\n")
    atomic_write_text(study / "README.md", report(adopted, cost, found))
    click.echo(report(adopted, cost, found))


def published(one: AdoptedModel) -> str:
    """A record without the paths of this machine, and without texts: some of the data may not be passed on."""
    changed = one.model_copy(
        update={"source": Path(one.source).name, "texts": Path(one.texts).name, "differences": (), "notes": ()}
    )
    return changed.model_dump_json(indent=1) + "\n"


if __name__ == "__main__":
    main()
