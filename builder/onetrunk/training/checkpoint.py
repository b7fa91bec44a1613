"""What is left of a training that was killed, so that it goes on after its last whole epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from onetrunk.files import atomic_write
from onetrunk.training.fitting import FitState


class Checkpoint:
    """One training's state on disk. Its name holds a hash over all that the result depends on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, state: FitState) -> None:
        """Writes the state; the last one is there until this one is whole. Raises OneTrunkError where that fails."""
        with atomic_write(self._path) as aside:
            torch.save({field.name: getattr(state, field.name) for field in dataclasses.fields(state)}, aside)

    def load(self) -> FitState | None:
        """The state to go on from; None where there is none, or none that can be read."""
        try:
            # weights_only: tensors and plain values, no code.
            return FitState(**torch.load(self._path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            return None
        except Exception:  # torch raises many kinds for a broken file; whatever it is, training can begin anew
            self.remove()
            return None

    def remove(self) -> None:
        """Removes it, once it is of no more use."""
        self._path.unlink(missing_ok=True)
