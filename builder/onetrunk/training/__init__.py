"""Training heads on a frozen trunk: states cached once, the plain recipe, bundles."""

from onetrunk.training.result import TrainResult
from onetrunk.training.run import train

__all__ = ["TrainResult", "train"]
