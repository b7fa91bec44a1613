"""Other servers' protocols: what their clients send is answered in their shapes, errors included."""

from __future__ import annotations

import math
import re
from typing import Any

import grpc
import pytest

from tests.unit.serving.front.conftest import Served

LONG = "x" * 101  # what the fake calls truncated
TAGGING = {"kind": "tagging", "form": "single", "labels": ["artist"], "scheme": "BIO", "metric": "f1"}
TOPICS = {"kind": "multilabel", "form": "single", "labels": ["art", "law"], "thresholds": [0.5, 0.5], "metric": "f1"}


@pytest.fixture(autouse=True)
def more_tasks(served: Served) -> None:
    for name, task in {"slots": TAGGING, "topics": TOPICS}.items():
        served.triton.tasks[name] = {**task, "tap": 1, "layers": 1, "version": 1}


def first(text: str) -> float:
    """The probability that the fake gives to the first label."""
    return 1 / (1 + len(text))


class TestTei:
    def test_one_text_is_a_list_of_labels_and_a_batch_a_list_of_lists(self, served: Served) -> None:
        status, one = served.ask("POST", "/predict?task=sst2", {"inputs": "abc"})
        assert status == 200
        assert [entry["label"] for entry in one] == ["positive", "negative"]
        assert [entry["score"] for entry in one] == [0.75, 0.25]
        assert served.ask("POST", "/predict?task=sst2", {"inputs": ["abc"]}) == (200, one)
        assert served.ask("POST", "/predict?task=sst2", {"inputs": [["abc"], ["abc"]]}) == (200, [one, one])

    def test_two_strings_are_a_pair(self, served: Served) -> None:
        assert served.ask("POST", "/predict?task=stsb", {"inputs": ["abcd", "e"]}) == (
            200,
            [{"score": 4.0, "label": "LABEL_0"}],
        )
        assert served.triton.requests[-1].rows == [("abcd", b"e")]
        status, batch = served.ask("POST", "/predict?task=mnli", {"inputs": [["abcd", "e"], ["f", "g"]]})
        assert status == 200
        assert [len(row) for row in batch] == [3, 3]

    @pytest.mark.parametrize("task", ["sst2", "topics"])
    def test_raw_scores_give_back_the_probabilities(self, served: Served, task: str) -> None:
        _, plain = served.ask("POST", f"/predict?task={task}", {"inputs": "abc"})
        _, raw = served.ask("POST", f"/predict?task={task}", {"inputs": "abc", "raw_scores": True})
        logits = [entry["score"] for entry in raw]
        total = sum(map(math.exp, logits))
        activation = (lambda x: math.exp(x) / total) if task == "sst2" else (lambda x: 1 / (1 + math.exp(-x)))
        assert [activation(x) for x in logits] == pytest.approx([entry["score"] for entry in plain], abs=1e-5)

    def test_a_certain_answer_has_finite_raw_scores(self, served: Served) -> None:
        def certain(response: Any) -> None:
            for at, output in enumerate(response.outputs):
                if output.name == "sst2":
                    response.raw_output_contents[at] = b"\0\0\x80\x3f\0\0\0\0"

        served.triton.spoil = certain
        _, raw = served.ask("POST", "/predict?task=sst2", {"inputs": "abc", "raw_scores": True})
        assert all(math.isfinite(entry["score"]) for entry in raw)
        assert raw[0]["label"] == "negative"

    def test_a_text_that_is_cut_is_refused_if_it_must_not_be(self, served: Served) -> None:
        assert served.ask("POST", "/predict?task=sst2", {"inputs": LONG})[0] == 200
        status, answer = served.ask("POST", "/predict?task=sst2", {"inputs": [["a"], [LONG]], "truncate": False})
        assert (status, answer["error_type"]) == (413, "validation")
        assert "inputs 1 is longer" in answer["error"]

    @pytest.mark.parametrize(
        ("path", "body", "status", "kind", "says"),
        [
            ("/predict", {"inputs": "a"}, 422, "validation", r"name one with \?task=. Served: sst2, cola, mnli, stsb"),
            ("/predict?task=moon", {"inputs": "a"}, 404, "validation", "unknown task 'moon'"),
            ("/predict?task=slots", {"inputs": "a"}, 424, "backend", "tagging"),
            ("/predict?task=sst2", {"inputs": ""}, 422, "tokenizer", "empty"),
            ("/predict?task=mnli", {"inputs": "a"}, 422, "tokenizer", "pair"),
            ("/predict?task=sst2", {"inputs": []}, 422, "validation", "inputs"),
            ("/predict?task=sst2", {"inputs": ["a", "b", "c"]}, 422, "validation", "inputs"),
            ("/predict?task=sst2", {"inputs": [["a", "b", "c"]]}, 422, "validation", "inputs"),
            ("/predict?task=sst2", {"inputs": [["a"], "b"]}, 422, "validation", "inputs"),
            ("/predict?task=sst2", {"inputs": 1}, 422, "validation", "inputs"),
            ("/predict?task=sst2", {"inputs": [["a"]] * 2000}, 413, "validation", "at most"),
        ],
    )
    def test_errors(self, served: Served, path: str, body: Any, status: int, kind: str, says: str) -> None:
        found, answer = served.ask("POST", path, body)
        assert (found, answer["error_type"]) == (status, kind)
        assert set(answer) == {"error", "error_type"}
        assert re.search(says, answer["error"])

    def test_a_failure_of_the_server_is_the_backends(self, served: Served) -> None:
        served.triton.faults.extend([(grpc.StatusCode.INTERNAL, "it broke")] * 9)
        status, answer = served.ask("POST", "/predict?task=sst2", {"inputs": "a"})
        assert (status, answer["error_type"]) == (424, "backend")

    def test_the_only_task_needs_no_name(self, served: Served) -> None:
        served.triton.tasks = {name: served.triton.tasks[name] for name in ("slots", "cola")}
        status, answer = served.ask("POST", "/predict", {"inputs": "abc"})
        assert status == 200
        assert {entry["label"] for entry in answer} == {"acceptable", "unacceptable"}


