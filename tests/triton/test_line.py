"""The whole line: what a client gets from a real Triton is what each task's own torch model says."""

import itertools
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient

from onetrunk.client import Client
from onetrunk.export.onnx_file import ServedHead
from onetrunk.nn.bundle import load_bundle
from onetrunk.tasks.head_spec import find_bundles

TEXTS = [
    "the film was very good",
    "please turn on the red light in the house ! " * 3,
    "Who plays blue music?",
    "bad",
    "the plot, the actor and the long scene: not great, not poor.",
]
PAIRS = ["a good film", "no", "what music ?", "very very bad " * 20, "short"]


@pytest.fixture(scope="module")
def client(served):
    with Client(served.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def expected(tiny_trunk, tiny_heads):
    """Task -> scores for each text (with its pair where the task takes one), by the single-task torch model."""
    tokenizer = tiny_trunk.tokenizer()
    tokenizer.enable_truncation(32)
    scores = {}
    for folder in find_bundles(tiny_heads):
        bundle = load_bundle(folder)
        module = ServedHead(bundle.head(tiny_trunk), bundle.spec)
        rows = zip(TEXTS, PAIRS, strict=True) if bundle.spec.form == "pair" else TEXTS
        scores[bundle.spec.task] = [single_task(tiny_trunk, module, tokenizer.encode(*as_pair(row))) for row in rows]
    return scores


def as_pair(row):
    return (row,) if isinstance(row, str) else row


def single_task(trunk, module, encoding):
    ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
    mask = torch.ones_like(ids)
    tap = module.spec.tap
    with torch.no_grad():
        return module.forward_whole(trunk.states(ids, types, mask, [tap])[tap], mask)[0].tolist()


def given(prediction):
    """A prediction's scores in no order; a regression's one number."""
    return sorted(prediction.scores.values()) if prediction.label else [prediction.score]


@pytest.mark.parametrize("form", ["single", "pair"])
def test_merging_changes_no_prediction(client, expected, form):
    tasks = [name for name, task in client.tasks().items() if task.form == form]
    assert len(tasks) == 2
    answers = client.predict(TEXTS, PAIRS if form == "pair" else None, tasks)
    for row, answer in enumerate(answers):
        for task in tasks:
            assert given(answer[task]) == pytest.approx(sorted(expected[task][row]), abs=1e-4), (task, row)
    assert [answer.truncated for answer in answers] == [
        (form == "pair" and row in (1, 3)) or row == 1 for row in range(5)
    ]


def test_every_subset_answers_as_all_tasks_at_once(client):
    for form, pairs in (("single", None), ("pair", PAIRS)):
        tasks = [name for name, task in client.tasks().items() if task.form == form]
        together = client.predict(TEXTS, pairs, tasks)
        for size in range(1, len(tasks) + 1):
            for subset in itertools.combinations(tasks, size):
                for alone, whole in zip(client.predict(TEXTS, pairs, subset), together, strict=True):
                    assert set(alone.predictions) == set(subset)
                    for task in subset:
                        assert given(alone[task]) == pytest.approx(given(whole[task]), abs=1e-5)


def test_token_ids_answer_as_the_text_they_come_from(client, tiny_trunk):
    tokenizer = tiny_trunk.tokenizer()
    rows = [tokenizer.encode(text).ids for text in TEXTS if len(tokenizer.encode(text).ids) <= 32]
    texts = [text for text in TEXTS if len(tokenizer.encode(text).ids) <= 32]
    assert len(rows) >= 3
    for by_ids, by_text in zip(
        client.predict_tokens(rows, tasks=["mood"]), client.predict(texts, tasks=["mood"]), strict=True
    ):
        assert given(by_ids["mood"]) == pytest.approx(given(by_text["mood"]), abs=1e-5)


@pytest.mark.parametrize("model", ["multitask", "multitask_tokens"])
def test_every_subset_of_outputs_is_the_same_as_all_outputs_at_once(served, model):
    """Heads on three taps, single and pair tasks together, asked of Triton itself: its skipping changes no score."""
    client = grpcclient.InferenceServerClient(served.grpc_url)
    if model == "multitask":
        inputs = [grpcclient.InferInput(name, [3, 1], "BYTES") for name in ("text", "text_pair")]
        for tensor, rows in zip(inputs, (TEXTS, PAIRS), strict=True):
            tensor.set_data_from_numpy(np.array([[row.encode()] for row in rows[:3]], dtype=object))
    else:
        ids = np.arange(5, 65, dtype=np.int64).reshape(3, 20)
        inputs = [grpcclient.InferInput("input_ids", list(ids.shape), "INT64")]
        inputs[0].set_data_from_numpy(ids)

    def ask(tasks):
        outputs = [grpcclient.InferRequestedOutput(task) for task in tasks]
        result = client.infer(model, inputs, outputs=outputs)
        assert {output.name for output in result.get_response().outputs} == set(tasks)
        return {task: result.as_numpy(task) for task in tasks}

    tasks = ("grade", "match", "mood", "topic")
    together = ask(tasks)
    for size in range(1, len(tasks)):
        for subset in itertools.combinations(tasks, size):
            for task, scores in ask(subset).items():
                np.testing.assert_allclose(scores, together[task], atol=1e-6, err_msg=f"{task} of {subset}")


def test_triton_names_the_labels_by_its_classification_extension(served):
    client = grpcclient.InferenceServerClient(served.grpc_url)
    text = grpcclient.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"a good film"]], dtype=object))
    result = client.infer("multitask", [text], outputs=[grpcclient.InferRequestedOutput("topic", class_count=3)])
    found = [entry.decode().split(":") for entry in result.as_numpy("topic").ravel()]
    assert {(int(index), label) for _, index, label in found} == {(0, "film"), (1, "house"), (2, "music")}
    assert sum(float(score) for score, _, _ in found) == pytest.approx(1, abs=1e-5)


def test_the_demo_shows_singles_and_pairs(tiny_repository, tmp_path, capsys):
    folder = Path(__file__).resolve().parents[2] / "examples"
    demo = runpy.run_path(str(folder / "demo.py"))
    demo["ask"](shutil.copytree(tiny_repository, tmp_path / "model_repository"))
    shown = capsys.readouterr().out
    assert all(task in shown for task in ("grade", "match", "mood", "topic"))
