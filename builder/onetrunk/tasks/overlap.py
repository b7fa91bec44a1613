"""Texts that are in the train data and in the dev data as well: a head knows their labels before it is measured."""

from __future__ import annotations

from onetrunk.tasks.examples import Examples


def overlap_notes(train: Examples, dev: Examples) -> tuple[str, ...]:
    """How many dev rows have a text, or a pair of texts, that is in the train data; nothing where there is none.

    Texts are the same where they differ in blanks and in capital letters at most.
    """
    seen = {_plain(text) for text in train.texts}
    count = sum(_plain(text) in seen for text in dev.texts)
    return (f"{count:,} of {len(dev):,} dev texts are also in train",) if count else ()


def _plain(text: str | tuple[str, str]) -> tuple[str, ...]:
    parts = (text,) if isinstance(text, str) else text
    return tuple(" ".join(part.casefold().split()) for part in parts)
