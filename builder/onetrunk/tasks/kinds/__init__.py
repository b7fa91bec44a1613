"""The kinds of task, by name. A new kind is one new file in this folder and one line here."""

from __future__ import annotations

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.kinds.base import AnswerSpace, Kind
from onetrunk.tasks.kinds.classification import Classification
from onetrunk.tasks.kinds.multilabel import Multilabel
from onetrunk.tasks.kinds.regression import Regression
from onetrunk.tasks.kinds.tagging import Tagging

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Classification(), Regression(), Multilabel(), Tagging())}


def get_kind(name: str) -> Kind:
    """The kind of this name. Raises UserError with the known ones."""
    if name not in KINDS:
        raise UserError(f"kind {name!r} is not known; known are: {', '.join(KINDS)}")
    return KINDS[name]


__all__ = ["KINDS", "AnswerSpace", "Kind", "get_kind"]
