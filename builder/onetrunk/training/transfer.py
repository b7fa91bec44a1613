"""Texts that a student learns from beyond its own: those of other tasks, and its own with words masked."""

from __future__ import annotations

import hashlib
import random
import re

import numpy as np
from numpy.typing import NDArray

from onetrunk.tasks.offsets import Texts
from onetrunk.training.run_spec import Distillation
from onetrunk.training.states import CachedStates, JoinedStates
from onetrunk.training.workbench import Workbench

MASKED_SHARE = 0.2
_WORD = re.compile(r"\S+")


def student_states(bench: Workbench, task: str, tap: int, how: Distillation, seed: int) -> JoinedStates:
    """What a student trains on: the task's own texts first, in their order, then those without a label.

    Args:
        bench: the workbench.
        task: the student's task.
        tap: its tap.
        how: how many texts of which sort.
        seed: of what is drawn at random.
    """
    own = bench.states(task, "train", [tap]).states[tap]
    count = len(own.lengths)
    parts = [(own, np.arange(count))]
    parts += _other_texts(bench, task, tap, round(how.other_texts * count), seed)
    if how.masked_texts:
        parts.append(_masked_texts(bench, task, tap, round(how.masked_texts * count), seed))
    return JoinedStates(parts)


def other_tasks(bench: Workbench, task: str) -> list[str]:
    """The tasks whose texts have the same form, one text or a pair, and could be asked of this task too."""
    form = bench.task(task).form
    return [name for name, other in bench.tasks.items() if name != task and other.form == form]


def masked(texts: Texts, seed: int, mask: str = "[MASK]") -> Texts:
    """The texts with some of their words replaced by the mask token.

    Args:
        texts: texts, or pairs of texts.
        seed: which words.
        mask: the trunk's mask token.
    """
    draw = random.Random(seed)

    def hide(text: str) -> str:
        return _WORD.sub(lambda word: mask if draw.random() < MASKED_SHARE else word[0], text)

    return [hide(text) if isinstance(text, str) else (hide(text[0]), hide(text[1])) for text in texts]  # type: ignore[return-value]


def _other_texts(
    bench: Workbench, task: str, tap: int, wanted: int, seed: int
) -> list[tuple[CachedStates, NDArray[np.int64]]]:
    if not wanted:
        return []
    sources = [bench.states(name, "train", [tap]).states[tap] for name in other_tasks(bench, task)]
    sizes = [len(source.lengths) for source in sources]
    # A name's hash, so that two tasks do not draw the same rows.
    salt = int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")
    drawn = np.sort(np.random.default_rng((seed, salt)).permutation(sum(sizes))[:wanted])
    bounds = np.cumsum([0, *sizes])
    return [
        (source, drawn[(drawn >= start) & (drawn < start + len(source.lengths))] - start)
        for source, start in zip(sources, bounds[:-1], strict=True)
    ]


def _masked_texts(
    bench: Workbench, task: str, tap: int, wanted: int, seed: int
) -> tuple[CachedStates, NDArray[np.int64]]:
    texts = bench.examples(task, "train").texts
    copies = -(-wanted // len(texts))
    hidden = [text for copy in range(copies) for text in masked(texts, seed + copy)][:wanted]
    cached = bench.text_states(hidden, [tap], what=f"{task}: trunk on masked texts")  # type: ignore[arg-type]
    return cached.states[tap], np.arange(len(hidden))
