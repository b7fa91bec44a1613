"""Candidates that answer a share of the traffic: which requests, what happens if they fail, and what stops them."""

import logging
import time

import grpc
import pytest

from onetrunk.admin import AdminClient
from onetrunk.client.readers import reader_of
from onetrunk.client.wire import bytes_tensor, request_message, response_arrays
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.traffic_split import TrafficSplit
from onetrunk.serving.front import trials as trials_module
from onetrunk.serving.front.trials import Trial, _Sample, differs
from tests.fixtures.fake_triton import score

SURE = [0.99, 0.01]  # of a candidate; the fake's live head says less than a half of any text


def split(**bounds):
    return {"version": 7, "split": {"share": 1.0, "errors": 0.02, "latency": None, "disagreement": None, **bounds}}


@pytest.fixture
def served(make_served, monkeypatch):
    """A front before a fake whose task sst2 has a candidate that answers everything."""
    monkeypatch.setattr("onetrunk.serving.front.gateway.CATALOGUE_AGE_S", 0.05)
    monkeypatch.setattr("onetrunk.serving.front.gateway.RETRY_S", 0.05)
    # On a machine with much to do, a candidate may be slow without a fault.
    monkeypatch.setattr(trials_module, "LEAST_PATIENCE_S", 30.0)
    found = make_served()
    found.triton.candidate = lambda task, row: SURE
    set_split(found, **split())
    return found


def set_split(served, **candidate):
    """Change the candidate of sst2, and wait until the front knows."""
    served.triton.tasks["sst2"]["candidate"] = candidate
    wanted = candidate["split"]["share"]
    with AdminClient(served.grpc_url) as client:
        for _ in range(1000):
            found = client.trials().get("sst2")
            if found is not None and found["share"] == wanted and found["version"] == candidate["version"]:
                return
    raise AssertionError("the front has not read the share")


def asked_for(served, path="/v1/predict", tasks=("sst2",), **headers):
    status, found = served.ask("POST", path, {"texts": ["a text"], "tasks": list(tasks)}, **headers)
    assert status == 200, found
    return found["answers"][0]["predictions"]["sst2"]["scores"]["negative"]


def asked_over_grpc(served, *metadata, name="", outputs=("sst2", "cola")):
    message = request_message("multitask", [bytes_tensor("text", [b"a text"])], outputs)
    message.id = name
    with grpc.insecure_channel(served.grpc_url) as channel:
        from tritonclient.grpc import service_pb2_grpc

        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, metadata=metadata)
    return {output: float(scores[0].flat[0]) for output, scores in response_arrays(answer).items()}


def is_candidates(probability):
    return probability == pytest.approx(SURE[0])


def test_the_candidate_answers_its_share_at_both_doors_and_the_live_head_all_else(served):
    live = score(served.triton.tasks["sst2"], ("a text",))[0]
    assert is_candidates(asked_for(served))
    found = asked_over_grpc(served)
    assert is_candidates(found["sst2"])
    assert found["cola"] == pytest.approx(score(served.triton.tasks["cola"], ("a text",))[0])
    models = [request.model for request in served.triton.requests]
    assert models.count("candidate_sst2") == 2
    served.triton.tasks["sst2"].pop("candidate")
    with AdminClient(served.grpc_url) as client:
        while client.trials():
            pass
    assert asked_for(served) == pytest.approx(live, abs=1e-5)


def test_a_text_that_is_read_in_windows_keeps_the_live_answer(served):
    served.triton.tasks["sst2"].update(long_texts="windows", window_overlap=0.25)
    set_split(served, **(split() | {"version": 8}))  # and so the front has read the tasks anew
    body = {"texts": ["a text", " ".join(["longer"] * 30)], "tasks": ["sst2"]}
    short, long = served.ask("POST", "/v1/predict", body)[1]["answers"]
    assert is_candidates(short["predictions"]["sst2"]["scores"]["negative"])
    assert long["predictions"]["sst2"]["windows"] > 1
    assert not is_candidates(long["predictions"]["sst2"]["scores"]["negative"])


