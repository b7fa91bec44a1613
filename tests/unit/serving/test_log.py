"""Reading Triton's reasons from what it really logs (release 24.10)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onetrunk.serving.log import failed_models, failure_reason, loaded_models, read_since, tail

BROKEN_MODEL = """\
W1123 22:30:53.514830 16868 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1123 22:30:53.514835 16868 server.cc:241] "CudaDriverHelper has not been initialized."
I1123 22:30:53.515030 16868 model_lifecycle.cc:839] "successfully loaded 'tokenizer'"
E1123 22:30:53.515531 16868 model_lifecycle.cc:642] "failed to load 'head_mood' version 1: Internal: \
TritonModelException: head_mood: output mood: the config says dims [3], the ONNX file [2]\\n\\nAt:\\n  \
/private/backends/onnxruntime/model.py(190): initialize\\n"
I1123 22:30:53.515603 16868 model_lifecycle.cc:777] "failed to load 'head_mood'"
E1123 22:30:53.516000 16868 model_lifecycle.cc:642] "failed to load 'head_topic' version 1: Not found: no such file"
E1123 22:30:55.515030 16868 model_repository_manager.cc:703] "Invalid argument: ensemble 'multitask' depends on \
'head_mood' which has no loaded version."
I1123 22:30:55.515040 16868 server.cc:674]
+-------+---------+--------+
| Model | Version | Status |
+-------+---------+--------+
error: creating server: Invalid argument - load failed for model 'multitask': ensemble 'multitask' depends on \
'head_mood' which has no loaded version. Model 'head_mood' loading failed with error: ...;

"""

PORT_LOST = """\
I1123 22:42:55.317418 16868 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:35683"
E1123 22:42:55.368255 16868 main.cc:293] "failed to start Metrics service: Unavailable - Socket '127.0.0.1:40193' \
already in use "
"""

BAD_OPTION = """\
error: creating server: Internal - failed to stat file /nowhere

I1123 22:42:55.317418 16868 server.cc:305] "Waiting for in-flight requests to complete."
"""


def test_each_failed_model_gives_its_own_reason_in_one_line() -> None:
    assert failed_models(BROKEN_MODEL) == {
        "head_mood": "head_mood: output mood: the config says dims [3], the ONNX file [2]",
        "head_topic": "Not found: no such file",
    }
    assert failure_reason(BROKEN_MODEL) == (
        "head_mood: output mood: the config says dims [3], the ONNX file [2]; head_topic: Not found: no such file"
    )


NO_GPU = "".join(
    f"E1125 15:30:14.601866 22483 model_lifecycle.cc:642] \"failed to load '{name}' version 1: Invalid argument: "
    f'instance group {name}_0 of model {name} has kind KIND_GPU but no GPUs are available"\n'
    for name in ("head_a", "head_b", "head_c", "trunk_00_01", "trunk_01_02")
)


def test_a_repository_for_a_gpu_is_told_what_to_do_without_one() -> None:
    assert failure_reason(NO_GPU) == (
        "head_a, head_b, head_c and 2 more: built for a GPU, and Triton finds none on this machine: "
        "build-repo --device cpu, or serve where one is (docs/docker.md)"
    )


def test_models_that_fail_for_one_reason_are_told_together() -> None:
    lines = NO_GPU.replace("Invalid argument: instance group", "Internal: no room for").replace("has kind", "and")
    alike = re.sub(r"no room for [^\"]*", "no room", lines)
    assert failure_reason(alike) == "head_a, head_b, head_c and 2 more: no room"


def test_without_a_failed_model_tritons_last_words_are_the_reason() -> None:
    assert failure_reason(BAD_OPTION) == "Internal - failed to stat file /nowhere"


def test_an_endpoint_that_does_not_start_is_the_reason() -> None:
    reason = failure_reason(PORT_LOST)
    assert reason == "failed to start Metrics service: Unavailable - Socket '127.0.0.1:40193' already in use"


def test_a_healthy_log_has_no_reason() -> None:
    assert failure_reason("I1123 22:30:53.5 1 a.cc:1] \"successfully loaded 'multitask'\"\n") is None


def test_loaded_models_are_counted() -> None:
    assert loaded_models(BROKEN_MODEL) == {"tokenizer"}


def test_only_what_this_start_logged_is_read(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_bytes(b"old failure\n\xffnew")
    assert read_since(log, 12) == "\ufffdnew"


@pytest.mark.parametrize("log", ["", "a shell's complaint, before Triton itself could write\n"])
def test_a_log_without_an_entry_has_no_reason(log: str) -> None:
    assert failure_reason(log) is None


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "triton.log"
    path.write_bytes(b"old" + b"x" * 200_000 + b"new")
    assert tail(path, 0).endswith("new")
    assert len(tail(path, 0)) < 100_000
    assert tail(path, 200_003) == "new"
    path.unlink()
    assert tail(path, 0) == ""
