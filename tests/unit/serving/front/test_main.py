"""The front as a process: it takes its settings from one line, however long that is."""

import subprocess
import sys

from onetrunk.protocol.admin_key import MAX_KEY_BYTES
from onetrunk.serving.front.settings import FrontSettings
from tests.fixtures.ports import free_ports


def test_as_many_and_as_long_keys_as_are_allowed_fit_into_the_settings():
    keys = tuple(f"{number:03}".ljust(MAX_KEY_BYTES, "k") for number in range(1000))
    settings = FrontSettings(host="127.0.0.1", **free_ports(), api_keys=keys)
    front = subprocess.run(
        [sys.executable, "-m", "onetrunk.serving.front"],
        input=settings.line(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (front.returncode, front.stderr) == (0, "")