def test_requests_of_one_key_get_one_version_at_both_doors(served):
    set_split(served, **split(share=0.5))
    keys = [f"user {number}" for number in range(40)]
    first = [is_candidates(asked_for(served, **{"x-onetrunk-key": key})) for key in keys]
    assert 5 < sum(first) < 35
    assert [is_candidates(asked_for(served, **{"x-onetrunk-key": key})) for key in keys] == first
    assert [is_candidates(asked_over_grpc(served, ("x-onetrunk-key", key))["sst2"]) for key in keys] == first
    ids = [f"r{number}" for number in range(20)]
    assert [is_candidates(asked_over_grpc(served, name=one)["sst2"]) for one in ids] == [
        is_candidates(asked_over_grpc(served, name=one)["sst2"]) for one in ids
    ]


def fail(task, row):
    raise RuntimeError("the candidate is broken")


def test_a_candidate_that_fails_is_not_noticed_and_is_stopped(served, monkeypatch, caplog):
    monkeypatch.setattr(trials_module, "LEAST_REQUESTS", 5)
    live = score(served.triton.tasks["sst2"], ("a text",))[0]
    served.triton.candidate = fail
    with caplog.at_level(logging.ERROR, logger="onetrunk.serving.front"):
        assert [asked_for(served) for _ in range(8)] == pytest.approx([live] * 8, abs=1e-5)
    assert [request.model for request in served.triton.requests].count("candidate_sst2") == 5
    with AdminClient(served.grpc_url) as client:
        told = client.trials()["sst2"]
    assert told["stopped"] == "it failed to answer 100.0% of 5 requests; allowed: 2.0%"
    assert f"candidate version 7 of sst2 is stopped: {told['stopped']}" in caplog.text
    served.triton.candidate = lambda task, row: SURE
    set_split(served, **split() | {"version": 8})
    assert is_candidates(asked_for(served)), "another candidate begins anew"


def test_a_candidate_that_was_stopped_and_discarded_has_a_new_chance(served, monkeypatch):
    monkeypatch.setattr(trials_module, "LEAST_REQUESTS", 5)
    served.triton.candidate = fail
    for _ in range(6):
        asked_for(served)
    served.triton.candidate = lambda task, row: SURE
    assert not is_candidates(asked_for(served)), "it is stopped"
    del served.triton.tasks["sst2"]["candidate"]
    with AdminClient(served.grpc_url) as client:
        wait_for(lambda: "sst2" not in client.trials())
    set_split(served, **split())
    assert is_candidates(asked_for(served)), "the same version again"


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_candidate_that_hangs_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(trials_module, "LEAST_PATIENCE_S", 0.05)
    monkeypatch.setattr(trials_module, "PATIENCE", 0.0)
    served.triton.candidate_delay_s = 3.0
    assert not is_candidates(asked_for(served))
    assert not is_candidates(asked_over_grpc(served)["sst2"])


def test_a_candidate_that_answers_otherwise_too_often_is_stopped(served, monkeypatch):
    monkeypatch.setattr(trials_module, "LEAST_REQUESTS", 4)
    set_split(served, **split(disagreement=0.5) | {"version": 8})
    found = [is_candidates(asked_for(served)) for _ in range(6)]
    assert found == [True] * 4 + [False] * 2
    set_split(served, **split(disagreement=0.6, share=0.9) | {"version": 9})
    served.triton.candidate = lambda task, row: [0.1, 0.9]
    for _ in range(3):
        asked_over_grpc(served)
    with AdminClient(served.grpc_url) as client:
        assert client.trials()["sst2"]["disagreement"] in (0.0, None)


def test_a_candidate_is_read_by_what_was_fitted_for_it(served):
    served.triton.candidate = lambda task, row: [0.3, 0.7]  # as the live head says, with another label
    live = score(served.triton.tasks["sst2"], ("a text",))
    set_split(served, **split() | {"version": 8, "reads": {"none_below": 0.8}})
    found = served.ask("POST", "/v1/predict", {"texts": ["a text"], "tasks": ["sst2"]})[1]["answers"][0]
    assert found["predictions"]["sst2"]["none_of_these"] is True
    # Over gRPC, the client reads by what the catalogue says of the live head, so that this one answers.
    assert asked_over_grpc(served)["sst2"] == pytest.approx(live[0])
    with AdminClient(served.grpc_url) as client:
        told = client.trials()["sst2"]
    assert (told["requests"], told["errors"], told["disagreement"]) == (2, 0.0, 1.0)


def test_a_candidate_whose_description_is_broken_fails_and_the_live_head_answers(served):
    served.triton.tasks["sst2"].update(kind="multilabel", thresholds=[0.5, 0.5])
    set_split(served, **split() | {"version": 8, "reads": {}})
    assert not is_candidates(asked_for(served))
    assert not is_candidates(asked_over_grpc(served)["sst2"])
    with AdminClient(served.grpc_url) as client:
        assert client.trials()["sst2"]["errors"] == 1.0


