"""Old spellings: ``train-head --search``, ``--plan`` and ``--report`` are answered with the search-heads command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from onetrunk.cli.search_heads import search_heads

# Each step, as an option of train-head, and the search-heads command for it.
_COMMANDS = {"--search": "run", "--plan": "make", "--report": "report"}
# Options of the paper's study: each is a command of its own in a checkout of the project.
_STUDY_COMMANDS = ("--grid", "--ablation")
# Options that these commands take as search-heads run does.
_STUDY_OPTIONS = (
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
        message = None if ctx.resilient_parsing else answer_to_old_spelling(args, self)
        if message is not None:
            click.echo(f"error: {message}", err=True)
            sys.exit(2)
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class _Arguments:
    """Arguments as typed: the options with their values, and the words between them.

    Attributes:
        options: Each option with its value; the value is empty for a flag, and where it is missing.
        words: The words that are no options.
    """

    options: dict[str, tuple[str, ...]]
    words: tuple[str, ...]


def answer_to_old_spelling(arguments: Sequence[str], train_head: click.Command) -> str | None:
    """Return what to say to arguments of train-head that belong to search-heads.

    Args:
        arguments: The arguments as typed.
        train_head: The command they were given to.

    Returns:
        One line with what was found and the command to give instead; None where nothing belongs to search-heads.
    """
    given = _split(arguments, flags={*_flags(train_head), "--search", "--report"})
    if "--help" in given.options:
        return None
    steps = [name for name in given.options if name in _COMMANDS]
    if len(steps) > 1:
        commands = ", ".join(f"search-heads {_COMMANDS[step]}" for step in steps)
        return f"{' and '.join(steps)} are commands of their own: give one of them at a time: {commands}"
    if steps:
        return _new_spelling(steps[0], given)
    foreign = [_owner(name) for name in given.options if name not in _option_names(train_head)]
    found = [owner for owner in foreign if owner]
    return "; ".join(found) or None


def _new_spelling(step: str, given: _Arguments) -> str:
    """Return the search-heads command for one step, after the names of what it has no use for."""
    options, words = dict(given.options), list(given.words)
    name = _COMMANDS[step]
    study = {option: options.pop(option) for option in _STUDY_COMMANDS if step == "--search" and option in options}
    plan = options.pop(step)
    # An old search wrote no heads; a new one writes them with --quick alone.
    taken = _option_names(search_heads.commands[name]) - ({"--heads"} if step == "--search" else set())
    flags = _flags(search_heads.commands[name])
    for option, value in [*options.items(), *study.items()]:
        if not value and option in {*taken, *study} and option not in flags:
            return f"{option}: give a value after it"
    unused = [shlex.join([option, *value]) for option, value in options.items() if option not in taken]
    if step != "--search":
        unused += words
        words = list(plan)
    else:
        unused += [word for word in words if word.startswith("-")]
        words = [word for word in words if not word.startswith("-")]
    kept = {option: value for option, value in options.items() if option in taken}
    commands = [["search-heads", name, *words, *_flat(kept)]]
    shared = _flat({option: value for option, value in kept.items() if option in _STUDY_OPTIONS})
    for option, value in study.items():
        module = ["python", "-m", "benchmarks.study", option.removeprefix("--")]
        commands.append([*module, "--tasks", *value, *shared])
    new = " && ".join(shlex.join(command) for command in commands)
    if not unused:
        return f"{step} is a command of its own: {new}"
    have, them = ("has", "it") if len(unused) == 1 else ("have", "them")
    return (
        f"{step} is a command of its own; {', '.join(unused)} {have} no effect with search-heads {name}, "
        f"leave {them} out: {new}"
    )


def _owner(option: str) -> str | None:
    """Say which command has an option that train-head does not have; None where none has."""
    if option in _STUDY_COMMANDS:
        command = option.removeprefix("--")
        return f"{option} is a command of the study, in a checkout of OneTrunk: python -m benchmarks.study {command}"
    names = [name for name in _COMMANDS.values() if option in _option_names(search_heads.commands[name])]
    if not names:
        return None
    commands = ", ".join(f"search-heads {name}" for name in names)
    return f"{option} is an option of {commands}, and not of train-head: leave it out"


def _split(arguments: Sequence[str], *, flags: set[str]) -> _Arguments:
    """Split arguments into options with their values and other words; every option but a flag has a value."""
    options: dict[str, tuple[str, ...]] = {}
    words: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            words += left
            break
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            words.append(argument)
        elif equals:
            options[name] = (value,)
        elif name in flags or not left or (name == "--plan" and left[0].startswith("--")):
            options[name] = ()
        else:
            options[name] = (left.pop(0),)
    return _Arguments(options, tuple(words))


def _option_names(command: click.Command) -> set[str]:
    return {name for option in command.params if isinstance(option, click.Option) for name in option.opts}


def _flags(command: click.Command) -> set[str]:
    flags = [option for option in command.params if isinstance(option, click.Option) and option.is_flag]
    return {"--help", *(name for option in flags for name in option.opts)}


def _flat(options: dict[str, tuple[str, ...]]) -> list[str]:
    return [word for option, value in options.items() for word in (option, *value)]
