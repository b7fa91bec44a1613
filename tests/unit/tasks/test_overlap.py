"""Texts that are in both splits are counted and noted."""

import json

import pytest

from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.examples import Examples, overlap_notes, part_of, rows_elsewhere
from onetrunk.training import train


def examples(*texts):
    return Examples("", texts, (0,) * len(texts), "")


@pytest.mark.parametrize(
    ("train", "dev", "note"),
    [
        (["a", "b"], ["c"], []),
        (["a", "b"], ["b", "c"], ["1 of 2 dev texts is also in train"]),
        # Every dev row counts, however often its text is in train.
        (["a", "a"], ["a", "a", "b"], ["2 of 3 dev texts are also in train"]),
        (["A  good\tfilm "], ["a good film"], ["1 of 1 dev texts is also in train"]),
        (["agood film"], ["a good film"], []),
        # Of a pair, both texts, whichever comes first.
        ([("a", "b")], [("a", "c"), ("b", "A"), ("ab", "")], ["1 of 3 dev texts is also in train"]),
        ([("a", "b")], [("a", "c"), ("a", "b")], ["1 of 2 dev texts is also in train"]),
    ],
)
def test_dev_texts_in_train_are_counted(train, dev, note):
    assert list(overlap_notes(examples(*train), examples(*dev))) == note


@pytest.mark.parametrize(
    ("texts", "elsewhere", "found"),
    [
        (["A good film .", "a film"], [["x"], ["a good film."]], [True, False]),
        ([("The cat sat .", "He ate"), ("he ate", "who?")], [[("he ate", "The cat sat.")]], [True, False]),
        # One text of a pair alone is another text.
        ([("he ate", "who?")], [["he ate"]], [False]),
        # Long ones with other signs, short ones where they may be what is said.
        (["It was, \u201cat best\u201d, a dull -- film <.SPX>"], [['it was "at best" a dull film .SPX']], [True]),
        (
            ["great :)", "?!", "...", "C++ is fun", "it is -5 now"],
            [["great :(", "...", "C# is fun", "it is 5 now"]],
            [0, 0, 1, 0, 0],
        ),
        (["\u0935\u0939 \u0915\u0940 a b c d e"], [["\u0935\u0939 \u0915\u093e a b c d e"]], [False]),
        (["so very very very tired \U0001f600"], [["so very very very tired \U0001f621"]], [False]),
        (["a"], [], [False]),
    ],
)
def test_texts_are_found_among_those_of_other_tasks_by_their_letters(texts, elsewhere, found):
    assert rows_elsewhere(texts, elsewhere).tolist() == found


def test_large_numbers_are_readable():
    texts = [f"text {number}" for number in range(1043)]
    assert overlap_notes(examples(*texts[:16]), examples(*texts)) == ("16 of 1,043 dev texts are also in train",)


def test_training_tells_it_also_where_it_was_finished_earlier(mood, tiny_trunk, tmp_path):
    dev = read_examples(mood, "dev")
    with (tmp_path / "train.jsonl").open("a") as stream:
        for text in dev.texts[:7]:
            stream.write(json.dumps({"sentence": text, "label": "good"}) + "\n")
    known = {" ".join(text.split()) for text in read_examples(mood, "train").texts}
    count = sum(text in known for text in dev.texts)
    assert count >= 7
    places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
    for already_there in (False, True):
        result = train(mood, tiny_trunk, **places)
        assert result.already_there == already_there
        assert f"{count} of 60 dev texts are also in train" in result.notes


def test_a_part_of_the_texts_is_part_of_a_larger_one_whatever_else_there_is():
    texts = [f"text {number}" for number in range(2000)]
    chosen = [{texts[row] for row in part_of(texts, share)} for share in (1 / 8, 1 / 4, 1 / 2, 1)]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3] == set(texts)
    assert [len(part) for part in chosen] == pytest.approx([250, 500, 1000, 2000], rel=0.2)
    assert {texts[row] for row in part_of(texts[:1000], 1 / 8)} == chosen[0] & set(texts[:1000])
    assert len(part_of(["one text"], 1e-9)) == 1


def test_a_part_of_the_train_texts_does_not_follow_from_a_share_for_dev(tmp_path):
    """Else all train texts would be beyond the share, and the parts of them empty or all of them."""
    (tmp_path / "rows.csv").write_text("sentence,label\n" + "".join(f"text {row},a\n" for row in range(1000)))
    task = Task(name="t", labels=("a", "b"), train="rows.csv", dev=0.5, folder=tmp_path)
    train_texts = read_examples(task, "train").texts
    assert len(part_of(train_texts, 1 / 4)) == pytest.approx(len(train_texts) / 4, rel=0.3)


def test_a_pair_and_its_swap_are_on_one_side_of_a_split(likeness, tmp_path):
    rows = [{"sentence": f"text {one}", "sentence2": f"other {one}", "label": one % 5} for one in range(200)]
    rows += [{**row, "sentence": row["sentence2"], "sentence2": row["sentence"]} for row in rows]
    place = tmp_path / "pairs.jsonl"
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = likeness.model_copy(update={"train": str(place), "dev": 0.2})
    train, dev = (read_examples(task, split) for split in ("train", "dev"))
    assert 20 < len(dev) < 140
    assert overlap_notes(train, dev) == ()
