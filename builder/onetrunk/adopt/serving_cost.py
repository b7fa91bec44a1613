"""What serving costs: every model as a whole, against one trunk with a head for each, timed in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from onetrunk.adopt.records import AdoptedModel
from onetrunk.adopt.said import FAMILY
from onetrunk.distill.cost_measurement import ModelFiles, Session, count_rounds, time_interleaved, token_batch
from onetrunk.distill.costs import Quartiles
from onetrunk.export.onnx_file import export_head, export_segment
from onetrunk.export.release import DEFAULT_RELEASE, get_release
from onetrunk.machine import processor_name
from onetrunk.nn.bundle import load_bundle
from onetrunk.nn.trunk import Trunk, load_trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import HIDDEN_STATE, Segment, cut_trunk

TOKENS = 64
ROUNDS = 15


class PartCost(BaseModel):
    """One file that is served.

    Attributes:
        ms: Milliseconds for one text: median and quartiles.
        size_bytes: The size of its ONNX file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: Quartiles
    size_bytes: int


class ServingCost(BaseModel):
    """The parts of both ways to serve, timed in turns.

    Attributes:
        tokens: The length of the text.
        rounds: How often each part was timed.
        machine: The processor.
        whole: The models as they are, by name: every layer of their encoder, the last one whole.
        segments: The trunk, from tap to tap, up to the deepest that a head stands on.
        heads: The heads, by name.
        left_out: Models that could not be timed, with the reason. Their heads are left out as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int
    rounds: int
    machine: str
    whole: dict[str, PartCost]
    segments: dict[str, PartCost]
    heads: dict[str, PartCost]
    left_out: dict[str, str]

    def whole_models(self, count: int | None = None) -> tuple[float, float]:
        """Return milliseconds and megabytes of whole models.

        Args:
            count: Their number, computed from the mean of those that were measured; None is those.
        """
        return _total(self.whole, count)

    def one_trunk(self, count: int | None = None) -> tuple[float, float]:
        """Return milliseconds and megabytes of one trunk with heads.

        Args:
            count: The number of heads, computed from the mean of those that were measured; None is those.
        """
        (trunk_ms, trunk_mb), (heads_ms, heads_mb) = _total(self.segments), _total(self.heads, count)
        return trunk_ms + heads_ms, trunk_mb + heads_mb


def _total(parts: dict[str, PartCost], count: int | None = None) -> tuple[float, float]:
    factor = 1.0 if count is None else count / max(len(parts), 1)
    ms = sum(part.ms.median for part in parts.values())
    return factor * ms, factor * sum(part.size_bytes for part in parts.values()) / 1e6


def measure_serving(
    adopted: Sequence[AdoptedModel],
    trunk: Trunk,
    heads: Path,
    *,
    tokens: int = TOKENS,
    rounds: int = ROUNDS,
    cache: Path | None = None,
    progress: ProgressCallback = silent,
) -> ServingCost:
    """Time ONNX files of all models and of all heads, each in a session of one thread, for one text at a time.

    A whole model is timed as an encoder of its form with an output; its time does not depend on what it answers.

    Args:
        adopted: The models.
        trunk: The trunk.
        heads: The folder of bundles.
        tokens: The length of the text; less where the trunk reads less.
        rounds: How often each part is timed.
        cache: The root folder of all caches; None is the user's own.
        progress: Called after every round.
    """
    tokens = min(tokens, trunk.max_positions)
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="onetrunk-adopt-") as name:
        folder = Path(name)
        whole: dict[str, Session] = {}
        files: dict[str, Path] = {}
        inputs = {}
        for one in adopted:
            if one.family == FAMILY:
                left_out[one.name] = "it is a file of soft labels, and no model that could be served"
                continue
            try:
                # A folder may be called like a trunk that has a name.
                encoder = load_trunk(Path(one.source) if Path(one.source).is_dir() else one.source, cache=cache)
                (folder / one.name).mkdir()
                files[one.name] = ModelFiles(encoder, folder / one.name).single(whole=True)
                whole[one.name] = Session(files[one.name], 1)
                inputs[one.name] = token_batch(encoder, tokens, 1)
            except (OneTrunkError, OSError) as error:
                left_out[one.name] = str(error).splitlines()[0]
        kept = [one for one in adopted if one.name in whole]
        segment_files, head_files = _files(kept, trunk, heads, folder)
        sessions = {path: Session(path, 1) for path in (*segment_files.values(), *head_files.values())}
        arrays = token_batch(trunk, tokens, 1)
        runs = {f"whole {one}": partial(session.run, inputs[one]) for one, session in whole.items()}
        state = dict(arrays)
        states = {}
        for segment, path in segment_files.items():
            runs[f"segment {segment.name}"] = partial(sessions[path].run, dict(state))
            state[segment.output] = states[segment.stop] = sessions[path].run(state)
        for one in kept:
            runs[f"head {one.name}"] = partial(
                sessions[head_files[one.name]].run, {**arrays, HIDDEN_STATE: states[one.tap]}
            )
        times = time_interleaved(runs, rounds, partial(count_rounds(progress, rounds)("serving costs")))

        def part(name: str, path: Path) -> PartCost:
            return PartCost(ms=Quartiles.of(times[name]), size_bytes=path.stat().st_size)

        return ServingCost(
            tokens=tokens,
            rounds=rounds,
            machine=processor_name(),
            whole={one: part(f"whole {one}", files[one]) for one in whole},
            segments={one.name: part(f"segment {one.name}", path) for one, path in segment_files.items()},
            heads={one: part(f"head {one}", path) for one, path in head_files.items()},
            left_out=left_out,
        )


def _files(
    adopted: Sequence[AdoptedModel], trunk: Trunk, heads: Path, folder: Path
) -> tuple[dict[Segment, Path], dict[str, Path]]:
    """Export the trunk up to the deepest tap, from tap to tap, and the heads."""
    release = get_release(DEFAULT_RELEASE)
    segments = {one: folder / f"{one.name}.onnx" for one in cut_trunk({one.tap for one in adopted})}
    for segment, path in segments.items():
        export_segment(trunk, segment, path, release)
    files = {}
    for one in adopted:
        bundle = load_bundle(heads / one.name, trunk=trunk)
        files[one.name] = folder / f"head_{one.name}.onnx"
        export_head(bundle.head(trunk), bundle.spec, files[one.name], release)
    return segments, files
