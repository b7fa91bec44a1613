"""Training heads on a frozen trunk: states cached once, the plain recipe, bundles."""

from builder.training.result import TrainResult
from builder.training.run import train

__all__ = ["TrainResult", "train"]
