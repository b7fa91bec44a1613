"""How errors end commands."""

import click
import pytest
from click.testing import CliRunner

from onetrunk.protocol.command import errors_end_command, printable
from onetrunk.protocol.errors import ServerError


@pytest.mark.hostile
def test_what_a_server_says_commands_no_terminal():
    @click.command()
    def command():
        with errors_end_command():
            raise ServerError("refused: \x1b]0;title\x07\x9b2J, naïve 😀")

    done = CliRunner().invoke(command)
    assert done.exit_code == 1
    assert done.output == "error: refused: ?]0;title??2J, naïve 😀\n"
    assert printable("a\tb\nc") == "a\tb\nc"
