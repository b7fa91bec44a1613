"""Eight tasks on one trunk on a GPU, against one and eight whole models, and whether CUDA answers as torch does.

    python -m benchmarks.gpu --output docs/results/gpu
    python -m benchmarks.gpu --dry

One GPU, less than eight minutes, and nothing is installed: it needs onnxruntime-gpu (or onnxruntime with a CUDA
provider) and the default trunk. Sessions have the providers and options that the Python-based Triton backend gives
them. Two trunks are measured, the default one and one of BERT-base's shape with random weights, whose times are those
of trained ones: in fp32 and fp16, at 32 and 128 tokens, in batches of 1 to 128; with arrays that are copied to the GPU
and back for every model, with states that stay there (I/O binding), and with CUDA graphs on top. Before, the files are
run on real text beside torch. --dry does the same on the CPU with a few small batches, to see that it works.

Published, to compare with: TensorRT runs BERT-base in fp16 on an A100 with about 7,930 texts of 128 tokens a second in
batches of 128 (NVIDIA, TensorRT's BERT demo).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
import torch
from transformers import BertConfig, BertModel

from onetrunk.cli.console import progress_line
from onetrunk.distill.cost_measurement import (
    Arrays,
    ModelFiles,
    software_versions,
    time_interleaved,
    token_batch,
    untrained_head,
)
from onetrunk.distill.markdown import table
from onetrunk.export.batches import padded_batches, parity_texts
from onetrunk.export.precision import halve_file
from onetrunk.files import atomic_write_text
from onetrunk.machine import processor_name
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.command import errors_end_command
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import ATTENTION_MASK, HIDDEN_STATE

TASKS = 8
WAYS = ("copied", "bound", "graph")
PRECISIONS = ("fp32", "fp16")
# The most that the outputs of an untrained head may differ from torch, which computes in fp32.
ALLOWED = {"fp32": 2e-3, "fp16": 2e-2}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tokens: The padded lengths.
        batch_sizes: The batch sizes.
        rounds: How often each is timed.
        seconds: After so many no further row is begun.
    """

    device: str
    tokens: tuple[int, ...] = (32, 128)
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 20
    seconds: float = 420.0


DRY = Plan("cpu", tokens=(32,), batch_sizes=(1, 2), rounds=2, seconds=300.0)


