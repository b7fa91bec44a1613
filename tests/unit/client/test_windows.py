"""Long texts in windows: what is asked, how each kind pools, and where words and spans are in the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.client import BadInput, Client, ServerError
from onetrunk.client.answer import Answer, Reading
from onetrunk.client.display import answer_record, answer_table
from onetrunk.client.lines import Line
from onetrunk.client.readers import READERS
from onetrunk.client.scheduler import LongText
from onetrunk.client.windows import Window, Windowed, answered_parts
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.words import words_of
from tests.fixtures.fake_triton import EMBEDDING, LONGEST, FakeTriton, score, windows

# 11 letters a word with its blank: 9 words are a window of the fake.
LONG = " ".join(f"word{at:06d}" for at in range(30))
WINDOWED = {"long_texts": "windows", "window_overlap": 0.25}


@pytest.fixture
def windowed(fake: FakeTriton) -> FakeTriton:
    """A fake whose tasks read windows, but for cola."""
    for name in ("sst2", "mnli", "stsb"):
        fake.tasks[name].update(WINDOWED)
    fake.tasks["embedding"] = EMBEDDING | WINDOWED
    fake.counts_tokens = True
    return fake


def lengths(text: str, overlap: float = 0.25) -> list[int]:
    """The characters of each window. The first answer is by the whole text, of which the fake says how long it is."""
    _, *others = windows(text, None, overlap, 100)
    return [len(text), *(end - start for start, end, *_ in others)]


def test_a_text_that_fits_is_one_request_as_before(windowed: FakeTriton, make_client: type[Client]) -> None:
    with make_client(windowed.url) as client:
        (answer,) = client.predict(["short"], tasks=["sst2", "cola"])
    assert [request.model for request in windowed.requests] == ["multitask"]
    assert sorted(windowed.requests[0].outputs) == ["cola", "sst2", "token_count", "truncated"]
    assert answer["sst2"].windows == 1


def test_a_long_text_has_the_mean_over_its_windows(windowed: FakeTriton, make_client: type[Client]) -> None:
    with make_client(windowed.url) as client:
        short, answer, other = client.predict(["short", LONG, "a" * 5], tasks=["sst2"])
    expected = np.mean([1 / (1 + length) for length in lengths(LONG)])
    assert len(lengths(LONG)) == 4
    assert answer["sst2"].scores["negative"] == pytest.approx(expected, abs=1e-7)
    assert (answer["sst2"].windows, answer.truncated) == (4, False)
    assert answer.tokens == 32 + 3 * 11  # 30 words and two more, then windows of 9 words
    assert short["sst2"].windows == other["sst2"].windows == 1
    assert [request.model for request in windowed.requests] == ["multitask", "tokenizer", "multitask"]
    assert windowed.requests[1].rows == [(LONG, None, 0.25)]
    assert len(windowed.requests[2].rows) == 3, "the first window is not asked about again"


def test_tasks_that_cut_keep_their_answer_and_the_row_is_truncated(
    windowed: FakeTriton, make_client: type[Client]
) -> None:
    with make_client(windowed.url) as client:
        (answer,) = client.predict([LONG], tasks=["cola", "sst2"])
    assert answer["cola"].scores["unacceptable"] == pytest.approx(1 / (1 + len(LONG)))
    assert (answer["cola"].windows, answer["sst2"].windows) == (1, 4)
    assert list(answer) == ["cola", "sst2"]
    assert answer.truncated
    assert windowed.requests[2].outputs == ["sst2", "truncated", "token_count"]


def test_tasks_of_different_overlap_have_windows_of_their_own(windowed: FakeTriton, make_client: type[Client]) -> None:
    windowed.tasks["cola"].update(WINDOWED | {"window_overlap": 0.0})
    with make_client(windowed.url) as client:
        (answer,) = client.predict([LONG], tasks=["cola", "sst2"])
    for task, overlap in (("cola", 0.0), ("sst2", 0.25)):
        found = lengths(LONG, overlap)
        assert answer[task].windows == len(found)
        first = next(iter(sorted(answer[task].scores.items(), key=lambda pair: pair[1])))[1]
        assert first == pytest.approx(np.mean([1 / (1 + length) for length in found]), abs=1e-7)
    assert answer["cola"].windows == 4
    assert not answer.truncated


def test_pairs_and_numbers(windowed: FakeTriton, make_client: type[Client]) -> None:
    with make_client(windowed.url) as client:
        (answer,) = client.predict([LONG], ["the other"], tasks=["stsb"])
    assert answer["stsb"].score == pytest.approx(np.mean(lengths(LONG)))
    assert all(pair == b"the other" for _, pair in windowed.requests[2].rows)


def test_an_embedding_is_the_mean_of_all_tokens_of_length_one(windowed: FakeTriton, make_client: type[Client]) -> None:
    with make_client(windowed.url) as client:
        (answer,) = client.predict([LONG], tasks=["embedding"])
    vectors = [score(windowed.tasks["embedding"], ("x" * length, None)) for length in lengths(LONG)]
    mean = np.average(vectors, axis=0, weights=[32, 11, 11, 11])
    assert answer["embedding"].embedding == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_what_is_beyond_the_most_windows_is_truncated(windowed: FakeTriton, make_client: type[Client]) -> None:
    windowed.most_windows = 3
    with make_client(windowed.url) as client:
        (answer,) = client.predict([LONG], tasks=["sst2"])
    assert (answer["sst2"].windows, answer.truncated) == (3, True)
    record = answer_record(Line(1, LONG, None), answer, top=None, numbered=False)
    assert record["predictions"]["sst2"]["windows"] == 3
    table = answer_table([(Line(1, LONG, None), answer)], top=1)
    assert "too long: its end was not read; read in 3 windows" in str(table.columns[0]._cells[0])


def test_many_long_texts_share_requests_and_a_fault_names_the_row(
    windowed: FakeTriton, make_client: type[Client]
) -> None:
    texts = ["short", *(f"{LONG} {'x' * at}" for at in range(20))]
    with make_client(windowed.url) as client:
        answers = client.predict(texts, tasks=["sst2"])
        for text, answer in zip(texts[1:], answers[1:], strict=True):
            assert answer["sst2"].scores["negative"] == pytest.approx(
                np.mean([1 / (1 + length) for length in lengths(text)]), abs=1e-7
            )
        assert all(len(request.rows) <= windowed.max_batch_size for request in windowed.requests)
        windowed.refuse = lambda row: "odd" if row[0].endswith("x" * 7) and len(row[0]) <= LONGEST else None
        with pytest.raises(BadInput) as error:
            client.predict(texts[:9], tasks=["sst2"])
    assert [(problem.row, problem.message) for problem in error.value.problems] == [(8, "text: odd")]


def test_a_lost_request_for_windows_is_sent_again(windowed: FakeTriton, make_client: type[Client]) -> None:
    down = (grpc.StatusCode.UNAVAILABLE, "down")
    windowed.faults.extend([None, down, None, down])
    with make_client(windowed.url) as client:
        (answer,) = client.predict([LONG], tasks=["sst2"])
    assert answer["sst2"].windows == 4
    assert [request.model for request in windowed.requests] == ["multitask", *["tokenizer"] * 2, *["multitask"] * 2]


@pytest.mark.parametrize("spoilt", [[[[0, 10_000, 0, 0]]], [[[5, 5, 0, 0]]], [[[-1, -1, -1, -1]]], [[0, 1]]])
def test_windows_that_are_not_in_the_text_are_refused(
    windowed: FakeTriton, make_client: type[Client], spoilt: Any
) -> None:
    def spoil(response: Any) -> None:
        if response.model_name == "tokenizer":
            response.outputs[0].shape[:] = np.shape(spoilt)
            response.raw_output_contents[0] = np.array(spoilt).tobytes()

    windowed.spoil = spoil
    with make_client(windowed.url) as client, pytest.raises(ServerError, match="windows"):
        client.predict([LONG], tasks=["sst2"])


# How kinds pool.


def task(kind: str, **about: Any) -> TaskInfo:
    return TaskInfo(
        name="it", kind=kind, form="single", metric="m", tap=1, layers=1, version=1, long_texts="windows", **about
    )


def reading(scores: Any, of: TaskInfo, words: Any = None, tokens: int = 10, truncated: bool = False) -> Reading:
    return Reading((of,), {"it": np.asarray(scores, np.float32)}, words, truncated, tokens, 1.0, 2.0)


def pooled(of: TaskInfo, text: str, places: Sequence[tuple[int, int]], readings: Sequence[Reading]) -> Answer:
    long_text = LongText(0, text, None, readings[0], Answer({}, False))
    one = Windowed(long_text, (of,), 0.25)
    one.found([Window(start, end, 0, 0) for start, end in places])
    one.readings = dict(enumerate(readings))
    return one.add_to(long_text.answer)


def test_probabilities_of_one_label_are_averaged_and_compared_with_none_below() -> None:
    of = task("classification", labels=("a", "b"), none_below=0.6)
    answer = pooled(of, "one two", [(0, 3), (4, 7)], [reading([0.9, 0.1], of), reading([0.2, 0.8], of)])["it"]
    assert answer.scores == pytest.approx({"a": 0.55, "b": 0.45})
    assert (answer.label, answer.none_of_these) == ("a", True)  # type: ignore[attr-defined]


def test_each_label_of_several_has_its_greatest_probability() -> None:
    of = task("multilabel", labels=("a", "b", "c"), thresholds=[0.5, 0.5, 0.9])
    answer = pooled(of, "one two", [(0, 3), (4, 7)], [reading([0.9, 0.1, 0.3], of), reading([0.2, 0.8, 0.4], of)])["it"]
    assert answer.scores == pytest.approx({"a": 0.9, "b": 0.8, "c": 0.4})
    assert answer.labels == ("a", "b")  # type: ignore[attr-defined]


def test_numbers_are_averaged() -> None:
    of = task("regression", range=(0, 5))
    answer = pooled(of, "one two", [(0, 3), (4, 7)], [reading([1.0], of), reading([4.0], of, tokens=99)])["it"]
    assert (answer.score, answer.windows) == (2.5, 2)


def test_vectors_are_weighted_by_tokens() -> None:
    of = task("embedding", width=2)
    readings = [reading([1.0, 0.0], of, tokens=30), reading([0.0, 1.0], of, tokens=40)]
    assert pooled(of, "one two", [(0, 3), (4, 7)], readings)["it"].embedding == pytest.approx((0.6, 0.8))  # type: ignore[attr-defined]


def test_every_kind_has_been_thought_of() -> None:
    assert set(READERS) == {"classification", "multilabel", "regression", "embedding", "tagging"}


# Spans: a window's tokens are its words here, tagged by whether they are in capitals (a span of its own), or follow
# one in capitals with a sign that says so (it goes on).

TAGGING = task("tagging", labels=("name",), scheme="BIO")


def tagged(text: str, window: tuple[int, int], tags: dict[str, int] | None = None) -> Reading:
    part = text[slice(*window)]
    words = [(at, *word) for at, word in enumerate(words_of(part))]
    scores = [[(tags or {}).get(part[start:end], float(part[start].isupper())), 0.9] for _, start, end in words]
    # Special tokens and padding around them.
    return reading([[0, 1], *scores, [0, 1], [-1, 0]], TAGGING, np.array([[-1] * 3, *words, [-1] * 3, [-1] * 3]))


TEXTS = [
    "Ana met Bob in Paris , then Cid and Dora went home to Ely .",
    "Zoé met José in Málaga , then Ça\u0301 and Çelik went home to Şile .",
    "日本 met 東京 in Ōsaka , Then 京都 and 😀 went 👍🏽 to ❤️ Ely .",
]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_have_their_places_in_the_whole_text(text: str) -> None:
    words = words_of(text)
    # Windows of six words, of which the next one reads two again.
    places = [(words[at][0], words[min(at + 5, len(words) - 1)][1]) for at in range(0, len(words) - 2, 4)]
    assert len(places) > 2
    answer = pooled(TAGGING, text, places, [tagged(text, place) for place in places])["it"]
    expected = [(start, end) for start, end in words if text[start].isupper()]
    assert [(span.start, span.end) for span in answer.spans] == expected  # type: ignore[attr-defined]
    assert [span.text for span in answer.spans] == [text[start:end] for start, end in expected]  # type: ignore[attr-defined]
    assert [(word.start, word.end) for word in answer.words] == words  # type: ignore[attr-defined]
    assert all(word.tag in ("O", "B-name") for word in answer.words)  # type: ignore[attr-defined]


def test_a_span_over_the_border_is_one_and_each_word_is_answered_where_it_is_farthest_from_it() -> None:
    text = "a b c D E F g h i j"
    places = [(0, 11), (6, 19)]  # a to F, D to j: of D E F, the first two are answered by the first window
    first = tagged(text, places[0], {"D": 1, "E": 2, "F": 0})  # at its end, it takes F for nothing
    second = tagged(text, places[1], {"D": 0, "E": 0, "F": 2})  # at its beginning, it knows of no D and E
    answer = pooled(TAGGING, text, places, [first, second])["it"]
    assert [(span.start, span.end, span.text) for span in answer.spans] == [(6, 11, "D E F")]  # type: ignore[attr-defined]
    assert [word.tag for word in answer.words] == ["O"] * 3 + ["B-name", "I-name", "I-name"] + ["O"] * 4  # type: ignore[attr-defined]


def test_a_token_in_words_of_two_windows_tags_only_those_of_its_own() -> None:
    text = "a 日本 b"  # 日 and 本 are words
    words = np.array([[0, 0, 1], [1, 2, 4]]), np.array([[0, 0, 2], [2, 3, 4]])  # and one token, in both windows
    first = reading([[0, 0.9], [1, 0.8]], TAGGING, words[0])
    second = reading([[0, 0.7], [0, 0.6]], TAGGING, words[1])
    answer = pooled(TAGGING, text, [(0, 4), (2, 6)], [first, second])["it"]
    assert [(word.text, word.tag, round(word.score, 2)) for word in answer.words] == [  # type: ignore[attr-defined]
        ("a", "O", 0.9),
        ("日", "B-name", 0.8),
        ("本", "O", 0.7),
        ("b", "O", 0.6),
    ]


def test_words_behind_the_last_window_are_listed_as_unread() -> None:
    text = "a b C d e f g"
    answer = pooled(TAGGING, text, [(0, 5), (4, 9)], [tagged(text, (0, 5)), tagged(text, (4, 9))])
    assert answer.truncated
    assert [word.tag for word in answer["it"].words] == ["O", "O", "B-name", "O", "O", None, None]  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "Bé", "日", "😀", "e\u0301.", "-"]), min_size=1, max_size=60),
    steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=30),
)
def test_every_word_is_answered_once(words: list[str], steps: list[tuple[int, int]]) -> None:
    text = " ".join(words)
    found = words_of(text)
    places, first, last = [], 0, -1
    for size, again in steps:
        if last == len(found) - 1:
            break
        begin = max(first + 1, last + 1 - again) if places else 0
        first, last = begin, min(max(begin, last) + size, len(found) - 1)
        places.append(Window(found[first][0], found[last][1], 0, 0))
    parts = answered_parts(text, places)
    for at, (start, end) in enumerate(found[: last + 1]):
        answering = [window for window, (begin, behind) in enumerate(parts) if begin <= start < behind]
        assert len(answering) == 1
        window = places[answering[0]]
        assert window.start <= start < end <= window.end
        # Nowhere else is it farther from the border.
        inside = [one for one in places if one.start <= start < end <= one.end]
        assert far(found, at, window, places) >= max(far(found, at, one, places) for one in inside) - 1


def far(words: list[tuple[int, int]], at: int, window: Window, all_windows: list[Window]) -> float:
    """How many words a word is away from the nearer border of a window; the ends of the text are no borders."""
    indices = [index for index, (start, end) in enumerate(words) if window.start <= start < end <= window.end]
    left = at - indices[0] if window != all_windows[0] else np.inf
    right = indices[-1] - at if window != all_windows[-1] else np.inf
    return min(left, right)