class TestClassify:
    def test_vllm_lists_probabilities_in_the_order_of_the_labels(self, served: Served) -> None:
        status, answer = served.ask("POST", "/classify", {"model": "sst2", "input": ["abc", "abcd"]})
        assert status == 200
        assert answer["data"][0] == {"index": 0, "label": "positive", "probs": [0.25, 0.75], "num_classes": 2}
        assert answer["data"][1]["probs"] == pytest.approx([first("abcd"), 1 - first("abcd")], abs=1e-6)
        assert answer["object"] == "list"
        assert answer["id"].startswith("classify-")
        assert (answer["model"], answer["usage"]) == ("sst2", {"prompt_tokens": 0, "total_tokens": 0})

    def test_one_string_numbers_pairs_and_unknown_fields(self, served: Served) -> None:
        body = {"model": "sst2", "input": "abc", "use_activation": False, "truncate_prompt_tokens": -1}
        status, answer = served.ask("POST", "/classify", body)
        assert status == 200
        assert answer["data"][0]["probs"] == pytest.approx([math.log(0.25), math.log(0.75)], abs=1e-5)
        _, answer = served.ask("POST", "/classify", {"model": "stsb", "input": [["abcd", "e"]]})
        assert answer["data"] == [{"index": 0, "label": "LABEL_0", "probs": [4.0], "num_classes": 1}]

    def test_infinity_lists_labels_by_score(self, served: Served) -> None:
        status, answer = served.ask("POST", "/v1/classify", {"model": "sst2", "input": ["abc"]})
        assert status == 200
        assert answer["object"] == "classify"
        assert answer["data"] == [[{"score": 0.75, "label": "positive"}, {"score": 0.25, "label": "negative"}]]
        assert answer["id"].startswith("infinity-")

    def test_no_model_is_enough_if_there_is_one(self, served: Served) -> None:
        served.triton.tasks = {"cola": served.triton.tasks["cola"]}
        assert served.ask("POST", "/classify", {"input": "abc"})[1]["model"] == "cola"
        body = {"model": "default/not-specified", "input": ["abc"]}
        assert served.ask("POST", "/v1/classify", body)[1]["model"] == "cola"

    @pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
    @pytest.mark.parametrize(
        ("body", "status", "kind", "says"),
        [
            ({"input": "a"}, 400, "BadRequestError", "name one as `model`. Served: sst2"),
            ({"model": "moon", "input": "a"}, 404, "NotFoundError", "unknown task 'moon'"),
            ({"model": "slots", "input": "a"}, 400, "BadRequestError", "ask /v1/predict"),
            ({"model": "sst2", "input": [1, 2]}, 400, "BadRequestError", "input"),
            ({"model": "sst2", "input": []}, 400, "BadRequestError", "input: the list is empty; give at least 1 text"),
            ({"model": "sst2", "input": [["a", "b"]]}, 400, "BadRequestError", "'sst2' reads texts"),
            ({"model": "mnli", "input": ["a"]}, 400, "BadRequestError", "'mnli' reads lists of two texts"),
            ({"model": "sst2", "input": " "}, 400, "BadRequestError", "row 0"),
        ],
    )
    def test_errors(self, served: Served, path: str, body: Any, status: int, kind: str, says: str) -> None:
        served.triton.refuse = lambda row: "nothing to read" if not row[0].strip() else None
        found, answer = served.ask("POST", path, body)
        assert found == status, answer
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert (answer["error"]["type"], answer["error"]["code"]) == (kind, status)
        assert says in answer["error"]["message"]

    def test_models_are_listed_for_both_kinds_of_client(self, served: Served) -> None:
        status, answer = served.ask("GET", "/v1/models")
        assert status == 200
        names = ["sst2", "cola", "mnli", "stsb", "slots", "topics"]
        assert [one["id"] for one in answer["data"]] == names
        assert [one["name"] for one in answer["models"]] == names
        assert answer["models"][0]["description"] == "classification of single texts: negative, positive (version 1)"