def backend() -> types.ModuleType:
    """Return the module of the Python-based Triton backend, outside Triton."""
    # What Triton brings is not needed to open a session.
    sys.modules.setdefault("triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    from onetrunk.serving.backends.onnxruntime import model

    return model


class DeviceSession:
    """A file as the backend loads it on a device, run in one of the ways."""

    def __init__(self, path: Path, device: str, way: str) -> None:
        module = backend()
        options = module.session_options({})
        options.log_severity_level = 3
        kind = {"model_instance_kind": "GPU" if device == "cuda" else "CPU", "model_instance_device_id": "0"}
        providers = module.providers(kind)
        if way == "graph":
            name, settings = providers[0]
            providers[0] = (name, {**settings, "enable_cuda_graph": "1"})
        self._session = ort.InferenceSession(str(path), options, providers=providers)
        self._device, self._way = device, way
        self.inputs = [one.name for one in self._session.get_inputs()]
        (output,) = self._session.get_outputs()
        self.output: str = output.name
        # Inputs and outputs stay where they are, which a CUDA graph relies on: a binding for each set of inputs, which
        # keeps them.
        self._bindings: dict[tuple[int, ...], tuple[Any, Any, Any, Mapping[str, Any]]] = {}

    def run(self, values: Mapping[str, Any]) -> Any:
        """Return the output: an array, or where states stay on the device, an OrtValue."""
        given = {name: values[name] for name in self.inputs}
        if self._way == "copied":
            return self._session.run(None, given)[0]
        key = tuple(id(one) for one in given.values())
        if key not in self._bindings:
            self._bindings[key] = self._bind(given)
        binding, options, target, _ = self._bindings[key]
        self._session.run_with_iobinding(binding, options)
        return target

    def _bind(self, given: Mapping[str, Any]) -> tuple[Any, Any, Any, Mapping[str, Any]]:
        binding, options = self._session.io_binding(), ort.RunOptions()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        rows, tokens = given[ATTENTION_MASK].shape()
        dims = zip((rows, tokens, 0), self._session.get_outputs()[0].shape, strict=False)
        shape = [in_file if isinstance(in_file, int) else here for here, in_file in dims]
        target = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
        binding.bind_ortvalue_output(self.output, target)
        if self._way == "graph":
            options.add_run_config_entry("gpu_graph_id", str(1 + len(self._bindings)))
        return binding, options, target, given


class Models:
    """Eight tasks on one trunk, and whole models, as files on a device."""

    def __init__(self, trunk: Trunk, folder: Path, precision: str, device: str, way: str) -> None:
        files, middle = ModelFiles(trunk, folder), trunk.depth // 2

        def session(path: Path) -> DeviceSession:
            if precision == "fp16":
                halved = path.with_name(f"{path.stem}_fp16.onnx")
                if not halved.exists():
                    halve_file(path, halved)
                path = halved
            return DeviceSession(path, device, way)

        self._device, self._way = device, way
        self.trunk = session(files.segment(0, middle))
        self.heads = [session(files.head(middle, 1)) for _ in range(TASKS)]
        self.whole = [session(files.single(whole=True)) for _ in range(TASKS)]

    def inputs(self, arrays: Arrays) -> dict[str, Any]:
        """Return arrays as the sessions take them: on the device, if states stay there."""
        if self._way == "copied":
            return dict(arrays)
        return {name: ort.OrtValue.ortvalue_from_numpy(one, self._device, 0) for name, one in arrays.items()}

    def all_tasks(self, inputs: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
        """Run the trunk once and all heads on its state."""
        values = {**inputs, HIDDEN_STATE: self.trunk.run(inputs)}
        return [_array(head.run(values)) for head in self.heads]

    def models(self, inputs: Mapping[str, Any], count: int) -> list[np.ndarray[Any, Any]]:
        """Run whole models, one after the other."""
        return [_array(one.run(inputs)) for one in self.whole[:count]]


def _array(value: Any) -> np.ndarray[Any, Any]:
    return value if isinstance(value, np.ndarray) else value.numpy()


def base_shape(folder: Path) -> Trunk:
    """A trunk of BERT-base's shape, with random weights and the default trunk's tokenizer."""
    default = load_trunk()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=default.vocab_size)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    shutil.copy(default.tokenizer_file, folder / "tokenizer.json")
    return load_trunk(folder)


def check(trunk: Trunk, folder: Path, precision: str, device: str) -> float:
    """Return how far the files' scores on real text are from those of torch at most."""
    middle = trunk.depth // 2
    head, _ = untrained_head(trunk, tap=middle, layers=1)
    models = Models(trunk, folder, precision, device, "copied")
    texts = [text for pair in parity_texts() for text in pair if text][:64]
    worst = 0.0
    for _, inputs in padded_batches(trunk, texts, (min(128, trunk.max_positions),)):
        (ours, *_) = models.all_tasks(inputs)
        with torch.no_grad():
            tensors = {name: torch.from_numpy(one) for name, one in inputs.items()}
            mask = tensors[ATTENTION_MASK]
            types_ = tensors.get("token_type_ids", torch.zeros_like(mask))
            state = trunk.states(tensors["input_ids"], types_, mask, [middle])[middle]
            theirs = torch.softmax(head(state, mask), dim=-1).numpy()
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def _refused(models: Models, arrays: Arrays) -> str | None:
    """Return why ONNX Runtime makes no CUDA graph of the files; None if it does."""
    try:
        models.all_tasks(models.inputs(arrays))
        models.models(models.inputs(arrays), 1)
    except Exception as error:  # ONNX Runtime has one exception class per status, without a common base
        return str(error).splitlines()[0][:200]
    return None


def measure(
    trunk: Trunk,
    name: str,
    folder: Path,
    plan: Plan,
    *,
    ends: float,
    notes: list[str],
    tell: ProgressCallback,
) -> Iterator[dict[str, Any]]:
    """Time the rows of a trunk, until time is over; what cannot be measured is noted."""
    done = 0
    ways = WAYS if plan.device == "cuda" else WAYS[:2]
    for precision in PRECISIONS:
        for way in ways:
            if time.monotonic() > ends:
                return
            models = Models(trunk, folder, precision, plan.device, way)
            if way == "graph" and (why := _refused(models, token_batch(trunk, plan.tokens[0], 1))):
                notes.append(f"{name}, {precision}: no CUDA graph can be made of the files: {why}")
                continue
            for tokens in plan.tokens:
                for size in plan.batch_sizes:
                    if time.monotonic() > ends:
                        return
                    what = f"{name}, {precision}, {way}: {size} x {tokens} tokens"
                    done += 1
                    tell(what, done, 0)
                    inputs = models.inputs(token_batch(trunk, tokens, size))
                    runs: dict[str, Callable[[], object]] = {
                        "all": lambda given=inputs, by=models: by.all_tasks(given),
                        "one": lambda given=inputs, by=models: by.models(given, 1),
                        "eight": lambda given=inputs, by=models: by.models(given, TASKS),
                    }
                    try:
                        rounds = time_interleaved(runs, plan.rounds)
                    except Exception as error:  # such as too little memory for eight models
                        notes.append(f"{what}: {str(error).splitlines()[0][:200]}")
                        continue
                    times = {key: float(np.median(one)) for key, one in rounds.items()}
                    yield {
                        "trunk": name,
                        "precision": precision,
                        "way": way,
                        "tokens": tokens,
                        "batch_size": size,
                        "texts_per_second": {key: round(1e3 * size / ms, 1) for key, ms in times.items()},
                        "against_one": round(times["one"] / times["all"], 3),
                        "cost_share": round(times["all"] / times["eight"], 4),
                    }


def page(found: Mapping[str, Any]) -> str:
    """Return README.md."""
    columns = ("trunk", "precision", "way", "tokens", "batch", "all tasks, texts/s", "one whole model", "against one")
    rows = [
        (
            *(str(one[key]) for key in ("trunk", "precision", "way", "tokens", "batch_size")),
            *(f"{one['texts_per_second'][key]:,.0f}" for key in ("all", "one")),
            f"{one['against_one']:.2f}",
            f"{100 * one['cost_share']:.0f}%",
        )
        for one in found["rows"]
    ]
    differences = ", ".join(f"{name} {value:.1e}" for name, value in found["differences"].items())
    parts = [
        "# On a GPU" if found["device"] == "cuda" else "# On a CPU, to see that it works",
        f"Eight tasks, each a head of one folded layer in the middle of the trunk, on {found['machine']}. Scores "
        f"differ from those of torch by at most: {differences}.",
        "\n".join(table((*columns, "share of eight"), rows)),
        *found["notes"],
        "Published for TensorRT on an A100: about 7,930 texts a second for one BERT-base in fp16, 128 tokens, batches "
        "of 128. Made by `python -m benchmarks.gpu`.",
    ]
    return "\n\n".join(parts) + "\n"


def run(plan: Plan, trunks: Sequence[str], tell: ProgressCallback, output: Path | None = None) -> dict[str, Any]:
    """Check and measure, and return what summary.json holds; it is written after every row."""
    began = time.monotonic()
    gpu = f"{torch.cuda.get_device_name()}, " if plan.device == "cuda" and torch.cuda.is_available() else ""
    found: dict[str, Any] = {
        "machine": gpu + processor_name(),
        "device": plan.device,
        "versions": software_versions(),
        "differences": {},
        "notes": [],
        "rows": [],
    }
    with tempfile.TemporaryDirectory(prefix="onetrunk-gpu-") as name:
        for place, which in enumerate(trunks):
            folder = Path(name) / which
            (folder / "files").mkdir(parents=True)
            trunk = load_trunk() if which == "default" else base_shape(folder)
            for precision in PRECISIONS:
                tell(f"{which}, {precision}: beside torch", place, len(trunks))
                difference = check(trunk, folder / "files", precision, plan.device)
                found["differences"][f"{which} {precision}"] = difference
                if not difference <= ALLOWED[precision]:
                    found["notes"].append(f"{which} {precision}: {difference:.2g} from torch is no rounding")
            # Each trunk has its share of the time that is left.
            left = began + plan.seconds - time.monotonic()
            ends = time.monotonic() + left / (len(trunks) - place)
            for row in measure(trunk, which, folder / "files", plan, ends=ends, notes=found["notes"], tell=tell):
                found["rows"].append(row)
                found["seconds"] = round(time.monotonic() - began, 1)
                if output is not None:
                    atomic_write_text(output / "summary.json", json.dumps(found, indent=1) + "\n")
    return found


@click.command(help=__doc__.splitlines()[0])
@click.option("--output", type=click.Path(path_type=Path), help="Where results go. [default: they are only printed]")
@click.option("--dry", is_flag=True, help="On the CPU, a few small batches: to see that it works.")
def main(output: Path | None, dry: bool) -> None:
    """Check and measure, and write the page."""
    with errors_end_command():
        if dry and output is not None:
            raise UserError("--output: what --dry measures on a CPU is no result: leave one of them out")
        if not dry and "CUDAExecutionProvider" not in ort.get_available_providers():
            raise UserError("this ONNX Runtime has no CUDA: install onnxruntime-gpu, or give --dry for the CPU")
        with progress_line() as tell:
            found = run(DRY if dry else Plan("cuda"), ("default", "base shape"), tell, output)
        if output is not None:
            atomic_write_text(output / "README.md", page(found))
        click.echo(page(found))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.gpu")
