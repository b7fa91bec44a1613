"""Making the fresh files of a repository, and checking all that will be served: fp32 first, what is reduced from that.

A build and a deployment both do this, in the folder of a publication.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrunk.export.chain import Chain
from onetrunk.export.onnx_file import export_segment
from onetrunk.export.parity import GroupedFile, check_parity
from onetrunk.export.precision import reduce_file
from onetrunk.export.release import Release
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback
from onetrunk.protocol.manifest import Precision
from onetrunk.protocol.names import MODEL_FILE, Segment, head_name
from onetrunk.repository.arrivals import served_task, write_head
from onetrunk.repository.drafts import Drafts
from onetrunk.repository.grouping import Group
from onetrunk.repository.plan import HeadSource, numbers_of
from onetrunk.repository.publication import Publication
from onetrunk.repository.versions import PlannedModel


@dataclass(frozen=True)
class Exports:
    """The parts that are looked at, and where they come from.

    Attributes:
        trunk: the trunk.
        release: what must be able to load the files.
        precision: what they compute in.
        segments: segment -> version; those below the heads.
        heads: where the heads come from, and their versions.
        buckets: padded lengths in tokens.
        publication: where fresh files go.
        groups: models that hold several of the heads, and their versions.
    """

    trunk: Trunk
    release: Release
    precision: Precision
    segments: Mapping[Segment, int]
    heads: Sequence[tuple[HeadSource, PlannedModel]]
    buckets: tuple[int, ...]
    publication: Publication
    groups: Sequence[tuple[Group, PlannedModel]] = ()

    @property
    def _drafts(self) -> Drafts:
        # Below .staging, but no file of the publication: it goes when that ends.
        return Drafts(self.publication.staging / "fp32", self.trunk, self.release)

    @property
    def fp32(self) -> Chain:
        """The parts in fp32, exported aside where they are served in a lower precision."""
        segments = {
            segment: self._served(segment)
            if self.precision.of_segment(segment) == "fp32"
            else self._drafts.segment(segment)
            for segment in self.segments
        }
        heads = {
            head.spec.task: self.publication.current(model.files[0])
            if model.numbers == "fp32"
            else self._drafts.head(head)
            for head, model in self.heads
        }
        return Chain(segments, heads)

    @property
    def served(self) -> Chain:
        """The parts as they will be served."""
        heads = {head.spec.task: self.publication.current(model.files[0]) for head, model in self.heads}
        return Chain({segment: self._served(segment) for segment in self.segments}, heads)

    def _served(self, segment: Segment) -> Path:
        return self.publication.current(f"{segment.name}/{self.segments[segment]}/{MODEL_FILE}")

    def write_segment(self, segment: Segment, model: PlannedModel) -> None:
        """Writes a fresh version of a segment aside. Raises ExportError where the release could not load it."""
        target = self.publication.path(model.files[0])
        if model.numbers == "fp32":
            export_segment(self.trunk, segment, target, self.release)
        else:
            reduce_file(self._drafts.segment(segment), target, model.numbers, thorough=True)

    def write_head(self, head: HeadSource, model: PlannedModel) -> None:
        """Writes a fresh version of a head aside; errors as above."""
        draft = None if model.numbers == "fp32" else self._drafts.head(head)
        write_head(head, self.trunk, self.release, self.publication, model, draft)

    def check(self, progress: ProgressCallback) -> dict[str, float]:
        """Checks the fp32 files against torch, then that the reduced ones have the same form and answer with numbers.

        Returns:
            Model -> greatest difference from torch, of what is served.

        Raises:
            ParityError: see check_parity.
        """
        groups = [
            GroupedFile(group.name, self.publication.current(model.files[0]), [head_name(task) for task in group.heads])
            for group, model in self.groups
        ]
        found = self._check(self.fp32, "checking against torch", progress, None, [] if self.is_reduced else groups)
        if self.is_reduced:
            # How far they may be off is a matter of the tasks, not of single numbers: the gate sees to it.
            found = self._check(self.served, "running what was reduced", progress, math.inf, groups)
        return found

    @property
    def is_reduced(self) -> bool:
        """Whether any of the parts computes in less than fp32."""
        return any(self.precision.of_segment(segment) != "fp32" for segment in self.segments) or any(
            model.numbers != "fp32" for _, model in self.heads
        )

    def _check(
        self, chain: Chain, what: str, progress: ProgressCallback, allowed: float | None, groups: Sequence[GroupedFile]
    ) -> dict[str, float]:
        heads = [served_task(head, self.trunk, chain.heads[head.spec.task]) for head, _ in self.heads]
        counter, total = itertools.count(1), 2 * len(self.buckets)
        progress(what, 0, total)
        return check_parity(
            self.trunk,
            chain.segments,
            heads,
            self.buckets,
            lambda: progress(what, next(counter), total),
            groups=groups,
            allowed=allowed,
        )


def is_reduced_task(head: HeadSource, segments: Sequence[Segment], precision: Precision) -> bool:
    """Whether anything that answers a task computes in less than fp32."""
    below = [segment for segment in segments if segment.stop <= head.spec.tap]
    return numbers_of(head, precision) != "fp32" or any(precision.of_segment(one) != "fp32" for one in below)
