"""``adopt-models``: fine-tuned classifiers in, heads on one trunk out, and a report on both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onetrunk.cli.console import print_table, progress_line
from onetrunk.cli.data_options import TRUNK_HELP, TRUNK_METAVAR
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import counted

if TYPE_CHECKING:
    from onetrunk.adopt.classifier import Adoptable
    from onetrunk.adopt.records import AdoptedModel, AdoptSettings
    from onetrunk.adopt.request import ModelRequest
    from onetrunk.adopt.serving_cost import ServingCost

_EPILOG = """\b
Examples:
  adopt-models models/spam models/topic --texts traffic.txt
  adopt-models spam=org/bert-spam --texts log.csv --text-field message
  adopt-models spam=a pairs=b --texts spam=mail.txt --texts pairs=pairs.jsonl \\
      --dev spam=labelled.csv
  adopt-models urgency=said.jsonl              what a language model said about texts

\b
MODEL is a folder that save_pretrained has written, or a hub id, with a classifier of
texts or of tokens; NAME=MODEL names its task. Options with [NAME=] are for all models,
or for the one that is named. Weights are read from safetensors only, and a model that
brings code of its own is refused. A file of soft labels takes the place of a model
and of its texts.

\b
Exit codes: 0 every head reaches the floor; 1 one misses it (its bundle is written), or
something failed; 2 what was given is wrong. What was killed goes on when the same
command is given again. Next: build-repo --heads adopted/heads --tasks all."""


@click.command(epilog=_EPILOG)
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option(
    "--texts",
    "texts",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Texts without labels, such as traffic: one a line of .txt, or a column of CSV, JSON lines or Parquet.",
)
@click.option(
    "--dev", multiple=True, metavar="[NAME=]FILE", help="Labelled texts, on which model and head are measured."
)
@click.option("--trunk", metavar=TRUNK_METAVAR, help=f"The frozen encoder that all heads share. {TRUNK_HELP}")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="adopted",
    show_default=True,
    help="The folder for heads, records and report.html.",
)
@click.option(
    "--form",
    multiple=True,
    metavar="[NAME=]single|pair",
    help="Whether it reads one text or two. [default: as the texts are]",
)
@click.option(
    "--kind", multiple=True, metavar="[NAME=]KIND", help="The kind of a task, where config.json lacks it or is wrong."
)
@click.option("--labels", multiple=True, metavar="[NAME=]A,B", help="Names of the outputs, in place of config.json's.")
@click.option(
    "--range",
    "ranges",
    multiple=True,
    metavar="[NAME=]LOW,HIGH",
    help="The least and the greatest number of a regression. [default: of its answers]",
)
@click.option("--text-field", metavar="COLUMN", help="The column of the text. [default: text, sentence, ...]")
@click.option("--pair-field", metavar="COLUMN", help="The column of the second text. [default: sentence2, ...]")
@click.option(
    "--label-field",
    metavar="COLUMN",
    default="label",
    show_default=True,
    help="The column of labels, of --dev and of a file of soft labels.",
)
@click.option(
    "--floor",
    type=click.FloatRange(0, 2, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of the model's own score that a head keeps, where there are labels.",
)
@click.option(
    "--agreement",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.97,
    show_default=True,
    help="Share of texts that both answer alike (of a number, the correlation), where there are none.",
)
@click.option(
    "--divergence",
    type=click.FloatRange(0, min_open=True),
    default=0.1,
    show_default=True,
    help="Greatest mean divergence of the probabilities, in nats, where there are no labels.",
)
@click.option("--thorough", is_flag=True, help="Where the floor is missed, try heads of nearly all layers, too.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the texts. [default: 4; one-layer heads 12]")
@click.option(
    "--variants",
    type=click.IntRange(0, 100),
    help="Copies of each text, with words left out and replaced, that heads learn from as well; each takes as long as "
    "the texts. [default: up to 4, so that there are about 10,000]",
)
@click.option("--max-length", type=click.IntRange(3), help="Longest text of a head in tokens. [default: 128]")
@click.option("--seed", type=click.IntRange(0), help="The random seed. [default: 0]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="How many processes run a model.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for hidden states and what models said. [default: $ONETRUNK_CACHE, or ~/.cache/onetrunk]",
)
@click.option("--skip-bad-rows", is_flag=True, help="Leave out rows of texts that cannot be used, and say how many.")
@click.option("--no-costs", is_flag=True, help="Do not measure what serving costs.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def adopt_models(models: tuple[str, ...], output: Path, as_json: bool, **options: Any) -> None:
    """Replace fine-tuned classifiers by heads on one trunk.

    Each MODEL labels texts, and a head on the trunk learns to answer as it does: the cheapest heads are tried first,
    until one reaches the floor. The report says how far each head agrees with its model, and what serving costs both
    ways.
    """
    with errors_end_command():
        requests = _requests(models, options)
        adopted, cost = _adopt(requests, output, options)
        _print(adopted, cost, output, as_json)
        missed = [one.name for one in adopted if not one.reached]
        if missed:
            click.echo(
                f"{', '.join(missed)}: the floor was missed; more texts help most, and --thorough tries heads of "
                "nearly all layers",
                err=True,
            )
            sys.exit(1)


def _requests(models: Sequence[str], options: dict[str, Any]) -> list[ModelRequest]:
    """Check what was given, and read models' configurations and texts, before any model is run."""
    from onetrunk.adopt.request import ModelRequest
    from onetrunk.adopt.said import SaidFile
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks.text_file import read_texts

    named = _names_of(models)
    of = {key: _by_name(f"--{key}", options[key], named) for key in ("texts", "dev", "form", "kind", "labels")}
    of["range"] = _by_name("--range", options["ranges"], named)
    own_texts = {_split_name(one)[0] for one in options["texts"]}
    read = {}
    requests = []
    for name, source in named.items():
        given = {key: values.get(name) for key, values in of.items()}
        form = _one_of("--form", given["form"], ("single", "pair"))
        classifier, file = _open_model(name, source, given, options["label_field"], has_own_texts=name in own_texts)
        if classifier.by_token:
            form = "single"
        if (file, form) not in read:
            read[file, form] = read_texts(
                Path(file),
                form=form,  # type: ignore[arg-type]
                text_field=options["text_field"],
                pair_field=options["pair_field"],
                skip_bad_rows=options["skip_bad_rows"],
            )
        dev = given["dev"]
        if dev is not None and not Path(dev).exists():
            raise UserError(f"{dev}: no such file of labelled texts")
        request = ModelRequest(
            classifier=classifier,
            texts=read[file, form],
            dev=None if dev is None else Path(dev),
            label_field=options["label_field"],
            text_field=options["text_field"],
            pair_field=options["pair_field"],
            skip_bad_rows=options["skip_bad_rows"],
            range=_range("--range", given["range"]),
        )
        # A fault in the last model's data is told before the first model is run.
        request.labelled(request.task())
        if isinstance(classifier, SaidFile):
            classifier.teacher(request.task(), skip_bad_rows=request.skip_bad_rows)
        requests.append(request)
    if options["texts"] and all(isinstance(one.classifier, SaidFile) for one in requests):
        raise UserError("--texts: no model reads them; a file of soft labels brings its own")
    return requests


