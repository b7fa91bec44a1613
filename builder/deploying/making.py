"""Making what a change brings in: exports, checks against torch, and the answers that the server must give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from builder.deploying.proof import smoke_rows
from builder.deploying.reference import reference_answers
from builder.export.names import MODEL_FILE, head_name
from builder.export.onnx_file import export_segment
from builder.export.parity import check_parity
from builder.export.release import get_release
from builder.model.trunk import Trunk
from builder.repository.arrivals import served_task, write_head
from builder.repository.contents import Contents, candidate_output
from builder.repository.plan import HeadSource
from builder.repository.publication import Publication
from builder.repository.standing import Standing
from builder.repository.versions import PlannedModel


@dataclass(frozen=True)
class Making:
    """What is to be made.

    Attributes:
        repository: the repository's folder.
        standing: what stands in it.
        after: what shall.
        trunk: the trunk.
        arrivals: versions that ``after`` needs; the fresh ones are made.
        head: where the new head comes from; None where there is none.
    """

    repository: Path
    standing: Standing
    after: Contents
    trunk: Trunk
    arrivals: tuple[PlannedModel, ...]
    head: HeadSource | None

    def write(self, publication: Publication) -> None:
        """Writes the fresh versions aside and checks them, on the segments that they will run on.

        Raises:
            OneTrunkError: an export or a check failed.
        """
        release = get_release(self.standing.manifest.triton_release)
        segments = {segment.name: segment for segment in self.after.segments}
        for model in self.arrivals:
            if not model.fresh:
                continue
            if model.name in segments:
                export_segment(self.trunk, segments[model.name], publication.path(model.files[0]), release)
            elif self.head is not None:
                write_head(self.head, self.trunk, release, publication, model)
        if not any(model.fresh for model in self.arrivals):
            return
        files = {
            segment: publication.current(f"{segment.name}/{version}/{MODEL_FILE}")
            for segment, version in self.after.segments.items()
            if self.head is None or segment.stop <= self.head.spec.tap
        }
        heads = []
        if self.head is not None:
            model = next(model for model in self.arrivals if model.name == head_name(self.head.spec.task))
            heads.append(served_task(self.head, self.trunk, publication.current(model.files[0])))
        check_parity(self.trunk, files, heads, self.standing.manifest.buckets)

    def expected(self) -> dict[str, NDArray[np.float32]]:
        """Output of the new head -> the scores that it must give for smoke_rows()."""
        if self.head is None:
            return {}
        task = self.head.spec.task
        model = next(model for model in self.arrivals if model.name == head_name(task))
        served = served_task(self.head, self.trunk, self.repository / model.files[0])
        scores = reference_answers(self.trunk, served, smoke_rows(), self.standing.manifest.max_length)
        state = self.after.heads[task]
        return {candidate_output(task) if state.candidate == model.version else task: scores}