def test_what_is_not_compared_is_not_told_as_agreement(served):
    served.triton.tasks["sst2"].update(kind="tagging", labels=["name"], scheme="BIO", metric="span_f1")
    served.triton.candidate = lambda task, row: [[1.0, 0.9]] * 2
    set_split(served, **split(disagreement=0.1) | {"version": 8})
    asked_over_grpc(served, outputs=("sst2",))
    with AdminClient(served.grpc_url) as client:
        told = client.trials()["sst2"]
    assert (told["requests"], told["errors"], told["disagreement"]) == (1, 0.0, None)


def test_an_ensemble_that_a_restarted_triton_does_not_hold_is_loaded(served):
    served.triton.candidate = None
    for _ in range(3):
        assert not is_candidates(asked_for(served))
    assert served.triton.loads == ["candidate_sst2"]
    with AdminClient(served.grpc_url) as client:
        assert client.trials()["sst2"]["requests"] == 0


def test_a_candidate_that_one_process_of_a_front_stops_is_stopped_in_all_without_a_look_for_each_request(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trials_module, "LOOK_EVERY_S", 3600.0)
    one, other = (Trial(1, TrafficSplit(share=0.1), tmp_path / "stopped_a") for _ in range(2))
    one.look()
    other.look()
    one.stop("it is bad")
    other.look()
    assert other.stopped is None, "it has looked a moment ago"
    monkeypatch.setattr(trials_module, "LOOK_EVERY_S", 0.0)
    other.look()
    assert other.stopped == "it is bad"
    assert [path.name for path in tmp_path.iterdir()] == ["stopped_a"]


def test_bounds():
    def judged(samples, **bounds):
        trial = Trial(1, TrafficSplit(share=0.1, **bounds))
        trial.samples.extend(samples)
        return trial.fault()

    good, slow, bad = _Sample(False, 1.0, 1.0, 0, 2), _Sample(False, 4.0, 1.0, 1, 2), _Sample(True, 1.0, 1.0)
    assert judged([good] * 50) is None
    assert judged([slow] * 49) is None, "too few to judge by"
    assert judged([slow] * 50) == "its median time is 4.0 times the live head's; allowed is 3"
    assert judged([slow] * 50, latency=None) is None
    assert "differently" in judged([slow] * 50, latency=None, disagreement=0.4)
    assert judged([good] * 49 + [bad]) is None
    assert "failed to answer 4.0%" in judged([good] * 48 + [bad] * 2)


@pytest.mark.parametrize(
    ("fields", "live", "candidate", "different"),
    [
        ({"kind": "classification", "labels": ["a", "b"]}, [0.9, 0.1], [0.6, 0.4], False),
        ({"kind": "classification", "labels": ["a", "b"]}, [0.9, 0.1], [0.4, 0.6], True),
        ({"kind": "classification", "labels": ["a", "b"], "none_below": 0.7}, [0.9, 0.1], [0.6, 0.4], True),
        ({"kind": "multilabel", "labels": ["a", "b"], "thresholds": [0.5, 0.5]}, [0.9, 0.8], [0.6, 0.7], False),
        ({"kind": "multilabel", "labels": ["a", "b"], "thresholds": [0.5, 0.5]}, [0.9, 0.8], [0.6, 0.4], True),
        ({"kind": "regression", "range": [0, 5]}, [3.0], [3.4], False),
        ({"kind": "regression", "range": [0, 5]}, [3.0], [3.6], True),
    ],
)
def test_what_is_another_answer(fields, live, candidate, different):
    base = {"name": "t", "form": "single", "metric": "m", "tap": 1, "layers": 1, "version": 1}
    task = TaskInfo.model_validate(base | fields)
    reader = reader_of(task)
    assert differs(task, reader.read(task, live), reader.read(task, candidate)) is different


def test_metrics_tell_versions_apart(served):
    import urllib.request

    asked_for(served)
    port = served.metrics_port
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    assert 'onetrunk_candidate_requests_total{outcome="ok",task="sst2",version="7"} 1.0' in text
    assert 'onetrunk_candidate_seconds_count{task="sst2",version="live"} 1.0' in text
    assert 'onetrunk_candidate_disagreements_total{task="sst2",version="7"} 1.0' in text
