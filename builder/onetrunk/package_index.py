"""The package index, which pip reads: it knows the user's index, proxy and certificates."""

from __future__ import annotations

import importlib.util

from onetrunk.protocol.errors import OneTrunkError


def check_pip(what: str) -> None:
    """Check that pip is there.

    Args:
        what: What is to be fetched, for the message.

    Raises:
        OneTrunkError: It is not.
    """
    if importlib.util.find_spec("pip") is None:
        raise OneTrunkError(f"{what}: pip is needed to fetch it, and is not installed in this environment")


def pip_failure(what: str, log: str) -> str:
    """Return in one line why pip failed, and what to do.

    Args:
        what: What was to be fetched.
        log: What pip said.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if "DO NOT MATCH THE HASHES" in log:
        return f"{what}: the file of the package index has another SHA-256 than is known: it is not used"
    if "No space left" in log:
        return f"{what}: the disk is full: make room, or set ONETRUNK_CACHE to a folder on another disk"
    reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no reason")
    return (
        f"{what}: pip could not download it: {reason.removeprefix('ERROR: '):.200}; check the network and the package "
        "index, and give the same command again"
    )
