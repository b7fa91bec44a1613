"""Training of heads on a frozen trunk, whose hidden states are computed once per text and cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onetrunk.training.bundles import train
    from onetrunk.training.experiment import ExperimentConfig
    from onetrunk.training.refitting import RefitResult, refit
    from onetrunk.training.results import TrainResult

__all__ = ["ExperimentConfig", "RefitResult", "TrainResult", "refit", "train"]


def __getattr__(name: str) -> Any:
    # Imported on first use: what a module of this package needs for types alone must not import torch.
    if name == "train":
        from onetrunk.training.bundles import train

        return train
    if name == "ExperimentConfig":
        from onetrunk.training.experiment import ExperimentConfig

        return ExperimentConfig
    if name == "TrainResult":
        from onetrunk.training.results import TrainResult

        return TrainResult
    if name in ("RefitResult", "refit"):
        from onetrunk.training import refitting

        return getattr(refitting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
