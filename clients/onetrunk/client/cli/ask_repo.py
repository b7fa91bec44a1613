"""The command ``ask-repo``."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onetrunk.client.cli.options import START_A_SERVER, check_tls, first_key, key_errors, names
from onetrunk.client.client import Client
from onetrunk.client.display import answer_record, answer_table, task_record, task_table
from onetrunk.client.lines import BadLine, Line, answer_lines, is_plain, open_lines, read_lines
from onetrunk.protocol.api_key import api_key_file_option
from onetrunk.protocol.command import errors_end_command, is_unicode, print_on_stdout
from onetrunk.protocol.errors import BadInput, counted
from onetrunk.protocol.tls import Tls, tls_options

# So many broken lines are named; further ones are only counted.
NAMED_LINES = 20


_EPILOG = """\b
Examples:
  ask-repo "A gripping film from start to end."
  ask-repo "How old is he?" --pair "What is his age?" --tasks qqp,stsb
  ask-repo --file texts.jsonl > answers.jsonl
  tail -f log.txt | ask-repo --file - --tasks sst2
  ask-repo --list

A line of JSON has the field "text" or "sentence", and for a pair "text_pair" or "sentence2". Instead of a text it may
have a list of words, "tokens", which are joined by blanks.

\b
Exit codes: 0 all answered; 1 the server failed; 2 some input could not be answered."""


@click.command(epilog=_EPILOG)
@click.argument("texts", nargs=-1)
@click.option("--pair", "pairs", multiple=True, help="Second text of a pair; once for each text.")
@click.option(
    "--file", "file", metavar="FILE", help="Read rows from .jsonl, .txt, also .gz, or stdin (-); write JSON lines."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "jsonl", "text"]),
    default="auto",
    show_default=True,
    help="How --file is written; auto goes by its name, or on stdin by the first line.",
)
@click.option(
    "--tasks",
    metavar="A,B",
    callback=names,
    help="Only these; no other head runs on the server. [default: all that fit, but no embedding]",
)
@click.option(
    "--top", type=click.IntRange(min=1), help="How many labels to give. [default: 1 in the table, all in JSON]"
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON lines in place of a table.")
@click.option("--list", "list_tasks", is_flag=True, help="Show the tasks that the server has.")
@click.option(
    "--url",
    default="127.0.0.1:8001",
    show_default=True,
    help="Host and port of the server's gRPC endpoint; of several with commas, or dns:///NAME:PORT.",
)
@tls_options
@api_key_file_option("Send the first key of this file, to a server that asks for one; mode 0600.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds for the answer, retries included; with --file, for each few hundred lines.",
)
def ask_repo(
    texts: tuple[str, ...],
    pairs: tuple[str, ...],
    file: str | None,
    form: str,
    tasks: tuple[str, ...] | None,
    top: int | None,
    as_json: bool,
    list_tasks: bool,
    url: str,
    tls: Tls | None,
    api_key_file: Path | None,
    timeout_s: float,
) -> None:
    """Ask a running server about TEXTS, with all tasks that fit or those named."""
    if sum([bool(texts or pairs), file is not None, list_tasks]) != 1:
        raise click.UsageError("give either TEXTS, or --file (- for stdin), or --list")
    if pairs and len(pairs) != len(texts):
        raise click.UsageError(
            f"{len(pairs)} --pair for {counted(len(texts), 'text', 'texts')}: give --pair once for each text, or not "
            "at all"
        )
    if file is not None and file.removesuffix(".gz").endswith((".csv", ".tsv")):
        raise click.UsageError(
            f"--file {file}: CSV and TSV cannot be read; give JSON lines, or .txt with one text a line"
        )
    # Twice, so that an error is printed before the client waits for requests in flight.
    with (
        errors_end_command(if_not_ready=START_A_SERVER),
        Client(url, timeout_s=timeout_s, retries=3, tls=tls, api_key=first_key(api_key_file)) as client,
        errors_end_command(if_not_ready=START_A_SERVER),
        key_errors(api_key_file),
    ):
        check_tls(url, tls)
        if list_tasks:
            _list(client, tasks, as_json=as_json)
        elif file is not None:
            bad = _ask_file(client, file, form, tasks, top)
            if bad:
                sys.exit(2)
        else:
            _ask_texts(client, texts, pairs or None, tasks, top, as_json=as_json)


def _list(client: Client, tasks: Sequence[str] | None, *, as_json: bool) -> None:
    catalogue = client.catalogue()
    listed = catalogue.named(tasks or catalogue.tasks)
    if as_json:
        _write_json([task_record(task) for task in listed])
    else:
        print_on_stdout(task_table(listed))


def _ask_texts(
    client: Client,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tasks: Sequence[str] | None,
    top: int | None,
    *,
    as_json: bool,
) -> None:
    _check_form(client, pairs, tasks)
    try:
        answers = client.predict(texts, pairs, tasks)
    except BadInput as error:
        if len(texts) > 1 or error.problems[0].row is None:
            raise
        raise BadInput([replace(problem, row=None) for problem in error.problems]) from error
    lines = [Line(at + 1, text, pairs[at] if pairs else None) for at, text in enumerate(texts)]
    if as_json:
        _write_json(
            answer_record(line, answer, top=top, numbered=False) for line, answer in zip(lines, answers, strict=True)
        )
    else:
        print_on_stdout(answer_table(zip(lines, answers, strict=True), top=top or 1))


def _check_form(client: Client, pairs: Sequence[str] | None, tasks: Sequence[str] | None) -> None:
    """Check that the texts can ask the tasks, as the client does, which knows no option.

    Raises:
        BadInput: A task that is named reads texts of the other form, or all tasks that there are do.
    """
    catalogue = client.catalogue()
    asked = catalogue.named(tasks or catalogue.tasks)
    others = [task.name for task in asked if task.form != ("pair" if pairs else "single")]
    if others and (tasks or len(others) == len(asked)):
        what = "one text: leave --pair out" if pairs else "a pair: give its second text by --pair"
        raise BadInput.of_call(f"task {others[0]!r} reads {what}")


def _ask_file(client: Client, file: str, form: str, tasks: Sequence[str] | None, top: int | None) -> int:
    """Stream a file's answers to stdout; return the number of lines that could not be answered."""
    raw, lines = _open(file, form)
    name = "stdin" if file == "-" else file
    console = Console(stderr=True, highlight=False)
    answered = bad = 0
    began = time.monotonic()
    with raw, _progress(console) as progress:
        bar = progress.add_task(name, total=Path(file).stat().st_size if file != "-" else None, lines=0)
        for result in answer_lines(client, lines, tasks):
            if isinstance(result, BadLine):
                bad += 1
                if bad <= NAMED_LINES:
                    progress.console.print(f"{name}:{result.number}: {result.reason}", markup=False, soft_wrap=True)
            else:
                answered += 1
                _write_json([answer_record(*result, top=top, numbered=True)])
            progress.update(bar, completed=raw.tell() if file != "-" else answered, lines=answered + bad)
    if bad > NAMED_LINES:
        console.print(f"{name}: ... and {bad - NAMED_LINES:,} more", markup=False, soft_wrap=True)
    seconds = time.monotonic() - began
    rate = f"{seconds:.1f} s ({answered / seconds:,.0f} a second)"
    console.print(f"{counted(answered, 'row', 'rows')} answered, {bad:,} could not be, in {rate}")
    return bad


def _open(file: str, form: str) -> tuple[BinaryIO, Iterator[Line | BadLine]]:
    if file == "-":
        # The caller closes what it gets; the process's stdin stays open.
        return io.BytesIO(), read_lines(sys.stdin.buffer, plain=None if form == "auto" else form == "text")
    path = Path(file)
    try:
        raw, content = open_lines(path)
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from None
    return raw, read_lines(content, plain=is_plain(path) if form == "auto" else form == "text")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[lines]:,} lines"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Rich would send output to stdout through its own console, which is stderr.
        redirect_stdout=False,
        disable=not console.is_terminal or sys.stdout.isatty(),
    )


def _write_json(records: Any) -> None:
    for record in records:
        sys.stdout.write(json.dumps(record, ensure_ascii=not is_unicode(sys.stdout)) + "\n")
    # A reader at the other end of a pipe expects each line at once.
    sys.stdout.flush()
