"""The registry of the kinds of task. A new kind is one new file in this folder and one line here."""

from __future__ import annotations

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.kinds.base import Kind, KindConfig
from onetrunk.tasks.kinds.classification import CLASSIFICATION
from onetrunk.tasks.kinds.embedding import EMBEDDING
from onetrunk.tasks.kinds.multilabel import MULTILABEL
from onetrunk.tasks.kinds.regression import REGRESSION
from onetrunk.tasks.kinds.tagging import TAGGING

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CLASSIFICATION, REGRESSION, MULTILABEL, TAGGING, EMBEDDING)}


def get_kind(name: str) -> Kind:
    """Return the kind of this name.

    Raises:
        UserError: There is no such kind; the message names those that there are.
    """
    if name not in KINDS:
        raise UserError(f"kind {name!r} is not known; allowed are {', '.join(KINDS)}")
    return KINDS[name]


__all__ = ["KINDS", "Kind", "KindConfig", "get_kind"]
