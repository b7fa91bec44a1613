"""A server that may not have its connections open says so at once; a low soft limit is raised."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.hostile

SCRIPT = """
import resource, sys
from onetrunk.protocol.errors import UserError
from onetrunk.serving.open_files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    allow_open_files(1024)
except UserError as error:
    print(error)
else:
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def after(soft: int, hard: int) -> str:
    command = [sys.executable, "-c", SCRIPT, str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("soft", "hard", "raised"), [(64, 2048, 2048), (1280, 1280, 1280), (256, 4096, 4096)])
def test_the_soft_limit_is_raised(soft: int, hard: int, raised: int) -> None:
    assert after(soft, hard) == f"{raised} {hard}"


def test_too_few_are_refused_with_what_is_needed() -> None:
    found = after(64, 512)
    assert found.startswith("a process may have 512 files open, and 1,024 connections need 1,280: raise the limit (")
    assert len(found.splitlines()) == 1
