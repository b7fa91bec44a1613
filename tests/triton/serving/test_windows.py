"""Long texts in windows on a real server, compared with windows that are made by hand and pooled with numpy."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from onetrunk.admin import AdminClient
from onetrunk.client import Answer, AsyncClient, Client
from onetrunk.client.bench.run import settled_counters
from onetrunk.client.cli.ask_repo import ask_repo
from onetrunk.nn.bundle import save_bundle
from onetrunk.nn.embedding import embedding_spec
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.protocol.words import words_of
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.training.states import tokenise
from tests.fixtures.heads import random_head
from tests.triton.serving.test_byte_level import write_trunk

LENGTH, OVERLAP = 32, 0.25
TEXT = "The film was very good, and Beyoncé didn't please me at the café: 日本語のテキスト 👍🏽 ok! " * 6
TEXTS = [TEXT, "short", TEXT[40:260], "cafe\u0301 " * 40]
SECOND = "the music was good"

Head = tuple[HeadSpec, torch.nn.Module]


def spec(trunk: Trunk, task: str, kind: str, labels: Any, form: str = "single", **more: Any) -> HeadSpec:
    values = {"long_texts": "windows", "window_overlap": OVERLAP} | more
    return HeadSpec(
        task=task, kind=kind, form=form, labels=labels, tap=2, layers=1, trunk=trunk.identity, width=trunk.width,
        max_length=LENGTH, metric=get_kind(kind).metrics[0], scores={}, created="2026-01-01", onetrunk_version="0",
        **values,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(write_trunk(tmp_path_factory.mktemp("trunk") / "tiny"))


@pytest.fixture(scope="module")
def heads(trunk: Trunk) -> dict[str, Head]:
    made = {}
    for seed, one in enumerate(
        [
            spec(trunk, "mood", "classification", ("bad", "good")),
            spec(trunk, "cut", "classification", ("bad", "good"), long_texts="cut"),
            spec(trunk, "half", "classification", ("a", "b", "c"), window_overlap=0.5),
            spec(trunk, "match", "classification", ("no", "yes"), "pair"),
            spec(trunk, "about", "multilabel", ("x", "y", "z"), fitted={"thresholds": [0.5, 0.5, 0.5]}),
            spec(trunk, "grade", "regression", None, range=(0.0, 5.0)),
            spec(trunk, "song", "tagging", ("artist", "album"), options={"output": "softmax"}),
        ]
    ):
        made[one.task] = one, random_head(trunk, one, seed)
    return made


@pytest.fixture(scope="module")
def server(trunk: Trunk, heads: dict[str, Head], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("windows")
    for task, (one, head) in heads.items():
        save_bundle(folder / "heads" / task, one, head)
    (folder / "heads" / "embedding").mkdir()
    vector = embedding_spec(trunk).model_copy(update={"long_texts": "windows"})
    (folder / "heads" / "embedding" / "head.json").write_text(vector.model_dump_json())
    build_repository(
        BuildRequest(
            output=folder / "repository", heads=folder / "heads", trunk=trunk.folder, max_length=LENGTH,
            max_batch_tokens=4 * LENGTH,
        )
    )  # fmt: skip
    with Server(folder / "repository", http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


def windows_by_hand(trunk: Trunk, text: str, room: int, overlap: float) -> list[tuple[int, int]]:
    """Word by word: as many as fit; the next window begins with the first word that leaves the overlap or less."""
    tokenizer: Tokenizer = trunk.tokenizer()
    words, found, first = words_of(text), [], 0

    def size(one: int, other: int) -> int:
        return len(tokenizer.encode(text[words[one][0] : words[other][1]], add_special_tokens=False))

    while True:
        # Byte-level tokenizers may need fewer tokens for one word more.
        last = max(word for word in range(first, min(first + 2 * room, len(words))) if size(first, word) <= room)
        found.append((words[first][0], words[last][1]))
        if last + 1 == len(words):
            return found
        encoded = tokenizer.encode(text[slice(*found[-1])], add_special_tokens=False)
        behind = [
            sum(end > words[word][0] - words[first][0] for _, end in encoded.offsets)
            for word in range(first + 1, last + 1)
        ]
        first = next((first + 1 + at for at, left in enumerate(behind) if left <= int(overlap * room)), last + 1)


@torch.no_grad()
def scores_of(trunk: Trunk, head: Head, row: str | tuple[str, str]) -> tuple[np.ndarray, int]:
    """What torch makes of a row as training reads it, alone and without padding; and how many tokens that are."""
    ids, types, mask = tokenise(trunk, [row], LENGTH).batch(np.array([0]), trunk.pad_token_id)
    state = trunk.states(ids, types, mask, [2])[2]
    one, model = head
    return get_kind(one.kind).output.scores(model(state, mask), one, model.output)[0].numpy(), int(mask.sum())


def by_hand(trunk: Trunk, head: Head, text: str) -> list[np.ndarray]:
    """The scores of all windows. The first is the text itself, which training and server cut."""
    places = windows_by_hand(trunk, text, LENGTH - 2, head[0].window_overlap)
    return [scores_of(trunk, head, part)[0] for part in (text, *(text[slice(*place)] for place in places[1:]))]


@pytest.mark.parametrize(
    ("task", "pool"), [("mood", np.mean), ("half", np.mean), ("about", np.max), ("grade", np.mean)]
)
def test_answers_are_pooled_from_windows_made_by_hand(
    client: Client, trunk: Trunk, heads: dict[str, Head], task: str, pool: Any
) -> None:
    for text, answer in zip(TEXTS, client.predict(TEXTS, tasks=[task]), strict=True):
        scores = by_hand(trunk, heads[task], text)
        expected = pool(scores, axis=0)
        found = answer[task]
        assert found.windows == len(scores)
        assert not answer.truncated
        labels = heads[task][0].labels
        values = [found.score] if labels is None else [found.scores[label] for label in labels]
        assert values == pytest.approx(expected, abs=2e-5)
    assert len(by_hand(trunk, heads["mood"], TEXT)) == 7


@torch.no_grad()
def test_an_embedding_is_the_mean_over_all_tokens_of_the_windows(client: Client, trunk: Trunk) -> None:
    places = windows_by_hand(trunk, TEXT, LENGTH - 2, OVERLAP)
    total = np.zeros(trunk.width)
    for part in (TEXT, *(TEXT[slice(*place)] for place in places[1:])):
        ids, types, mask = tokenise(trunk, [part], LENGTH).batch(np.array([0]), trunk.pad_token_id)
        vector = trunk.states(ids, types, mask, [trunk.depth])[trunk.depth][0].mean(dim=0).numpy()
        total += int(mask.sum()) * vector / np.linalg.norm(vector)
    (answer,) = client.predict([TEXT], tasks=["embedding"])
    assert answer["embedding"].embedding == pytest.approx(total / np.linalg.norm(total), abs=1e-5)  # type: ignore[attr-defined]
    assert answer["embedding"].windows == len(places)


@pytest.mark.parametrize("swap", [False, True])
def test_of_a_pair_the_longer_text_has_windows(
    client: Client, trunk: Trunk, heads: dict[str, Head], swap: bool
) -> None:
    short = len(trunk.tokenizer().encode(SECOND, add_special_tokens=False))
    special = trunk.tokenizer().num_special_tokens_to_add(True)
    places = windows_by_hand(trunk, TEXT, LENGTH - special - short, OVERLAP)
    rows = [
        (SECOND, part) if swap else (part, SECOND) for part in (TEXT, *(TEXT[slice(*place)] for place in places[1:]))
    ]
    expected = np.mean([scores_of(trunk, heads["match"], row)[0] for row in rows], axis=0)
    first, second = (SECOND, TEXT) if swap else (TEXT, SECOND)
    (answer,) = client.predict([first], [second], tasks=["match"])
    assert answer["match"].windows == len(places)
    assert [answer["match"].scores[label] for label in ("no", "yes")] == pytest.approx(expected, abs=2e-5)


def test_each_word_has_the_tag_of_the_window_where_it_is_farthest_from_the_border(
    client: Client, trunk: Trunk, heads: dict[str, Head]
) -> None:
    (answer,) = client.predict([TEXT], tasks=["song"])
    words, places = words_of(TEXT), windows_by_hand(trunk, TEXT, LENGTH - 2, OVERLAP)
    assert [(word.start, word.end) for word in answer["song"].words] == words  # type: ignore[attr-defined]
    assert not answer.truncated
    for span in answer["song"].spans:  # type: ignore[attr-defined]
        assert span.text == TEXT[span.start : span.end]
    # Each window by itself, as a short text.
    alone = client.predict([TEXT[slice(*place)] for place in places], tasks=["song"])
    for at, word in enumerate(answer["song"].words):  # type: ignore[attr-defined]
        far = []
        for window, (start, end) in enumerate(places):
            inside = [index for index, (begin, stop) in enumerate(words) if start <= begin and stop <= end]
            if at in inside:
                left = at - inside[0] if window else len(words)
                right = inside[-1] - at if window + 1 < len(places) else len(words)
                far.append((min(left, right), -window))
        window = -max(far)[1]
        own = {one.start + places[window][0]: one for one in alone[window]["song"].words}[word.start]  # type: ignore[attr-defined]
        assert own.text == word.text
        assert word.score == pytest.approx(own.score, abs=2e-5) or window == 0


def post(server: Server, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"http://{server.http_url}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_all_doors_give_the_same_answers(server: Server, client: Client) -> None:
    tasks = ["mood", "cut", "half", "about", "grade", "song", "embedding"]
    expected = client.predict(TEXTS, tasks=tasks)
    assert [answer.truncated for answer in expected] == [True, False, True, True], "`cut` does not read the end"

    async def awaited() -> list[Answer]:
        async with AsyncClient(server.grpc_url) as asynchronous:
            return await asynchronous.predict(TEXTS, tasks=tasks)

    close(asyncio.run(awaited()), expected)

    answers = post(server, "/v1/predict", {"texts": TEXTS, "tasks": tasks})["answers"]
    for found, answer in zip(answers, expected, strict=True):
        assert found["truncated"] == answer.truncated
        for task in tasks:
            said, known = found["predictions"][task], answer[task]
            assert said.get("windows", 1) == known.windows
            approx(said, known.record(None) | {"windows": known.windows})

    (of_mood,) = post(server, "/predict?task=mood", {"inputs": [[TEXT]], "truncate": False})
    approx({one["label"]: one["score"] for one in of_mood}, dict(expected[0]["mood"].scores))
    (vector,) = post(server, "/embed", {"inputs": [TEXT], "truncate": False})
    assert vector == pytest.approx(expected[0]["embedding"].embedding, abs=1e-5)  # type: ignore[attr-defined]
    spans = post(server, "/v1/embeddings", {"input": TEXT, "model": "embedding"})
    assert spans["usage"]["prompt_tokens"] == client.predict([TEXT], tasks=["embedding"])[0].tokens
    listed = json.load(urllib.request.urlopen(f"http://{server.http_url}/v1/tasks", timeout=60))["tasks"]
    assert {name: task["long_texts"] for name, task in listed.items()}["cut"] == "cut"
    assert (listed["half"]["long_texts"], listed["half"]["window_overlap"]) == ("windows", 0.5)


def approx(found: Any, expected: Any) -> None:
    """Compares JSON values, numbers up to rounding; keys of the expected one may be missing if they are windows."""
    if isinstance(expected, dict):
        assert set(found) | {"windows"} == set(expected) | {"windows"}
        for name in found:
            approx(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            approx(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-5)
    else:
        assert found == expected


def close(found: list[Answer], expected: list[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.truncated, one.tokens) == (other.truncated, other.tokens)
        for task, said in one.items():
            assert said.windows == other[task].windows
            approx(said.record(None), other[task].record(None))


def test_ask_repo_says_how_many_windows(server: Server) -> None:
    asked = CliRunner().invoke(ask_repo, [TEXT, "--tasks", "mood,cut", "--url", server.grpc_url])
    assert "too long: its end was not read" in " ".join(asked.output.split())
    assert "windows, by the tasks that do so" in " ".join(asked.output.replace("│", " ").split())
    lines = CliRunner().invoke(ask_repo, [TEXT, "short", "--tasks", "mood", "--json", "--url", server.grpc_url])
    long, short = map(json.loads, lines.output.splitlines())
    assert long["predictions"]["mood"]["windows"] == 7
    assert not long["truncated"]
    assert "windows" not in short["predictions"]["mood"]


def test_a_text_beyond_the_most_windows_is_cut_and_says_so(server: Server, client: Client) -> None:
    (answer,) = client.predict([TEXT * 24], tasks=["mood"])
    assert (answer["mood"].windows, answer.truncated) == (128, True)
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, "/predict?task=mood", {"inputs": [[TEXT * 24]], "truncate": False})
    assert refused.value.code == 413


def test_the_fronts_limit_of_texts_is_one_of_windows_too(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, "/v1/predict", {"texts": [TEXT * 24] * 9, "tasks": ["mood"]})
    assert refused.value.code == 413
    assert "1,143 more windows, and a request may have 1,024" in json.load(refused.value)["error"]


def test_texts_that_fit_cost_no_further_request(server: Server, client: Client) -> None:
    with AdminClient(server.grpc_url) as admin:

        def runs() -> dict[str, int]:
            return {name: one.requests for (name, _), one in settled_counters(admin.statistics).items()}

        client.predict(["warm"], tasks=["mood"])
        before = runs()
        client.predict(["short", "one more"], tasks=["mood"])
        added = {name: number - before[name] for name, number in runs().items() if number > before[name]}
        assert added == {"multitask": 1, "tokenizer": 1, "trunk_00_02": 1, "head_mood": 1}
