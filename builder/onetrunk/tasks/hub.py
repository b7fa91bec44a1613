"""Data of a Hugging Face hub: ``hub:DATASET/CONFIG``, through the package ``datasets`` where it is installed."""

from __future__ import annotations

import re

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.location import HUB_PREFIX
from onetrunk.tasks.records import Record, Records
from onetrunk.tasks.task import Split

_SPLITS = {"train": "train", "dev": "validation"}
_ADDRESS = re.compile(r"(?P<dataset>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))(#(?P<split>[\w.-]+))?")


def read_hub(address: str, split: Split) -> Records:
    """The rows of a data set, with labels by their names where the data set knows them.

    Args:
        address: ``hub:DATASET/CONFIG`` or ``hub:OWNER/DATASET/CONFIG``, with ``#SPLIT`` behind it where the split is
            not the usual ``train`` or ``validation``. A data set without configurations has the one named ``default``.
        split: which of the task's data it is.

    Raises:
        UserError: the address is none, ``datasets`` is not installed, or the hub did not give the data.
    """
    match = _ADDRESS.fullmatch(address.removeprefix(HUB_PREFIX))
    if match is None:
        raise UserError(f"{address}: give hub:DATASET/CONFIG or hub:OWNER/DATASET/CONFIG, and #SPLIT if need be")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{address}: needs the package datasets: pip install -e '.[hub]' in the checkout") from None
    try:
        rows = datasets.load_dataset(match["dataset"], match["config"], split=match["split"] or _SPLITS[split])
    except Exception as error:  # the package raises many kinds, from network to unknown names
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{address}: the hub did not give it: {reason}") from error
    names = {field: feature.names for field, feature in rows.features.items() if hasattr(feature, "names")}
    for number, row in enumerate(rows, start=1):
        for field, known in names.items():
            # A hub marks rows without a label by -1; left as it is, it is told as an unknown label.
            if isinstance(row[field], int) and 0 <= row[field] < len(known):
                row[field] = known[row[field]]
        yield Record(number, dict(row))
