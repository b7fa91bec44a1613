"""The systems of a comparison that run on Triton: what each is, and its repository."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compare.texts import triton_request
from benchmarks.compare.whole_models import (
    TRUNK_OUTPUT,
    WholeModel,
    empty_file,
    fused_file,
    single_file,
    token_inputs,
    trunk_file,
    write_repository,
)
from benchmarks.peers.peer import HttpRequest
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import CONFIG_FILE, MULTITASK, Segment, segment_named
from onetrunk.serving import Server
from onetrunk.tasks.head_spec import read_spec


@dataclass(frozen=True)
class Target:
    """A running system.

    Attributes:
        host: where it listens.
        port: for HTTP.
        pid: of the process that all its others descend from.
        tasks: how many tasks are answered for a text.
        requests: gives the requests that answer one text.
    """

    host: str
    port: int
    pid: int
    tasks: int
    requests: Callable[[str], Sequence[HttpRequest]]


@dataclass(frozen=True)
class TritonSystem:
    """A system on our Triton.

    Attributes:
        name: as it stands in the results.
        what: what it is, for a reader.
        repository: its model repository.
        tasks: how many tasks it has.
        outputs: the tasks that are asked for; none for all.
    """

    name: str
    what: str
    repository: Path
    tasks: int
    outputs: tuple[str, ...] = ()

    @contextmanager
    def running(self) -> Iterator[Target]:
        """Starts it; it has answered when the block begins, and is gone when it ends."""
        with Server(
            self.repository, http_port=0, grpc_port=0, metrics_port=0, start_timeout_s=300, probe_interval_s=None
        ) as server:
            host, _, port = server.http_url.rpartition(":")
            if server.pid is None:
                raise RuntimeError("the server has no process")
            outputs = self.outputs
            tasks = len(outputs) or self.tasks
            yield Target(
                host, int(port), server.pid, tasks, lambda text: [triton_request(MULTITASK, text, outputs=outputs)]
            )

    def weights_mb(self) -> float:
        """Size of all models' files that an ensemble can reach, in MB; a file that is linked twice counts once."""
        files = {}
        for path in self.repository.glob("*/*/model.onnx"):
            if self._is_used(path.parent.parent.name):
                files[path.stat().st_ino] = path.stat().st_size
        return sum(files.values()) / 1e6

    def _is_used(self, model: str) -> bool:
        return f'model_name: "{model}"' in (self.repository / MULTITASK / CONFIG_FILE).read_text(encoding="utf-8")


class Systems:
    """Makes the repositories of what is compared, below one folder."""

    def __init__(self, trunk: Trunk, ours: Path, folder: Path, max_length: int, cores: int) -> None:
        """Says where.

        Args:
            trunk: the trunk.
            ours: a repository that build-repo wrote, of whose files others are put together.
            folder: for the others.
            max_length: longest text in tokens.
            cores: how many a system has.
        """
        self.trunk, self.ours, self.folder, self.max_length, self.cores = trunk, ours, folder, max_length, cores

    def single(self, threads: int, instances: int, name: str) -> TritonSystem:
        """One ordinary model for one task."""
        what = "the whole encoder for one task, on the same Triton"
        return self._write(name, what, self._singles(1, threads, instances), 1)

    def singles(self, count: int, name: str) -> TritonSystem:
        """Several ordinary models, of as many threads each as it takes for all together to use every core."""
        threads = -(-self.cores // count)
        what = f"{count} whole encoders, one a task, {threads_text(threads)} each, on the same Triton"
        return self._write(name, what, self._singles(count, threads, 1), count)

    def fused(self, threads: int, name: str) -> TritonSystem:
        """Trunk and heads in one file."""
        file = self.folder / "files" / "fused.onnx"
        heads = {task: (state, path) for task, state, path in self._heads()}
        fused_file(self._segments(), heads, file)
        model = WholeModel("fused", file, {task: _outputs(path) for task, (_, path) in heads.items()}, threads)
        return self._write(name, "trunk and heads in one file: nothing can be changed alone", [model], len(heads))

    def trunk_alone(self, threads: int, name: str) -> TritonSystem:
        """The trunk up to the deepest tap, which is what all heads together cannot be faster than."""
        file = self.folder / "files" / "trunk.onnx"
        trunk_file(self._segments(), file)
        model = WholeModel("trunk", file, {TRUNK_OUTPUT: 2}, threads)
        return self._write(name, "up to the deepest tap, no heads: the limit", [model], 0)

    def empty(self, count: int, name: str) -> TritonSystem:
        """Models that compute nothing: what is left is the price of handing a request over and back."""
        models = []
        for number in range(count):
            output = f"empty_{number}"
            file = self.folder / "files" / f"{output}.onnx"
            empty_file(output, file, token_inputs(self.trunk))
            models.append(WholeModel(f"step_{number}", file, {output: 2}, 1))
        return self._write(name, f"the tokenizer and {count} models that compute nothing", models, 0)

    def _write(self, name: str, what: str, models: Sequence[WholeModel], tasks: int) -> TritonSystem:
        repository = self.folder / re.sub(r"\W+", "_", name)
        write_repository(repository, self.trunk, models, self.max_length)
        return TritonSystem(name, what, repository, tasks)

    def _singles(self, count: int, threads: int, instances: int) -> list[WholeModel]:
        models = []
        for number in range(count):
            task = f"single_{number:02d}"
            file = self.folder / "files" / f"{task}.onnx"
            single_file(self.trunk, task, file)
            models.append(WholeModel(f"model_{number:02d}", file, {task: 2}, threads, instances))
        return models

    def _segments(self) -> dict[Segment, Path]:
        files = {segment_named(path.parent.parent.name): path for path in self.ours.glob("*/*/model.onnx")}
        return {segment: path for segment, path in files.items() if segment is not None}

    def _heads(self) -> Iterator[tuple[str, str, Path]]:
        for path in sorted(self.ours.glob("head_*/*/model.onnx")):
            spec = read_spec(path.parent, any_folder=True)
            yield spec.task, spec.state, path


def threads_text(count: int) -> str:
    """As in ``1 thread`` and ``2 threads``."""
    return f"{count} thread{'s' if count > 1 else ''}"


def _outputs(file: Path) -> int:
    import onnx

    dims = onnx.load(file, load_external_data=False).graph.output[0].type.tensor_type.shape.dim
    return int(dims[1].dim_value)
