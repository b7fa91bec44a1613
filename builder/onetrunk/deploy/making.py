"""Making what a change brings in: exports, checks against torch, and the answers that the server must give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onetrunk.deploy.proof import smoke_rows
from onetrunk.deploy.reference import own_answers, reference_answers
from onetrunk.export.chain import Chain
from onetrunk.export.release import get_release
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import GateResult
from onetrunk.protocol.names import MODEL_FILE, Segment, candidate_output, head_name
from onetrunk.repository.arrivals import served_task
from onetrunk.repository.contents import Contents
from onetrunk.repository.exports import Exports, is_reduced_task
from onetrunk.repository.gate import judge, measure_losses, read_dev
from onetrunk.repository.gate_plan import gate_key
from onetrunk.repository.gate_settings import DEFAULT_GATE, GateSettings
from onetrunk.repository.plan import HeadSource
from onetrunk.repository.publication import Publication
from onetrunk.repository.standing import Standing
from onetrunk.repository.versions import PlannedModel, segment_source


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
        gate: how a reduced precision is judged.
        progress: see ProgressCallback.
        notes: what a user should know of what was written.
    """

    repository: Path
    standing: Standing
    after: Contents
    trunk: Trunk
    arrivals: tuple[PlannedModel, ...]
    head: HeadSource | None
    gate: GateSettings = DEFAULT_GATE
    progress: ProgressCallback = silent
    notes: list[str] = field(default_factory=list)

    def write(self, publication: Publication) -> Mapping[str, GateResult]:
        """Writes the fresh versions aside and checks them, on the segments that they will run on.

        Returns:
            Task -> what the gate found; empty where the head did not have to pass it, or could not.

        Raises:
            GateError: the head loses too much by the repository's precision.
            OneTrunkError: an export or a check failed.
        """
        exports = Exports(
            trunk=self.trunk,
            release=get_release(self.standing.manifest.triton_release),
            precision=self.after.precision,
            segments={segment: self.after.segments[segment] for segment in self._below},
            heads=[] if self.head is None else [(self.head, self._head_model)],
            buckets=self.standing.manifest.buckets,
            publication=publication,
        )
        segments = {segment.name: segment for segment in self.after.segments}
        for model in self.arrivals:
            if not model.fresh:
                continue
            if model.name in segments:
                exports.write_segment(segments[model.name], model)
            elif self.head is not None:
                exports.write_head(self.head, model)
        if not any(model.fresh for model in self.arrivals):
            return {}
        exports.check(self.progress)
        return self._pass_gate(exports)

    @property
    def _below(self) -> list[Segment]:
        """The segments that the head stands on; all where there is none."""
        return [one for one in self.after.segments if self.head is None or one.stop <= self.head.spec.tap]

    @property
    def _head_model(self) -> PlannedModel:
        assert self.head is not None, "only asked for where there is a head"
        return next(model for model in self.arrivals if model.name == head_name(self.head.spec.task))

    @property
    def _is_reduced(self) -> bool:
        return self.head is not None and is_reduced_task(self.head, self._below, self.after.precision)

    def _pass_gate(self, exports: Exports) -> Mapping[str, GateResult]:
        if self.head is None or not self._is_reduced:
            return {}
        spec = self.head.spec
        try:
            if not self.gate.on:
                raise UserError("the repository was built with --gate off; give --max-loss to judge this head")
            examples = read_dev(spec, self.gate)
        except UserError as error:
            self.notes.append(f"what it loses by {self.after.precision} is not known: {error}")
            return {}
        buckets = self.standing.manifest.buckets
        below = [
            segment_source(segment, self.trunk.identity, self.after.precision.of_segment(segment))
            for segment in self._below
        ]
        tasks = [(spec, examples, gate_key(buckets, below, self._head_model.source))]
        results = measure_losses(self.trunk, exports.fp32, exports.served, tasks, buckets, self.progress)
        judge(results, self.gate.max_loss, "train it better, or allow more by --max-loss")
        result = results[spec.task]
        scores = f"{100 * result.fp32:.2f} in fp32, {100 * result.reduced:.2f} as served"
        self.notes.append(f"{spec.metric} over {result.rows:,} dev rows: {scores}")
        return results

    def expected(self) -> dict[str, NDArray[np.float32]]:
        """Output of the new head -> the scores that it must give for smoke_rows()."""
        if self.head is None:
            return {}
        task, model, manifest = self.head.spec.task, self._head_model, self.standing.manifest
        file = self.repository / model.files[0]
        if self._is_reduced:
            segments = {
                segment: self.repository / segment.name / str(self.after.segments[segment]) / MODEL_FILE
                for segment in self._below
            }
            chain = Chain(segments, {task: file})
            scores = own_answers(self.trunk, chain, self.head.spec, smoke_rows(), manifest.buckets)
        else:
            served = served_task(self.head, self.trunk, file)
            scores = reference_answers(self.trunk, served, smoke_rows(), manifest.max_length)
        state = self.after.heads[task]
        return {candidate_output(task) if state.candidate == model.version else task: scores}
