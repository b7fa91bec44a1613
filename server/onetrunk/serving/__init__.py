"""A real Triton without Docker: `with Server("model_repository") as server: ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.serving.errors import ServerError, UserError
    from onetrunk.serving.launcher import Server

__all__ = ["Server", "ServerError", "UserError"]


def __getattr__(name: str) -> Any:
    # `serve-repo --help` and a look at the errors must not pay for gRPC: the launcher is imported when it is used.
    if name == "Server":
        from onetrunk.serving.launcher import Server

        return Server
    if name in ("ServerError", "UserError"):
        from onetrunk.serving import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'onetrunk.serving' has no attribute {name!r}")
