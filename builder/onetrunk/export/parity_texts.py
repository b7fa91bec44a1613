"""Real texts on which what is served is compared with what was trained."""

from __future__ import annotations

import importlib.resources
import json


def parity_texts() -> list[tuple[str, str]]:
    """The texts, each with its second text or an empty one."""
    content = (importlib.resources.files("onetrunk.export") / "parity_texts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    return [(row["text"], row.get("text_pair", "")) for row in rows]
