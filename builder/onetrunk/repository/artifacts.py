"""Making the model files of a transaction, and checking everything that is to be served.

Files are exported in fp32 first, and checked against torch; files of a lower precision are made from these. A build and
a deployment both use it.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrunk.export.chain import Chain
from onetrunk.export.exported_head import ExportedHead
from onetrunk.export.merge import merge_heads
from onetrunk.export.onnx_file import ServedHead, export_head, export_segment
from onetrunk.export.parity import TOLERANCE, GroupFile, HeadFile, check_parity
from onetrunk.export.precision import reduce_file
from onetrunk.export.release import Release
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol import words
from onetrunk.protocol.manifest import Precision
from onetrunk.protocol.names import MODEL_FILE, TOKENIZER, Segment, head_name, segment_named
from onetrunk.repository.heads import HeadSource
from onetrunk.repository.transaction import Transaction
from onetrunk.repository.versions import TOKENIZER_CONTENTS, Group, ModelVersion


@dataclass(frozen=True)
class Artifacts:
    """The model files of a repository to be, staged in a transaction or on disk already.

    Attributes:
        trunk: The trunk.
        release: The Triton release that must be able to load the files.
        precision: The dtypes of the segments and heads.
        segments: Segment -> version; all those below the heads.
        heads: The heads and their versions.
        buckets: The padded lengths in tokens.
        transaction: The transaction in which fresh files are staged.
        groups: The models that hold several of the heads, and their versions.
    """

    trunk: Trunk
    release: Release
    precision: Precision
    segments: Mapping[Segment, int]
    heads: Sequence[tuple[HeadSource, ModelVersion]]
    buckets: tuple[int, ...]
    transaction: Transaction
    groups: Sequence[tuple[Group, ModelVersion]] = ()

    def write(self, models: Iterable[ModelVersion], progress: ProgressCallback = silent) -> None:
        """Stage the files of the fresh versions. Groups come after the heads that they hold.

        Raises:
            UserError: A head that was exported elsewhere cannot be used, or a group's heads are too large for one file.
            OneTrunkError: The release could not load a file.
        """
        fresh = [model for model in models if model.fresh]
        for done, model in enumerate(fresh):
            progress(f"exporting {model.name}", done, len(fresh))
            self._write(model)

    def _write(self, model: ModelVersion) -> None:
        segment = segment_named(model.name)
        if model.name == TOKENIZER:
            for file, source in zip(model.files, tokenizer_files(self.trunk).values(), strict=True):
                shutil.copyfile(source, self.transaction.path(file))
        elif segment is not None:
            self._write_segment(segment, model)
        elif group := next((group for group, version in self.groups if version == model), None):
            self._write_group(group, model)
        else:
            self._write_head(next(head for head, version in self.heads if version == model), model)

    def _write_segment(self, segment: Segment, model: ModelVersion) -> None:
        file = self.transaction.path(model.files[0])
        if model.dtype == "fp32":
            export_segment(self.trunk.branch(segment.limb_id), segment, file, self.release)
        else:
            reduce_file(self._fp32_cache.segment(segment), file, model.dtype, thorough=True)

    def _write_head(self, head: HeadSource, model: ModelVersion) -> None:
        file, record = (self.transaction.path(name) for name in model.files)
        if isinstance(head, ExportedHead):
            head.check_file(self.release)
            shutil.copyfile(head.file, file)
        elif model.dtype == "fp32":
            export_head(head.head(self.trunk), head.spec, file, self.release)
        else:
            reduce_file(self._fp32_cache.head(head), file, model.dtype, thorough=False)
        record.write_text(head.spec.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _write_group(self, group: Group, model: ModelVersion) -> None:
        file, record = (self.transaction.path(name) for name in model.files)
        members = {
            task: self.transaction.current(f"{head_name(task)}/{member.version}/{MODEL_FILE}")
            for task, member in sorted(group.heads.items())
        }
        below = None
        if group.segment is not None:
            name, version = group.segment.name, group.segment.version
            below = name, self.transaction.current(f"{name}/{version}/{MODEL_FILE}")
        merge_heads(members, group.tap, file, self.release, below)
        record.write_text(group.text(), encoding="utf-8")

    @property
    def _fp32_cache(self) -> Fp32Cache:
        # Below .staging, but no file of the transaction: it is deleted when the transaction ends.
        return Fp32Cache(self.transaction.staging / "fp32", self.trunk, self.release)

    @property
    def is_reduced(self) -> bool:
        """Whether any of the files computes in less than fp32."""
        return any(self.precision.of_segment(segment) != "fp32" for segment in self.segments) or any(
            model.dtype != "fp32" for _, model in self.heads
        )

    @property
    def fp32(self) -> Chain:
        """The files in fp32, exported on demand where those to serve have a lower precision."""
        segments = {
            segment: self._served(segment)
            if self.precision.of_segment(segment) == "fp32"
            else self._fp32_cache.segment(segment)
            for segment in self.segments
        }
        heads = {
            head.spec.task: self.transaction.current(model.files[0])
            if model.dtype == "fp32"
            else self._fp32_cache.head(head)
            for head, model in self.heads
        }
        return Chain(segments, heads, self._foreign)

    @property
    def served(self) -> Chain:
        """The files to serve."""
        heads = {head.spec.task: self.transaction.current(model.files[0]) for head, model in self.heads}
        return Chain({segment: self._served(segment) for segment in self.segments}, heads, self._foreign)

    @property
    def _foreign(self) -> frozenset[str]:
        return frozenset(head.spec.task for head, _ in self.heads if isinstance(head, ExportedHead))

    def _served(self, segment: Segment) -> Path:
        return self.transaction.current(f"{segment.name}/{self.segments[segment]}/{MODEL_FILE}")

    def check(self, progress: ProgressCallback = silent) -> dict[str, float]:
        """Check the fp32 files against torch, and that the reduced ones have the same signature and finite outputs.

        Returns:
            Model -> greatest difference from torch, of the files to serve.

        Raises:
            ParityError: A file does not answer as the torch module from which it came.
        """
        groups = [
            GroupFile(
                group.name,
                self.transaction.current(model.files[0]),
                [head_name(task) for task in group.heads],
                group.state if group.segment is not None else None,
            )
            for group, model in self.groups
        ]
        found = self._check(self.fp32, "checking against torch", progress, TOLERANCE, [] if self.is_reduced else groups)
        if self.is_reduced:
            # How far reduced answers may deviate is judged task by task, by the gate.
            found = self._check(self.served, "running what was reduced", progress, math.inf, groups)
        return found

    def _check(
        self, chain: Chain, what: str, progress: ProgressCallback, tolerance: float, groups: Sequence[GroupFile]
    ) -> dict[str, float]:
        heads = [head_file(head, self.trunk, chain.heads[head.spec.task]) for head, _ in self.heads]
        counter, total = itertools.count(1), 2 * len(self.buckets)
        progress(what, 0, total)
        return check_parity(
            self.trunk,
            chain.segments,
            heads,
            self.buckets,
            lambda: progress(what, next(counter), total),
            groups=groups,
            tolerance=tolerance,
            waiting=lambda awaited, passed_s, allowed_s: progress(
                f"waiting for {awaited} (seconds)", int(passed_s), int(allowed_s)
            ),
        )


class Fp32Cache:
    """The fp32 files of models that are served in a lower precision, which are made from them and compared with them.

    Each file is exported when it is first needed.
    """

    def __init__(self, folder: Path, trunk: Trunk, release: Release) -> None:
        self._folder, self._trunk, self._release = folder, trunk, release

    def segment(self, segment: Segment) -> Path:
        """Return a segment's file.

        Raises:
            ExportError: The release could not load it.
        """
        path = self._path(segment.name)
        if not path.exists():
            export_segment(self._trunk.branch(segment.limb_id), segment, path, self._release)
        return path

    def head(self, head: HeadSource) -> Path:
        """Return a head's file; for a head that was exported elsewhere, its own.

        Raises:
            ExportError: The release could not load it.
        """
        if isinstance(head, ExportedHead):
            return head.file
        path = self._path(head_name(head.spec.task))
        if not path.exists():
            export_head(head.head(self._trunk), head.spec, path, self._release)
        return path

    def _path(self, model: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{model}.onnx"


def head_file(head: HeadSource, trunk: Trunk, file: Path) -> HeadFile:
    """Return a head's file with the torch module that it must match, for ``check_parity``."""
    module = None if isinstance(head, ExportedHead) else ServedHead(head.head(trunk), head.spec)
    return HeadFile(head_name(head.spec.task), file, head.spec, module)


def tokenizer_files(trunk: Trunk) -> dict[str, Path]:
    """Return name -> source of the files in the tokenizer's version folder."""
    model = Path(__file__).parent / "tokenizer" / "model.py"
    return dict(zip(TOKENIZER_CONTENTS, (model, Path(words.__file__), trunk.tokenizer_file), strict=True))
