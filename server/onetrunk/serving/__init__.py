"""A real Triton without Docker: `with Server("model_repository") as server: ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onetrunk.protocol.errors import OneTrunkError, ServerError, UserError

if TYPE_CHECKING:
    from onetrunk.serving.launcher import Server

__all__ = ["OneTrunkError", "Server", "ServerError", "UserError"]


def __getattr__(name: str) -> Any:
    # `serve-repo --help` must not pay for gRPC: the launcher is imported when it is used.
    if name == "Server":
        from onetrunk.serving.launcher import Server

        return Server
    raise AttributeError(f"module 'onetrunk.serving' has no attribute {name!r}")
