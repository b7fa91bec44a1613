"""The measurement of costs: ONNX Runtime sessions on the files that a repository would hold, timed round by round."""

from __future__ import annotations

import os

# ONNX Runtime collects usage telemetry unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import platform
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from onetrunk.distill.costs import BucketCosts, CostTable, Quartiles
from onetrunk.export.onnx_file import export_head, export_segment, export_single
from onetrunk.export.release import DEFAULT_RELEASE, IR_VERSION, OPSET, get_release
from onetrunk.machine import processor_name
from onetrunk.nn.head import Head, new_head
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import Query
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE, INPUT_IDS, TOKEN_TYPE_IDS, Segment
from onetrunk.tasks.head_spec import HeadSpec

_RELEASE = get_release(DEFAULT_RELEASE)
_LABELS = ("no", "yes")
# The first rounds allocate memory and choose kernels.
_WARM_UP_ROUNDS = 2

Arrays = dict[str, NDArray[Any]]


def measure_costs(
    trunk: Trunk,
    *,
    tokens: Sequence[int] = (32, 64, 128),
    batch_size: Sequence[int] = (1, 8),
    threads: int = 1,
    repeats: int = 30,
    progress: ProgressCallback = silent,
) -> CostTable:
    """Time the ONNX files that ``build-repo`` writes, in ONNX Runtime, part by part.

    Measured are the trunk up to each tap, one whole head layer, a head of one folded layer, the call of a model, and
    single-task models. A query other than [CLS] costs a few vectors more and is charged alike. All sessions are in
    memory together: for a trunk of N layers, about N / 2 times its weights.

    Args:
        trunk: The trunk; its weights are used as they are.
        tokens: The padded lengths.
        batch_size: The batch sizes.
        threads: The number of ONNX Runtime threads of each session.
        repeats: The number of rounds; figures are medians over them.
        progress: Called after every round.

    Raises:
        UserError: The trunk has a single layer or does not read that many tokens, or a number is less than 1.
    """
    check_repeats(threads, repeats)
    if trunk.depth < 2:
        raise UserError("a trunk of one layer leaves nothing to plan: one of 2 layers or more is needed")
    buckets = [(length, size) for length in tokens for size in batch_size]
    if not buckets:
        raise UserError("no padded length or no batch size to measure: give one of each at least")
    count_round = count_rounds(progress, len(buckets) * repeats)
    with tempfile.TemporaryDirectory(prefix="onetrunk-costs-") as folder:
        sessions = _open_all(ModelFiles(trunk, Path(folder)), threads)
        measured = [
            _measure_bucket(
                sessions,
                token_batch(trunk, length, size),
                repeats,
                count_round(f"costs at {length} tokens x {size}"),
                clock_of(threads),
            )
            for length, size in buckets
        ]
    return CostTable(
        trunk=trunk.identity,
        machine=processor_name(),
        versions=software_versions(),
        threads=threads,
        repeats=repeats,
        buckets=tuple(measured),
    )


def _open_all(files: ModelFiles, threads: int) -> dict[str, Session]:
    paths = {f"tap {tap}": files.segment(0, tap) for tap in range(files.trunk.depth + 1)}
    paths |= {
        "one layer": files.head(0, 1),
        "two layers": files.head(0, 2),
        "step": files.step(),
        "single": files.single(whole=True),
        "folded single": files.single(whole=False),
    }
    return {name: Session(path, threads) for name, path in paths.items()}


def _measure_bucket(
    sessions: Mapping[str, Session],
    arrays: Arrays,
    repeats: int,
    after_round: Callable[[], None],
    clock: Callable[[], float],
) -> BucketCosts:
    batch_size, tokens = arrays[INPUT_IDS].shape
    arrays[HIDDEN_STATE] = sessions["tap 0"].run(arrays)
    times = time_interleaved(
        {name: partial(session.run, arrays) for name, session in sessions.items()}, repeats, after_round, clock
    )
    return BucketCosts(
        tokens=tokens,
        batch_size=batch_size,
        trunk_ms=tuple(Quartiles.of(ms) for name, ms in times.items() if name.startswith("tap ")),
        layer_ms=Quartiles.of(times["two layers"] - times["one layer"]),
        folded_ms=Quartiles.of(times["one layer"]),
        step_ms=Quartiles.of(times["step"]),
        single_ms=Quartiles.of(times["single"]),
        folded_single_ms=Quartiles.of(times["folded single"]),
    )


