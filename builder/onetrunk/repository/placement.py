"""Where each ONNX model runs, and with how many threads: what a config says beside the model itself.

Configs are written for the CPU with threads by the model's sort; a placement changes them afterwards, so that models
of which it knows nothing, as a head that is deployed later, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.repository.configs import config_text

Device = Literal["cpu", "gpu"]

# They become comments, each of one line: another line would be read as part of the config.
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f\u0085\u2028\u2029]+$")]

_BACKEND = "onnxruntime"
_THREADS = "intra_op_thread_count"


class Threads(BaseModel):
    """With how many threads a model computes a text.

    Attributes:
        count: how many.
        reason: why so many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(ge=1)
    reason: Line


class Placement(BaseModel):
    """Where the models of a repository run. The tokenizer is Python, and stays on the CPU.

    Attributes:
        device: where segments, heads and groups of heads run.
        threads: model -> its threads, where they were measured; the others have those of their sort.
        measured: by what, and on what.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = "cpu"
    threads: Mapping[str, Threads] = {}
    measured: Line | None = None

    def without(self, model: str) -> Placement:
        """The same with nothing measured of a model, which then has the threads of its sort."""
        return self.model_copy(update={"threads": {n: threads for n, threads in self.threads.items() if n != model}})

    def config_text(self, config: pb.ModelConfig) -> str:
        """The content of a model's config.pbtxt, in this place; what was measured comes first, as a comment."""
        threads = self.threads.get(config.name)
        lines = [threads.reason, self.measured] if threads and config.backend == _BACKEND else []
        return "".join(f"# {line}\n" for line in lines if line) + config_text(self.placed(config))

    def placed(self, config: pb.ModelConfig) -> pb.ModelConfig:
        """A model's config, in this place; one of another backend as it is."""
        placed = pb.ModelConfig()
        placed.CopyFrom(config)
        if config.backend != _BACKEND:
            return placed
        if self.device == "gpu":
            for group in placed.instance_group:
                group.kind = pb.ModelInstanceGroup.KIND_GPU
            # All that is left for the CPU is arithmetic on shapes: without a number, every model would have a thread
            # for each core that waits for it.
            placed.parameters[_THREADS].string_value = "1"
        elif threads := self.threads.get(config.name):
            placed.parameters[_THREADS].string_value = str(threads.count)
        return placed


CPU = Placement()
"""On the CPU, with the threads of each model's sort."""
