"""Training of heads on a frozen trunk, whose hidden states are computed once per text and cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.training.bundles import train
    from onetrunk.training.results import TrainResult

__all__ = ["TrainResult", "train"]


def __getattr__(name: str) -> Any:
    # Imported on first use: importing a module of this package for its types needs no torch.
    if name == "train":
        from onetrunk.training.bundles import train

        return train
    if name == "TrainResult":
        from onetrunk.training.results import TrainResult

        return TrainResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