def _names_of(models: Sequence[str]) -> dict[str, str]:
    """Return the models by their names."""
    from onetrunk.adopt.classifier import check_name, name_of
    from onetrunk.protocol.errors import UserError

    named: dict[str, str] = {}
    for model in models:
        given, source = _split_name(model)
        name = check_name(given) if given is not None else name_of(source)
        if name in named:
            raise UserError(f"two models are named {name}: name them as NAME=MODEL")
        named[name] = source
    return named


def _open_model(
    name: str, source: str, given: Mapping[str, str | None], label_field: str, *, has_own_texts: bool
) -> tuple[Adoptable, str]:
    """Return a model, or a file of soft labels in the place of one, and the file of its texts."""
    from onetrunk.adopt.classifier import open_classifier
    from onetrunk.adopt.said import open_said_file
    from onetrunk.nn.trunk_source import HUB_ID
    from onetrunk.protocol.errors import UserError
    from onetrunk.tasks.formats import is_data_name

    kind = _one_of("--kind", given["kind"], ("classification", "multilabel", "regression"))
    labels = given["labels"].split(",") if given["labels"] is not None else None
    if not Path(source).exists() and is_data_name(source):
        raise UserError(f"{source}: no such file of soft labels")
    if not Path(source).is_file():
        file = given["texts"] or ""
        if not file and (Path(source).exists() or HUB_ID.fullmatch(source)):
            raise UserError(f"--texts: none for {name}: give --texts {name}=FILE, or a file for all")
        return open_classifier(source, name=name, kind=kind, labels=labels), file
    # It brings its texts; the file for all is for models.
    if has_own_texts:
        raise UserError(f"--texts {name}=...: {source} is a file of soft labels, which brings its own texts")
    if kind == "regression" and given["range"] is None:
        raise UserError(f"{source}: give the range of its numbers, as in --range {name}=0,5")
    return open_said_file(Path(source), name=name, kind=kind, labels=labels, label_field=label_field), source


def _split_name(value: str) -> tuple[str | None, str]:
    """Return the name and the rest of ``NAME=VALUE``; a path may have the sign in it, too."""
    name, sign, rest = value.partition("=")
    return (name, rest) if sign and "/" not in name and not Path(value).exists() else (None, value)


