"""Kinds of task through the whole line: labelled texts, training, bundle, ONNX, a real Triton, the client.

One of them is the made-up kind of docs/tasks.md: one file and one entry of the registry.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onetrunk.client import BadInput, Client
from onetrunk.client.display import answer_record, task_table
from onetrunk.client.lines import Line
from onetrunk.deploy import Deployer
from onetrunk.export.precision import parse_precision
from onetrunk.nn.bundle import load_bundle, save_bundle
from onetrunk.nn.trunk import load_trunk
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.repository.gate_settings import GateSettings
from onetrunk.serving import Server
from onetrunk.tasks import load_task, read_examples
from onetrunk.tasks.kinds import KINDS, get_kind
from onetrunk.tasks.kinds.base import Kind
from onetrunk.tasks.kinds.span_tags import read_spans
from onetrunk.tasks.metrics import measure
from onetrunk.training import train

KEY = "a-key"
# Of 60 dev texts. Cards score states that were rounded to fp16, so a tie falls either way, by the processor.
TIES = 0.03
WORDS = ["film", "music", "light", "house"]


def documented_kind() -> Kind:
    """The example of docs/tasks.md: a kind that nothing else knows of."""
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "STARS = Kind(" in block
    )
    names: dict[str, Any] = {}
    exec(code, names)
    return names["STARS"]


def rows(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Texts with the words that are in them: labels that a head on a random trunk can learn."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        held = [word for word in WORDS[:3] if draw.random() < 0.4]
        found.append((" ".join(["please", *draw.permutation([*held, "the", "very"])]), held))
    return found


FIRST = ["a", "the", "is", "was", "very", "good", "bad", "film", "play", "music", "song", "please", "turn"]
SECOND = ["on", "off", "light", "red", "blue", "who", "what", "when", "where", "i", "you", "he", "she"]
PAIRS = [f"{first}_{second}" for first in FIRST for second in SECOND]
"""169 labels."""


def many(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of two words, and the label that names them; the first ones are frequent."""
    draw = np.random.default_rng(seed)
    labels = [PAIRS[int(len(PAIRS) * draw.random() ** 3)] for _ in range(count)]
    return [(label.replace("_", " "), label) for label in labels]


