"""What a task may be called: its name is that of its output, so it cannot be that of another tensor."""

from __future__ import annotations

import re

_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,47}")
# Inputs, outputs and inner tensors of the ensembles (docs/contracts.md), beside the states at the taps.
_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
TENSORS = frozenset(
    {"text", "text_pair", "truncated", "token_words", *_TOKENS, *(f"padded_{name}" for name in _TOKENS)}
)


def check_task_name(name: str) -> str:
    """Gives the name back. Raises ValueError where no task can have it."""
    if not _PATTERN.fullmatch(name):
        raise ValueError("a task's name is small letters, digits and _, beginning with a letter, at most 48")
    if name in TENSORS or name == "hidden_state" or re.fullmatch(r"hidden_\d+", name):
        raise ValueError(f"{name} is the name of a tensor that the ensembles use: give it another name")
    return name
