"""ONNX Runtime sessions on the files that a repository would hold, timed in turn."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import platform
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from onetrunk.export.onnx_file import export_head, export_segment, export_single
from onetrunk.export.release import DEFAULT_RELEASE, IR_VERSION, OPSET, get_release
from onetrunk.nn.head import Head, new_head
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, INPUT_IDS, TOKEN_TYPE_IDS, Segment
from onetrunk.tasks.head_spec import HeadSpec

_RELEASE = get_release(DEFAULT_RELEASE)
_LABELS = ("no", "yes")
# The first runs allocate memory and choose kernels.
_WARM_UP_ROUNDS = 2

Arrays = dict[str, NDArray[Any]]


class Session:
    """One model, loaded as a server would load it.

    Attributes:
        inputs: names of its inputs.
        output: name of its one output.
    """

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(tensor.name for tensor in self._session.get_inputs())
        (tensor,) = self._session.get_outputs()
        self.output: str = tensor.name

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Its output; of the arrays it takes what it reads."""
        result: NDArray[Any] = self._session.run(None, {name: arrays[name] for name in self.inputs})[0]
        return result


class Files:
    """Writes the models to be measured into a folder. A head's weights are the trunk's own, its output random.

    What a model costs does not depend on its weights, so that nothing has to be trained for it.
    """

    def __init__(self, trunk: Trunk, folder: Path) -> None:
        self.trunk, self.folder = trunk, folder

    def segment(self, start: int, stop: int) -> Path:
        """A segment of the trunk."""
        segment = Segment(start, stop)
        return self._once(segment.name, lambda path: export_segment(self.trunk, segment, path, _RELEASE))

    def head(self, tap: int, layers: int, query: Query = "cls") -> Path:
        """A head, its last layer folded."""
        return self._once(
            f"head_{tap}_{layers}_{query}",
            lambda path: export_head(*untrained_head(self.trunk, tap=tap, layers=layers, query=query), path, _RELEASE),
        )

    def single(self, *, whole: bool) -> Path:
        """A single-task model: the whole encoder and an output, the last layer whole, as is usual, or folded."""
        head, spec = untrained_head(self.trunk, tap=0, layers=self.trunk.depth)
        return self._once(
            f"single_{'whole' if whole else 'folded'}",
            lambda path: export_single(self.trunk, head, spec, path, _RELEASE, whole=whole),
        )

    def step(self) -> Path:
        """A model that reads what a head reads, and does nothing: it gives the mask back."""
        return self._once("step", lambda path: _write_step(path, self.trunk.width))

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            write(path)
        return path


def untrained_head(
    trunk: Trunk, *, tap: int, layers: int, task: str = "scores", query: Query = "cls", seed: int = 0
) -> tuple[Head, HeadSpec]:
    """A head that answers with one of two labels and was never trained: what it costs does not depend on its weights.

    Its layers are the trunk's own, its output random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = new_head(trunk, outputs=len(_LABELS), tap=tap, layers=layers, query=query)
    spec = HeadSpec(
        task=task,
        kind="classification",
        form="single",
        labels=_LABELS,
        tap=tap,
        layers=layers,
        query=query,
        trunk=trunk.identity,
        width=trunk.width,
        max_length=trunk.max_positions,
        metric="accuracy",
        scores={},
        created="",
        onetrunk_version=__version__,
    )
    return head.eval(), spec


def token_batch(trunk: Trunk, tokens: int, batch_size: int) -> Arrays:
    """A batch of random token ids without padding, by the names that models use.

    Each *Shape:* (batch_size, tokens)

    Raises:
        UserError: the trunk does not read that many tokens.
    """
    if not 1 <= tokens <= trunk.max_positions or batch_size < 1:
        raise UserError(
            f"{batch_size} texts of {tokens} tokens: this trunk reads 1 to {trunk.max_positions} tokens, "
            "and a batch has one text at least"
        )
    ids = np.random.default_rng(0).integers(0, trunk.vocab_size, (batch_size, tokens), dtype=np.int64)
    return {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), TOKEN_TYPE_IDS: np.zeros_like(ids)}


def time_in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, after_round: Callable[[], None] = lambda: None
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each run in each round.

    Every round calls each of them once, in an order of its own. So a load on the machine that comes and goes meets all
    alike, and no model finds its weights in the processor's caches, which in a server the others' would have taken.

    Returns:
        Name -> times. *Shape:* (rounds,)
    """
    times = {name: np.zeros(rounds) for name in runs}
    names, order = list(runs), random.Random(0)
    for step in range(-_WARM_UP_ROUNDS, rounds):
        order.shuffle(names)
        for name in names:
            begin = time.perf_counter()
            runs[name]()
            taken = time.perf_counter() - begin
            if step >= 0:
                times[name][step] = 1e3 * taken
        if step >= 0:
            after_round()
    return times


def check_rounds(threads: int, repeats: int) -> None:
    """Raises UserError where either is not a number from 1."""
    if threads < 1 or repeats < 1:
        raise UserError(f"{threads} threads, {repeats} repeats: give 1 or more of each")


def versions() -> dict[str, str]:
    """The software that a time depends on."""
    return {
        "onetrunk": __version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _write_step(path: Path, width: int) -> None:
    helper, dims = onnx.helper, ["batch", "tokens"]
    mask = helper.make_tensor_value_info(ATTENTION_MASK, onnx.TensorProto.INT64, dims)
    state = helper.make_tensor_value_info(HIDDEN_STATE, onnx.TensorProto.FLOAT, [*dims, width])
    given = helper.make_tensor_value_info("same", onnx.TensorProto.INT64, dims)
    node = helper.make_node("Identity", [ATTENTION_MASK], ["same"])
    graph = helper.make_graph([node], "step", [state, mask], [given])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)