def lamps(count: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Words and their tags: lights of a colour, and media."""
    draw = np.random.default_rng(seed)
    known = {
        "film": ["B-medium"],
        "music": ["B-medium"],
        "red light": ["B-lamp", "I-lamp"],
        "blue light": ["B-lamp", "I-lamp"],
    }
    found = []
    for _ in range(count):
        words, tags = [], []
        for part in draw.permutation([*draw.choice(list(known), 2), *draw.choice(["please", "the", "red", "xyz"], 2)]):
            words += part.split()
            tags += known.get(part, ["O"])
        found.append((words, tags))
    return found


TASKS = {
    "about": ('kind = "multilabel"\nlabels = ["film", "music", "light"]', rows, list),
    "rating": ('kind = "stars"\nrange = [0, 3]', rows, len),
    "pairs": (f'labels = {json.dumps(PAIRS)}\noptions = {{class_weights = "balanced", none_below = 0.6}}', many, str),
    "slots": ('kind = "tagging"\nlabels = ["lamp", "medium"]\ntext_field = "words"', lamps, list),
    "plain_slots": (
        'kind = "tagging"\nlabels = ["lamp", "medium"]\ntext_field = "words"\n'
        'options = {output = "softmax", scheme = "BILOU"}',
        lamps,
        lambda tags: bilou(tags),
    ),
}


def bilou(tags: list[str]) -> list[str]:
    ends = [after[0] != "I" for after in [*tags[1:], "O"]]
    letters = {("B", True): "U", ("I", True): "L"}
    return [letters.get((tag[0], end), tag[0]) + tag[1:] for tag, end in zip(tags, ends, strict=True)]


@pytest.fixture(scope="module")
def made_up():
    """The documented kind in the registry."""
    KINDS["stars"] = documented_kind()
    yield
    del KINDS["stars"]


@pytest.fixture(scope="module")
def trained(made_up, tiny_trunk, tmp_path_factory):
    """Task -> task, and the result of its training; and the folder of bundles."""
    folder = tmp_path_factory.mktemp("kinds")
    results = {}
    for name, (head, texts, label) in TASKS.items():
        for split, seed, count in (("train", 0, 400), ("dev", 1, 60)):
            field = "words" if "words" in head else "sentence"
            lines = [json.dumps({field: text, "label": label(held)}) for text, held in texts(count, seed)]
            (folder / f"{name}_{split}.jsonl").write_text("\n".join(lines))
        file = folder / f"{name}.toml"
        epochs = 40 if "tagging" in head else 12
        recipe = f"tap = 1\nlayers = 1\nepochs = {epochs}\nbatch_size = 32\nlearning_rate = 3e-3\nmax_length = 32"
        file.write_text(f'{head}\ntrain = "{name}_train.jsonl"\ndev = "{name}_dev.jsonl"\n[recipe]\n{recipe}\n')
        task = load_task(file)
        results[name] = (task, train(task, tiny_trunk, heads=folder / "heads", cache=folder / "cache"))
    return results, folder / "heads"


@pytest.fixture(scope="module")
def served(trained, tiny_trunk_folder, tmp_path_factory):
    """A running server of all of them, and its repository."""
    repository = tmp_path_factory.mktemp("served") / "repository"
    build_repository(BuildRequest(output=repository, heads=trained[1], trunk=tiny_trunk_folder, max_length=32))
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, admin_key=KEY) as server:
        yield server, repository


@pytest.fixture(scope="module")
def client(served):
    with Client(served[0].grpc_url) as client:
        yield client


def test_a_kind_learns_and_says_so_on_its_card(trained):
    results, heads = trained
    about, rating = results["about"][1].spec, results["rating"][1].spec
    assert about.scores["mean_average_precision"] > 0.9
    assert rating.scores["accuracy"] > 0.6
    for name in ("slots", "plain_slots"):
        assert results[name][1].spec.scores["span_f1"] > 0.7, results[name][1].epoch_scores
    assert rating.fitted == {"most": 3.0}
    assert len(about.fitted["thresholds"]) == 3
    assert "any of `film`, `music`, `light`" in (heads / "about" / "README.md").read_text()
    assert load_bundle(heads / "rating").spec == rating


def test_a_finished_head_is_not_trained_again(trained, tiny_trunk, tmp_path):
    for task, result in trained[0].values():
        again = train(task, tiny_trunk, heads=trained[1], cache=tmp_path)
        assert again.already_there
        assert again.spec == result.spec


@pytest.mark.parametrize("name", ["about", "rating", "pairs"])
def test_what_is_served_scores_as_the_card_says(client, trained, name):
    task, result = trained[0][name]
    dev = read_examples(task, "dev")
    answers = client.predict(list(dev.texts), tasks=[name])
    labels = result.spec.labels
    scores = np.array(
        [[answer[name].scores[label] for label in labels] if labels else [answer[name].score] for answer in answers],
        dtype=np.float32,
    )
    predictions = get_kind(task.kind).answers.predictions(scores, result.spec)
    found, _ = measure(task.metrics, predictions, get_kind(task.kind).codec.targets(dev.targets, task))
    assert found == pytest.approx(result.spec.scores, abs=TIES)


def test_several_labels_are_told_by_their_thresholds(client, trained):
    thresholds = dict(zip(WORDS, trained[0]["about"][1].spec.fitted["thresholds"], strict=False))
    assert client.tasks()["about"].thresholds == list(thresholds.values())
    texts = [text for text, _ in rows(20, 2)]
    for text, answer in zip(texts, client.predict(texts, tasks=["about"]), strict=True):
        said = answer["about"]
        assert set(said.labels) == {label for label, score in said.scores.items() if score >= thresholds[label]}
        assert list(said.scores.values()) == sorted(said.scores.values(), reverse=True)
        shown = answer_record(Line(1, text, None), answer, top=1, numbered=False)["predictions"]["about"]
        assert shown["labels"] == list(said.labels)
        assert set(shown["scores"]) >= set(said.labels)


def test_a_kind_that_reads_as_another_needs_nothing_in_the_client(client):
    served = client.tasks()["rating"]
    assert (served.kind, served.reads_as) == ("stars", "regression")
    assert 0 <= client.predict("please the film", tasks=["rating"])[0]["rating"].score <= 3
    assert task_table(client.tasks().values()).row_count == len(TASKS)


def test_a_hundred_and_more_labels_with_weights_and_none_of_these(client, trained):
    result = trained[0]["pairs"][1]
    assert result.spec.scores["accuracy"] > 10 / len(PAIRS)
    assert 0.1 <= result.spec.fitted["temperature"] <= 10
    served = client.tasks()["pairs"]
    assert served.labels == tuple(PAIRS)
    assert served.none_below == 0.6
    answers = client.predict([text for text, _ in many(40, 3)], tasks=["pairs"])
    assert {answer["pairs"].none_of_these for answer in answers} == {True, False}
    for said in (answer["pairs"] for answer in answers):
        assert said.none_of_these == (said.score < 0.6)
        assert said.record(3).get("none_of_these", False) == said.none_of_these
        assert (said.lines(1)[0][0] == "(none of these)") == said.none_of_these


@pytest.mark.parametrize("name", ["slots", "plain_slots"])
def test_spans_that_are_served_score_as_the_card_says(client, trained, name):
    """Spans by their characters, as a user gets them, against those of the data."""
    right = found = wanted = 0
    dev = lamps(60, 1)
    for (words, tags), answer in zip(dev, client.predict([" ".join(row) for row, _ in dev], tasks=[name]), strict=True):
        spans = {(span.type, span.text, span.start, span.end) for span in answer[name].spans}
        starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
        expected = {
            (kind, " ".join(words[first : last + 1]), starts[first], starts[last] + len(words[last]))
            for first, last, kind in read_spans(tags, ("lamp", "medium"), "BIO")
        }
        right, found, wanted = right + len(spans & expected), found + len(spans), wanted + len(expected)
    f1 = 2 * right / (found + wanted)
    assert f1 == pytest.approx(trained[0][name][1].spec.scores["span_f1"], abs=TIES)


@pytest.mark.parametrize(
    ("text", "words", "lamp"),
    [
        (
            "\u00e4\u4e2d \U0001f3b5\tplease\n\n the  RED light , film",
            [
                ("\u00e4", 0, 1), ("\u4e2d", 1, 2), ("\U0001f3b5", 3, 4), ("please", 5, 11), ("the", 14, 17),
                ("RED", 19, 22), ("light", 23, 28), (",", 29, 30), ("film", 31, 35),
            ],
            ("RED light", 19, 28),
        ),
        # The same to the tokenizer, which drops combining accents, a variation selector and a joiner.
        (
            "a\u0308\u4e2d \u2764\ufe0f\tplease\n\n the  RE\u0301D light\u0323 , film\u200d",
            [
                ("a\u0308", 0, 2), ("\u4e2d", 2, 3), ("\u2764\ufe0f", 4, 6), ("please", 7, 13), ("the", 16, 19),
                ("RE\u0301D", 21, 25), ("light\u0323", 26, 32), (",", 33, 34), ("film\u200d", 35, 40),
            ],
            ("RE\u0301D light\u0323", 21, 32),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "tags"),
    [("slots", ["O", "B-lamp", "I-lamp", "B-medium"]), ("plain_slots", ["O", "B-lamp", "L-lamp", "U-medium"])],
)
def test_words_and_spans_stand_where_they_are_in_the_text(client, name, tags, text, words, lamp):
    """Tabs, line breaks, an emoji and letters of several bytes before them."""
    said = client.predict(text, tasks=[name])[0][name]
    assert [(word.text, word.start, word.end) for word in said.words] == words
    assert [said.words[place].tag for place in (3, 5, 6, 8)] == tags
    assert {("lamp", *lamp), ("medium", *words[8])} <= {
        (span.type, span.text, span.start, span.end) for span in said.spans
    }


@pytest.mark.parametrize("name", ["slots", "plain_slots"])
def test_words_that_were_cut_off_say_so(client, name):
    """Of 32 tokens, 30 are words: 7 times 4, and "please the"."""
    answer = client.predict("please the red light " * 40, tasks=[name])[0]
    assert answer.truncated
    words = [(word.text, word.start, word.end) for word in answer[name].words]
    assert [word.tag is None for word in answer[name].words] == [False] * 30 + [True] * 128, "128 of the 130 unread"
    assert words[:3] == [("please", 0, 6), ("the", 7, 10), ("red", 11, 14)]
    assert words[28:31] == [("please", 147, 153), ("the", 154, 157), ("red", 158, 161)]
    assert words[-1] == ("the", 826, 829)


def test_a_word_that_was_cut_in_its_middle_is_one_word(client):
    """`zyxzyx` is six pieces, of which the first two are read."""
    answer = client.predict("please the red light " * 7 + "zyxzyx film, red", tasks=["slots"])[0]
    assert answer.truncated
    words = answer["slots"].words
    assert [word.tag is None for word in words] == [False] * 29 + [True] * 2
    assert [(word.text, word.start, word.end) for word in words[27:]] == [
        ("light", 141, 146),
        ("zyxzyx", 147, 153),
        ("film,", 154, 159),
        ("red", 160, 163),
    ]


def test_a_text_that_was_read_to_its_end_has_no_words_without_a_tag(client):
    said = client.predict("please the film \u200b", tasks=["slots"])[0]["slots"]
    assert [word.text for word in said.words] == ["please", "the", "film"]


def test_another_option_or_threshold_is_another_version(trained, tiny_trunk_folder, tmp_path):
    """Weights alone do not say what a head answers."""
    heads = shutil.copytree(trained[1], tmp_path / "heads")
    request = BuildRequest(output=tmp_path / "repository", heads=heads, trunk=tiny_trunk_folder, max_length=32)
    build = partial(build_repository, request)
    build()
    for name, change in (
        ("about", {"fitted": {"thresholds": [0.1, 0.2, 0.3]}}),
        ("pairs", {"options": {"none_below": 0.9}}),
        ("plain_slots", {"options": {"output": "softmax", "scheme": "BIO"}}),
    ):
        bundle = load_bundle(heads / name)
        save_bundle(heads / name, bundle.spec.model_copy(update=change), bundle.head(load_trunk(tiny_trunk_folder)))
    models = build().models
    changed = {name for name in models if models[name].startswith("version 2, new")}
    assert changed == {"head_about", "head_pairs", "head_plain_slots"}
    spec = json.loads((tmp_path / "repository" / "head_about" / "2" / "head.json").read_text())
    assert spec["fitted"] == {"thresholds": [0.1, 0.2, 0.3]}


def test_tasks_about_words_are_not_asked_with_token_ids(client):
    assert "slots" not in client.predict_tokens([[2, 7, 3]])[0].predictions
    with pytest.raises(BadInput, match="task 'slots' is about the words of a text: give the text, not token ids"):
        client.predict_tokens([[2, 7, 3]], tasks=["slots"])


def test_spans_are_asked_together_with_everything_else(client):
    texts = ["please the film", "red light and music very", "no"]
    together = client.predict(texts)
    assert set(together[0].predictions) == set(TASKS)
    for name in ("slots", "about"):
        for alone, whole in zip(client.predict(texts, tasks=[name]), together, strict=True):
            one, other = alone[name], whole[name]
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert [line[0] for line in one.lines(9)] == [line[0] for line in other.lines(9)]


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16", "bf16"])
def test_kinds_are_grouped_and_reduced(trained, tiny_trunk_folder, tmp_path, precision):
    """Every file is checked against torch, or against the files it is made of; int8 is judged on dev data."""
    gate = GateSettings(max_loss=20, task_dir=trained[1].parent)
    report = build_repository(
        BuildRequest(
            output=tmp_path / "repository",
            heads=trained[1],
            trunk=tiny_trunk_folder,
            max_length=32,
            group_heads=True,
            precision=parse_precision(precision),
            gate=GateSettings() if precision == "fp32" else gate,
        )
    )
    group = json.loads((tmp_path / "repository" / "heads_01" / "1" / "group.json").read_text())
    assert set(group["heads"]) == {"about", "rating", "pairs"}, "what answers for every token stays by itself"
    if precision != "fp32":
        assert set(report.gate) == set(TASKS)
        for name, result in report.gate.items():
            assert result.fp32 == pytest.approx(trained[0][name][1].spec.scores[result.metric], abs=TIES)


@pytest.mark.parametrize("name", ["slots", "about", "rating"])
def test_a_head_is_tried_compared_and_deployed(served, client, trained, tiny_trunk_folder, tmp_path, name):
    server, repository = served
    bundle = load_bundle(trained[1] / name)
    task, again = trained[0][name][0], tmp_path / name
    head = bundle.head(load_trunk(tiny_trunk_folder))
    with torch.no_grad():
        head.output.bias[0] += 1.0
    save_bundle(again, bundle.spec, head)
    file = tmp_path / "texts.jsonl"
    field = "words" if name == "slots" else "text"
    _, texts, label = TASKS[name]
    file.write_text("\n".join(json.dumps({field: text, "label": label(held)}) for text, held in texts(60, 1)))
    with Deployer(repository, url=server.grpc_url, trunk=tiny_trunk_folder, admin_key=KEY) as deployer:
        deployer.candidate(again)
        found = deployer.compare(file)
        deployer.promote()
        assert deployer.verify() == []
    assert (found.labelled, found.metric) == (60, task.metric)
    assert found.live_score == pytest.approx(trained[0][name][1].spec.scores[task.metric], abs=TIES)
    assert found.agreement < 1
    assert found.disagreements
    assert client.predict("please the film", tasks=[name])[0][name]
