"""Reading the ensemble's parameter ``onetrunk``."""

from __future__ import annotations

import json

import pytest
from tritonclient.grpc import model_config_pb2

from onetrunk.client.catalogue import read_catalogue
from onetrunk.client.readers import reader_of
from onetrunk.protocol.errors import ServerError, UnknownTask

# The example of docs/contracts.md.
PARAMETER = json.loads("""
    {"schema": 1, "trunk": "bert-6x384@0123456789ab", "max_length": 128, "buckets": [16, 32, 64, 128],
     "tasks": {"sst2": {"kind": "classification", "form": "single", "labels": ["negative", "positive"], "range": null,
                        "metric": "accuracy", "tap": 4, "layers": 1, "version": 1}}}
""")


def config(parameter):
    message = model_config_pb2.ModelConfig(name="multitask", max_batch_size=32)
    message.parameters["onetrunk"].string_value = json.dumps(parameter)
    return message


def test_the_contracts_example():
    catalogue = read_catalogue(config(PARAMETER))
    assert (catalogue.trunk, catalogue.max_batch_size, catalogue.max_length) == ("bert-6x384@0123456789ab", 32, 128)
    assert catalogue.buckets == (16, 32, 64, 128)
    task = catalogue.tasks["sst2"]
    assert (task.name, task.form, task.labels, task.tap, task.version) == (
        "sst2",
        "single",
        ("negative", "positive"),
        4,
        1,
    )
    assert reader_of(task).shape(task) == (2,)


def test_fields_of_a_later_version_are_ignored():
    parameter = {**PARAMETER, "later": 1, "tasks": {"sst2": {**PARAMETER["tasks"]["sst2"], "later": 2}}}
    assert read_catalogue(config(parameter)).tasks["sst2"].metric == "accuracy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"schema 2\b.*schema 1\b"),
        ({"max_length": 0}, "max_length"),
        ({"buckets": []}, "buckets"),
        ({"tasks": {"x": {"kind": "classification"}}}, r"tasks\.x\.form"),
        ({"tasks": {"x": {**PARAMETER["tasks"]["sst2"], "labels": None}}}, "without labels"),
        ({"tasks": ["sst2"]}, "tasks"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ServerError, match=message):
        read_catalogue(config({**PARAMETER, **change}))


def test_another_repository_and_broken_json():
    with pytest.raises(ServerError, match="no parameter 'onetrunk'"):
        read_catalogue(model_config_pb2.ModelConfig(name="multitask", max_batch_size=32))
    message = config(PARAMETER)
    message.parameters["onetrunk"].string_value = "{"
    with pytest.raises(ServerError, match="parameter 'onetrunk'"):
        read_catalogue(message)


def test_names_are_taken_once_and_in_order():
    second = {**PARAMETER["tasks"]["sst2"]}
    catalogue = read_catalogue(config({**PARAMETER, "tasks": {**PARAMETER["tasks"], "cola": second}}))
    assert [task.name for task in catalogue.named(["cola", "sst2", "cola"])] == ["cola", "sst2"]
    with pytest.raises(UnknownTask, match=r"^unknown task 'zzz'\. Served: cola, sst2$"):
        catalogue.named(["sst2", "zzz"])
