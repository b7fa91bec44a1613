"""Old spellings: ``train-head --search``, ``--plan`` and ``--report`` are answered with the search-heads command."""

from __future__ import annotations

import shlex
import sys

import click

# Options of the paper's study: each is a command of its own in a checkout of the project.
_STUDY_COMMANDS = ("--seeds", "--grid", "--ablation")
# Options that these commands take as search-heads run does. Only --skip-bad-rows has no value.
_SHARED = (
    "--study",
    "--jobs",
    "--max-length",
    "--trunk",
    "--task-dir",
    "--data",
    "--cache",
    "--device",
    "--precision",
    "--skip-bad-rows",
)


class OldSpellings(click.Command):
    """A command that ends with exit code 2 and the new spelling of an old one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, unless they are an old spelling."""
        new = new_spelling(args)
        if new is not None:
            click.echo(f"error: this is a command of its own: {new}", err=True)
            sys.exit(2)
        return super().parse_args(ctx, args)


def new_spelling(arguments: list[str]) -> str | None:
    """Return the command that does what ``--search``, ``--plan`` or ``--report`` asks of train-head.

    Args:
        arguments: The arguments as typed.

    Returns:
        The new command, or None where the arguments are no old spelling.
    """
    words: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        words += [name, value] if equals and name.startswith("--") else [argument]
    if "--report" in words:
        words.remove("--report")
        return shlex.join(["search-heads", "report", *words])
    if "--plan" in words:
        plan = _take_option(words, "--plan")
        # A plan is made whole: its tasks are not named.
        if _value_of(words, "--tasks") == ["all"]:
            _take_option(words, "--tasks")
        return shlex.join(["search-heads", "make", *plan, *words])
    if "--search" in words:
        words.remove("--search")
        study = {option: _take_option(words, option) for option in _STUDY_COMMANDS}
        commands = [["search-heads", "run", *words]]
        for option, given in study.items():
            if given:
                chosen = ["--tasks", "all", option, *given] if option == "--seeds" else ["--tasks", *given]
                command = option.removeprefix("--")
                commands.append(["python", "-m", "benchmarks.study", command, *chosen, *_shared_options(words)])
        return " && ".join(shlex.join(command) for command in commands)
    return None


def _value_of(words: list[str], option: str) -> list[str]:
    """Return the value of an option as a list of one word, empty where the option is not given."""
    return words[words.index(option) + 1 :][:1] if option in words else []


def _take_option(words: list[str], option: str) -> list[str]:
    """Remove an option and its value from the words, and return the value as ``_value_of`` does."""
    value = _value_of(words, option)
    if option in words:
        place = words.index(option)
        del words[place : place + 2]
    return value


def _shared_options(words: list[str]) -> list[str]:
    shared: list[str] = []
    for option in _SHARED:
        if option in words:
            shared += [option] if option == "--skip-bad-rows" else [option, *_value_of(words, option)]
    return shared
