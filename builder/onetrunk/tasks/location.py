"""Where a task's data are: a file that may lie beside the task file, under a data root or in a shared folder."""

from __future__ import annotations

import os
from pathlib import Path

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.task import Split, Task

DATA_VARIABLE = "ONETRUNK_DATA"
HUB_PREFIX = "hub:"


def locate(task: Task, split: Split, data_root: Path | None = None) -> Path | str:
    """The file of a split, or its ``hub:`` address as it is.

    A relative file is looked for under ``data_root`` (or else the variable ONETRUNK_DATA), then beside the task file,
    then in a folder ``shared`` beside any folder above it, so that checkouts can share one copy of the data.

    Raises:
        UserError: there is no such file; the message has all places that were looked at.
    """
    location: str = getattr(task, split)
    if location.startswith(HUB_PREFIX):
        return location
    roots = _roots(task.folder.resolve(), data_root)
    # An absolute location stays itself, whatever it is joined to.
    places = list(dict.fromkeys(root / location for root in roots))
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places[:4]) + (", ..." if len(places) > 4 else "")
    raise UserError(
        f"task {task.name}: no {split} data {location!r}; looked for {looked}; "
        f"give the folder by --data or {DATA_VARIABLE}"
    )


def _roots(folder: Path, data_root: Path | None) -> list[Path]:
    variable = os.environ.get(DATA_VARIABLE)
    given = data_root or (Path(variable) if variable else None)
    above = [parent / "shared" for parent in (folder, *folder.parents)]
    return [*([given] if given else []), folder, *above]