class TestKserveV1:
    def test_instances_of_all_three_forms(self, served: Served) -> None:
        status, answer = served.ask("POST", "/v1/models/sst2:predict", {"instances": ["abc", {"text": "abc"}]})
        assert status == 200
        mood = {"label": "positive", "score": 0.75, "scores": {"positive": 0.75, "negative": 0.25}}
        assert answer == {"predictions": [mood, mood]}
        body = {"instances": [["abcd", "e"], {"text": "abc", "text_pair": "e"}]}
        assert served.ask("POST", "/v1/models/stsb:predict", body)[1] == {
            "predictions": [{"score": 4.0}, {"score": 3.0}]
        }

    def test_multitask_asks_every_task_that_fits(self, served: Served) -> None:
        del served.triton.tasks["slots"]
        status, answer = served.ask("POST", "/v1/models/multitask:predict", {"instances": ["abc", ["abc", "d"]]})
        assert status == 200
        assert [set(one) for one in answer["predictions"]] == [{"sst2", "cola", "topics"}, {"mnli", "stsb"}]

    def test_readiness_is_tritons(self, served: Served) -> None:
        assert served.ask("GET", "/v1/models/sst2") == (200, {"name": "sst2", "ready": True})
        assert served.ask("GET", "/v1/models/multitask") == (200, {"name": "multitask", "ready": True})
        served.triton.ready = False
        assert served.ask("GET", "/v1/models/sst2") == (503, {"name": "sst2", "ready": False})

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "says"),
        [
            ("GET", "/v1/models/moon", None, 404, "unknown task 'moon'"),
            ("GET", "/v1/models/sst2:predict", None, 405, "send POST"),
            ("POST", "/v1/models/moon:predict", {"instances": ["a"]}, 404, "unknown task 'moon'"),
            ("POST", "/v1/models/sst2:explain", {"instances": ["a"]}, 404, "there is nothing here"),
            (
                "POST",
                "/v1/models/sst2:predict",
                {"inputs": ["a"]},
                422,
                "instances is missing: found inputs; send JSON",
            ),
            ("POST", "/v1/models/sst2:predict", {"instances": []}, 422, "instances"),
            ("POST", "/v1/models/sst2:predict", {"instances": [["a", "b", "c"]]}, 422, "instances"),
            ("POST", "/v1/models/mnli:predict", {"instances": ["a"]}, 400, "row 0"),
        ],
    )
    def test_errors(self, served: Served, method: str, path: str, body: Any, status: int, says: str) -> None:
        found, answer = served.ask(method, path, body)
        assert found == status, answer
        assert says in answer["error"]
