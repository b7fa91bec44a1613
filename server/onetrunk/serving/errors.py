"""What can go wrong while serving. Each message is one line that a user can act on."""

from __future__ import annotations


class ServerError(Exception):
    """Serving failed: a model would not load, a port is taken, Triton died."""

    exit_code = 1


class UserError(ServerError):
    """What the user gave cannot be served: an empty repository, a broken config, an unknown host."""

    exit_code = 2


class PortTakenError(ServerError):
    """Another process listens where Triton should."""
