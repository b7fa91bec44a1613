"""What a command prints where the terminal lacks characters: labels are in every language."""

import os
import subprocess
import sys

CODE = """
import click
from onetrunk.cli.console import print_table
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
with errors_end_command():
    click.echo("gr\\u00fcn")
    print_table(("label",), [("gr\\u00fcn",)])
    raise UserError("no label gr\\u00fcn")
"""


def test_labels_are_printed_as_escapes_under_an_ascii_locale():
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    env.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr.decode()
    # click writes UTF-8 where the locale has no encoding; all else writes escapes.
    assert [line.strip() for line in done.stdout.splitlines()] == ["grün".encode(), b"label", rb"gr\xfcn"]
    assert done.stderr.strip() == "error: no label grün".encode()
