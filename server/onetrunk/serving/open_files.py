"""How many files the processes of a server may have open: a connection is one of them."""

from __future__ import annotations

import resource

from onetrunk.protocol.errors import UserError

# What a process needs beside its connections: libraries, logs, pipes, and sockets between front and Triton.
OWN_FILES = 256
# Some programs go through all numbers that a file can have, so the limit is not raised as far as it goes.
WANTED = 65_536


def allow_open_files(connections: int) -> None:
    """Let this process, and those that it starts, have so many connections open.

    The soft limit, 1,024 on most systems, is raised. With too few files, Triton does not start and does not say why.

    Args:
        connections: The connections that the front accepts.

    Raises:
        UserError: The hard limit, which only root may raise, is too low.
    """
    needed = connections + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if hard != unlimited and hard < needed:
        raise UserError(
            f"a process may have {hard:,} files open, and {connections:,} connections need {needed:,}: raise the limit "
            f"(ulimit -Hn {needed}, LimitNOFILE= of systemd, or --ulimit nofile={needed} of docker run)"
        )
    wanted = WANTED if hard == unlimited else min(hard, WANTED)
    if soft != unlimited and soft < max(wanted, needed):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, needed), hard))
