"""The words of messages: what is suggested in place of a word, and how things are counted."""

from __future__ import annotations

import pytest

from onetrunk.protocol.errors import BadInput, Problem, counted, did_you_mean


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("sst3", ["cola", "sst2"], "sst2"),
        ("urgnet", ["urgent", "other"], "urgent"),
        ("multilable", ["classification", "multilabel"], "multilabel"),
        ("stts", ["sst2", "stsb"], "stsb"),
        ("on", ["one", "two"], "one"),
        ("wights", ["class_weights", "none_below"], "class_weights"),
        ("label", ["labels", "label_separator"], "labels"),
        ("text", ["intent", "sst2"], None),
        ("zzz", ["cola", "sst2"], None),
        ("sst2" * 1000, ["sst2" * 999], None),
        ("sst2", [], None),
        ("text", ["text_field", "text_pair_field"], "text_field"),
        ("TASKS", ["texts", "tasks"], "tasks"),
        ("a", ["a_b", "c_a"], None),
        ("sst3", [f"task{number}" for number in range(999)] + ["sst2"], None),
    ],
)
def test_only_a_word_that_is_much_alike_is_suggested(word: str, known: list[str], meant: str | None) -> None:
    assert did_you_mean(word, known) == (f" (did you mean {meant}?)" if meant else "")


def test_counts_have_their_noun() -> None:
    assert [counted(number, "row", "rows") for number in (0, 1, 2, 1200)] == ["0 rows", "1 row", "2 rows", "1,200 rows"]
    problems = [Problem(row, "text is empty") for row in range(3)]
    assert str(BadInput(problems[:2])) == "row 0: text is empty (and 1 more problem)"
    assert str(BadInput(problems)) == "row 0: text is empty (and 2 more problems)"
