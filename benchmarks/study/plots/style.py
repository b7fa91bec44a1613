"""How all plots look, and how they are written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onetrunk.protocol.errors import UserError

# One colour for one thing, in all plots; distinguishable without red and green (Okabe and Ito).
FULL = "#444444"
TEACHER = "#0072B2"
STUDENTS = ("#D55E00", "#E69F00", "#CC79A7", "#8C510A")
PROBE = "#009E73"
CHOSEN = "#D55E00"
TRUNK = "#0072B2"
HEADS = "#E69F00"
OVERHEAD = "#999999"

_DOTS_PER_INCH = 110
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@contextmanager
def style() -> Iterator[None]:
    """The style, for what is drawn within, whatever a user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def write_plot(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all; the same figure gives the same bytes. Raises UserError where that fails."""
    image = io.BytesIO()
    # Software is the library's version, which would make the same plot another file.
    figure.savefig(image, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(image.getvalue())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error}") from error


def whole_ticks(axes: Axes, first: int, last: int) -> None:
    """A tick at every whole number of an axis that counts something."""
    axes.set_xticks(range(first, last + 1))
    axes.set_xlim(first - 0.4, last + 0.4)
