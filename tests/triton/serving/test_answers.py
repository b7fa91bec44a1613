"""What a running server answers, and what it runs for it."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import psutil
import pytest
from tritonclient.grpc import InferenceServerClient

from onetrunk.serving import Server

T = TypeVar("T")
TASKS = ("match", "mood", "topic")
Ask = Callable[..., dict[str, np.ndarray]]


def settled(read: Callable[[], T]) -> T:
    """The reading of a counter once it stands still: Triton counts a run after it has passed the result on."""
    latest = read()
    while True:
        time.sleep(0.2)
        earlier, latest = latest, read()
        if earlier == latest:
            return latest


def in_process(server: Server, ids: list[int], types: list[int], task: str) -> np.ndarray:
    """The same models, run by ONNX Runtime here, without padding, batching or Triton."""

    def run(model: str, **inputs: Any) -> np.ndarray:
        path = server.repository / model / "1" / "model.onnx"
        return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]

    row, mask = np.array([ids]), np.ones((1, len(ids)), dtype=np.int64)
    hidden = run("trunk_00_01", input_ids=row, attention_mask=mask, token_type_ids=np.array([types]))
    return run(f"head_{task}", hidden_state=hidden, attention_mask=mask)


@pytest.mark.parametrize("task", TASKS)
def test_text_and_token_ids_get_the_models_own_scores(server: Server, ask: Ask, words: list[str], task: str) -> None:
    ids = [words.index(word) for word in ("[CLS]", "a", "good", "[SEP]", "b", "[SEP]")]
    types = [0, 0, 0, 0, 1, 1]
    expected = in_process(server, ids, types, task)
    by_text = ask("multitask", text=["a good"], text_pair=["b"])
    by_ids = ask("multitask_tokens", input_ids=[ids], token_type_ids=[types])
    np.testing.assert_allclose(by_text[task], expected, atol=1e-6)
    np.testing.assert_allclose(by_ids[task], expected, atol=1e-6)


def test_a_single_text_needs_no_second_input(server: Server, ask: Ask, words: list[str]) -> None:
    ids = [words.index(word) for word in ("[CLS]", "bad", "[SEP]")]
    answers = ask("multitask", text=["bad"])
    assert set(answers) == {*TASKS, "truncated"}
    for task in TASKS:
        np.testing.assert_allclose(answers[task], in_process(server, ids, [0, 0, 0], task), atol=1e-6)


@pytest.mark.parametrize("subset", [c for n in (1, 2) for c in itertools.combinations(TASKS, n)], ids="+".join)
def test_every_subset_answers_as_all_together_and_runs_no_other_head(
    ask: Ask, client: InferenceServerClient, subset: tuple[str, ...]
) -> None:
    def runs() -> dict[str, int]:
        counts = {}
        for task in TASKS:
            stats = client.get_inference_statistics(f"head_{task}", as_json=True)["model_stats"][0]
            counts[task] = int(stats.get("inference_count", 0))
        return counts

    everything = ask("multitask", text=["a good day", "b"])
    before = settled(runs)
    some = ask("multitask", outputs=list(subset), text=["a good day", "b"])
    assert set(some) == set(subset)
    for task in subset:
        np.testing.assert_array_equal(some[task], everything[task])
    after = settled(runs)
    assert {task: after[task] - before[task] for task in TASKS} == {task: 2 * (task in subset) for task in TASKS}


def test_mixed_requests_under_load_get_the_answers_of_a_quiet_server(ask: Ask) -> None:
    """Texts of every bucket, with and without a second text, and token ids, from many threads at once."""
    requests: list[tuple[str, dict[str, Any]]] = []
    for n in range(1, 30):
        requests.append(("multitask", {"text": ["a good " * n]}))
        requests.append(("multitask", {"text": ["a " * n, "b"], "text_pair": ["", "bad " * n]}))
        requests.append(("multitask_tokens", {"input_ids": [[2, *[4 + n % 9] * n, 3]]}))
    alone = [ask(model, **inputs) for model, inputs in requests]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda request: ask(request[0], **request[1]), requests * 3))
    for expected, found in zip(alone * 3, together, strict=True):
        assert set(found) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_the_requests_were_batched(ask: Ask, client: InferenceServerClient) -> None:
    def executions() -> tuple[int, int]:
        stats = client.get_inference_statistics("tokenizer", as_json=True)["model_stats"][0]
        return int(stats["inference_count"]), int(stats["execution_count"])

    before = settled(executions)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: ask("multitask", text=["a good day"]), range(200)))
    inferences, runs = (after - was for after, was in zip(settled(executions), before, strict=True))
    assert inferences == 200
    assert runs < 200


def test_clients_learn_the_tasks_from_the_ensembles_config(server: Server, client: InferenceServerClient) -> None:
    for ensemble in ("multitask", "multitask_tokens"):
        config = client.get_model_config(ensemble).config
        assert set(json.loads(config.parameters["onetrunk"].string_value)["tasks"]) == set(TASKS)
    assert set(server.tasks) == set(TASKS)


def test_http_and_metrics_answer(server: Server, ask: Ask) -> None:
    ask("multitask", text=["a"])
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/multitask/ready", timeout=60) as response:
        assert response.status == 200
    with urllib.request.urlopen(server.metrics_url, timeout=60) as response:
        assert b'nv_inference_request_success{model="head_mood"' in response.read()


def test_the_front_listens_on_loopback_and_triton_on_no_network(server: Server) -> None:
    def listening(pid: int | None) -> list[str]:
        connections = psutil.Process(pid).net_connections()
        # gRPC listens on an IPv6 socket, to which IPv4 addresses look like ::ffff:127.0.0.1
        return [c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN]

    assert listening(server.pid) == []
    assert listening(server.front_pid) == ["127.0.0.1"] * 3