def _by_name(option: str, values: Sequence[str], named: dict[str, str]) -> dict[str, str]:
    """Return the value of an option for each model: its own, or the one for all."""
    from onetrunk.protocol.errors import UserError

    found: dict[str, str] = {}
    for_all: str | None = None
    for value in values:
        name, rest = _split_name(value)
        if name is None:
            if for_all is not None:
                raise UserError(
                    f"{option}: {for_all:.60} and {rest:.60} are both for all models: give NAME= before one"
                )
            for_all = rest
        elif name not in named:
            raise UserError(f"{option} {value:.60}: no model is named {name}; there are: {', '.join(named)}")
        else:
            found[name] = rest
    return {name: found.get(name, for_all) for name in named if name in found or for_all is not None}  # type: ignore[misc]


def _one_of(option: str, value: str | None, allowed: Sequence[str]) -> str | None:
    from onetrunk.protocol.errors import UserError

    if value is not None and value not in allowed:
        raise UserError(f"{option} {value:.60}: allowed are {', '.join(allowed)}")
    return value


def _range(option: str, value: str | None) -> tuple[float, float] | None:
    from onetrunk.protocol.errors import UserError

    if value is None:
        return None
    try:
        low, high = (float(one) for one in value.split(","))
    except ValueError:
        raise UserError(f"{option} {value:.60}: give the lowest and the highest number, as in 0,5") from None
    return low, high


def _adopt(
    requests: Sequence[ModelRequest], output: Path, options: dict[str, Any]
) -> tuple[list[AdoptedModel], ServingCost | None]:
    # Imported here: --help needs no torch.
    from onetrunk.adopt.adoption import Workshop, adopt_model
    from onetrunk.adopt.page import page_of
    from onetrunk.adopt.serving_cost import measure_serving
    from onetrunk.files import atomic_write_text
    from onetrunk.nn.trunk import load_trunk

    settings = _settings(options)
    adopted = []
    with progress_line() as progress:
        workshop = Workshop(
            trunk=load_trunk(options["trunk"], progress, cache=options["cache"]),
            output=output,
            cache=options["cache"],
            device=options["device"],
            jobs=options["jobs"],
        )
        for number, request in enumerate(requests, start=1):
            one = adopt_model(request, workshop, settings, _counted(progress, number, len(requests)))
            click.echo(f"{one.name}: {_outcome(one)}", err=True)
            adopted.append(one)
        cost = None
        if not options["no_costs"]:
            cost = measure_serving(adopted, workshop.trunk, workshop.heads, cache=options["cache"], progress=progress)
            atomic_write_text(output / "costs.json", cost.model_dump_json(indent=1) + "\n")
        atomic_write_text(output / "report.html", page_of(adopted, cost))
    return adopted, cost


def _settings(options: dict[str, Any]) -> AdoptSettings:
    from onetrunk.adopt.records import AdoptSettings

    given = {key: options[key] for key in ("epochs", "variants", "max_length", "seed") if options[key] is not None}
    return AdoptSettings(
        kept=options["floor"],
        agreement=options["agreement"],
        divergence=options["divergence"],
        thorough=options["thorough"],
        **given,
    )


def _counted(progress: Callable[[str, int, int], None], number: int, total: int) -> Callable[[str, int, int], None]:
    return lambda what, done, whole: progress(f"model {number} of {total}, {what}", done, whole)


def _outcome(one: AdoptedModel) -> str:
    measure = "correlation" if one.agreement_measure == "correlation" else "agreement"
    return (
        f"{measure} {100 * one.agreement:.1f}, tap {one.tap}, {counted(one.layers, 'layer', 'layers')}, "
        f"{'the floor is reached' if one.reached else 'the floor is missed'}"
    )


def _print(adopted: Sequence[AdoptedModel], cost: ServingCost | None, output: Path, as_json: bool) -> None:
    from onetrunk.adopt.page import cost_rows, summary_rows

    if as_json:
        found = {
            "models": [one.model_dump(mode="json") for one in adopted],
            "costs": None if cost is None else cost.model_dump(mode="json"),
            "report": str(output / "report.html"),
        }
        click.echo(json.dumps(found, indent=1))
        return
    tables = [("adopted models", *summary_rows(adopted))]
    if cost is not None and cost.whole:
        tables.append((f"one text of {cost.tokens} tokens, one thread", *cost_rows(cost)))
    for title, columns, rows in tables:
        print_table(columns, rows, title=title, texts=("model",))
    for one in adopted:
        for note in one.notes:
            click.echo(f"note: {note}", err=True)
    click.echo(f"wrote {output / 'report.html'} and {output / 'heads'}")