class Session:
    """One model, loaded as a server would load it.

    Attributes:
        inputs: The names of its inputs.
        output: The name of its only output.
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
        """Return the output; arrays that the model does not read are ignored."""
        result: NDArray[Any] = self._session.run(None, {name: arrays[name] for name in self.inputs})[0]
        return result


class ModelFiles:
    """The models to be measured, written into a folder when they are first asked for.

    Heads have the trunk's own layers and a random output: a model's cost does not depend on its weights, so nothing
    has to be trained.
    """

    def __init__(self, trunk: Trunk, folder: Path) -> None:
        self.trunk, self.folder = trunk, folder

    def segment(self, start: int, stop: int) -> Path:
        """Return the file of a segment of the trunk."""
        segment = Segment(start, stop)
        return self._once(segment.name, lambda path: export_segment(self.trunk, segment, path, _RELEASE))

    def head(self, tap: int, layers: int, query: Query = "cls") -> Path:
        """Return the file of a head, its last layer folded."""
        return self._once(
            f"head_{tap}_{layers}_{query}",
            lambda path: export_head(*untrained_head(self.trunk, tap=tap, layers=layers, query=query), path, _RELEASE),
        )

    def single(self, *, whole: bool) -> Path:
        """Return the file of a single-task model: the encoder with an output, its last layer whole or folded."""
        head, spec = untrained_head(self.trunk, tap=0, layers=self.trunk.depth)
        return self._once(
            f"single_{'whole' if whole else 'folded'}",
            lambda path: export_single(self.trunk, head, spec, path, _RELEASE, whole=whole),
        )

    def step(self) -> Path:
        """Return the file of a model that reads a head's inputs and returns the mask unchanged."""
        return self._once("step", lambda path: _write_identity(path, self.trunk.width))

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            write(path)
        return path


def untrained_head(
    trunk: Trunk, *, tap: int, layers: int, task: str = "scores", query: Query = "cls", seed: int = 0
) -> tuple[Head, HeadSpec]:
    """Return a head of two labels that was never trained: its layers are the trunk's own, its output is random.

    Args:
        trunk: The trunk.
        tap: The head's tap.
        layers: The number of its layers.
        task: The name of its task.
        query: The query of its last layer.
        seed: The seed of its output.
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
    """Return a batch of random token ids without padding, under the names of the models' inputs.

    Returns:
        Token ids, attention mask and token types. *Shape of each:* (batch_size, tokens)

    Raises:
        UserError: The trunk does not read that many tokens, or the batch is empty.
    """
    if not 1 <= tokens <= trunk.max_positions or batch_size < 1:
        raise UserError(
            f"{batch_size} texts of {tokens} tokens: this trunk reads 1 to {trunk.max_positions} tokens, "
            "and a batch has one text at least"
        )
    ids = np.random.default_rng(0).integers(0, trunk.vocab_size, (batch_size, tokens), dtype=np.int64)
    return {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), TOKEN_TYPE_IDS: np.zeros_like(ids)}


def clock_of(threads: int) -> Callable[[], float]:
    """Return the clock for sessions of this many threads.

    A session of one thread computes in the thread that calls it, whose processor time tells what it takes whatever else
    the machine does.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def time_interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    after_round: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Time each run once in every round, in an order that changes from round to round.

    So other load on the machine affects all runs alike, and no model finds its weights in the processor's caches,
    from which the other models would have displaced them in a server.

    Args:
        runs: Name -> the function to time.
        rounds: The number of rounds, after a few that warm up.
        after_round: Called after every round.
        clock: The clock, in seconds; see ``clock_of``.

    Returns:
        Name -> milliseconds. *Shape of each:* (rounds,)
    """
    times = {name: np.zeros(rounds) for name in runs}
    names, order = list(runs), random.Random(0)
    for step in range(-_WARM_UP_ROUNDS, rounds):
        order.shuffle(names)
        for name in names:
            begin = clock()
            runs[name]()
            taken = clock() - begin
            if step >= 0:
                times[name][step] = 1e3 * taken
        if step >= 0:
            after_round()
    return times


def count_rounds(progress: ProgressCallback, total: int) -> Callable[[str], Callable[[], None]]:
    """Return a function that makes callbacks, for ``time_interleaved``, which count rounds over several measurements.

    Args:
        progress: Called with each round.
        total: The number of rounds in all.
    """
    done = 0

    def count(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    return lambda what: partial(count, what)


def check_repeats(threads: int, repeats: int) -> None:
    """Check the numbers of threads and repeats.

    Raises:
        UserError: Either is less than 1.
    """
    if threads < 1 or repeats < 1:
        raise UserError(f"{threads} threads, {repeats} repeats: give 1 or more of each")


def software_versions() -> dict[str, str]:
    """Return the versions of the software that a time depends on."""
    return {
        "onetrunk": __version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _write_identity(path: Path, width: int) -> None:
    helper, dims = onnx.helper, ["batch", "tokens"]
    mask = helper.make_tensor_value_info(ATTENTION_MASK, onnx.TensorProto.INT64, dims)
    state = helper.make_tensor_value_info(HIDDEN_STATE, onnx.TensorProto.FLOAT, [*dims, width])
    output = helper.make_tensor_value_info("same", onnx.TensorProto.INT64, dims)
    node = helper.make_node("Identity", [ATTENTION_MASK], ["same"])
    graph = helper.make_graph([node], "step", [state, mask], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)
