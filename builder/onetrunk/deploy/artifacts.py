"""What a change makes: model files, checked against torch and judged by the gate, and the answers to expect of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from onetrunk.admin import Row
from onetrunk.deploy.proof import smoke_rows
from onetrunk.export.batches import padded_batches
from onetrunk.export.chain import Chain
from onetrunk.export.exported_head import ExportedHead
from onetrunk.export.foreign import ForeignSession
from onetrunk.export.parity import HeadFile
from onetrunk.export.release import get_release
from onetrunk.export.runtime import Runtime
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.manifest import GateResult
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    HIDDEN_STATE,
    MODEL_FILE,
    Segment,
    candidate_output,
    head_name,
    segments_below,
)
from onetrunk.repository.artifacts import Artifacts, head_file
from onetrunk.repository.gate import gate_key, gate_runtime, judge, measure_losses, read_dev
from onetrunk.repository.gate_settings import DEFAULT_GATE, GateSettings
from onetrunk.repository.heads import HeadSource, is_reduced_task
from onetrunk.repository.state import RepositoryState
from onetrunk.repository.transaction import Transaction
from onetrunk.repository.versions import ModelVersion, segment_source
from onetrunk.tasks import Examples
from onetrunk.tasks.head_spec import HeadSpec


@dataclass(frozen=True)
class ReleaseArtifacts:
    """The files of a change, and what a server must answer by them.

    Attributes:
        repository: The repository's folder.
        after: The state that is to be.
        trunk: The trunk.
        models: The versions that ``after`` needs; the fresh ones are made.
        head: The head that is added; None if only segments are.
        gate: How a reduced precision is judged.
        progress: Called as files are made and checked.
        notes: Remarks for the user, filled by ``write``.
    """

    repository: Path
    after: RepositoryState
    trunk: Trunk
    models: tuple[ModelVersion, ...]
    head: HeadSource | None
    gate: GateSettings = DEFAULT_GATE
    progress: ProgressCallback = silent
    notes: list[str] = field(default_factory=list)

    def write(self, transaction: Transaction) -> Mapping[str, GateResult]:
        """Stage the fresh versions and check them, on the segments below them.

        Returns:
            Task -> the gate's result; empty if the head did not have to pass the gate, or could not be judged.

        Raises:
            GateError: The head loses too much by the repository's precision.
            OneTrunkError: An export or a check failed.
        """
        if not any(model.fresh for model in self.models):
            return {}
        artifacts = Artifacts(
            trunk=self.trunk,
            release=get_release(self.after.triton_release),
            precision=self.after.precision,
            segments={segment: self.after.segments[segment] for segment in self._below},
            heads=[] if self.head is None else [(self.head, self._head_model)],
            buckets=self.after.buckets,
            transaction=transaction,
        )
        artifacts.write(self.models, self.progress)
        artifacts.check(self.progress)
        return self._pass_gate(artifacts)

    def expected(self) -> dict[str, NDArray[np.float32]]:
        """Return output of the new head -> the scores that it must return for ``smoke_rows``.

        In fp32 these come from torch. In a reduced precision they come from the served files, run here: how far those
        are from torch is for the gate to judge.
        """
        if self.head is None:
            return {}
        spec, model = self.head.spec, self._head_model
        file = self.repository / model.files[0]
        if self._is_reduced:
            segments = {
                segment: self.repository / segment.name / str(self.after.segments[segment]) / MODEL_FILE
                for segment in self._below
            }
            foreign = frozenset({spec.task} if isinstance(self.head, ExportedHead) else ())
            chain = Chain(segments, {spec.task: file}, foreign)
            texts = [(text, pair) if pair else text for text, pair in smoke_rows()]
            scores = chain.scores(spec, list(padded_batches(self.trunk, texts, self.after.buckets)))
        else:
            served = head_file(self.head, self.trunk, file)
            scores = reference_answers(self.trunk, served, smoke_rows(), self.after.max_length)
        is_candidate = self.after.heads[spec.task].candidate == model.version
        return {candidate_output(spec.task) if is_candidate else spec.task: scores}

    @property
    def _below(self) -> list[Segment]:
        """The segments below the head; all of them if there is no head."""
        if self.head is None:
            return list(self.after.segments)
        return segments_below(self.after.segments, self.head.spec.state)

    @property
    def _head_model(self) -> ModelVersion:
        assert self.head is not None, "only needed if there is a head"
        return next(model for model in self.models if model.name == head_name(self.head.spec.task))

    @property
    def _is_reduced(self) -> bool:
        return self.head is not None and is_reduced_task(self.head, self._below, self.after.precision)

    def _pass_gate(self, artifacts: Artifacts) -> Mapping[str, GateResult]:
        if self.head is None or not self._is_reduced:
            return {}
        spec, precision = self.head.spec, self.after.precision
        try:
            examples = self._dev_examples(spec)
        except UserError as error:
            self.notes.append(f"what it loses by {precision} is not known: {error}")
            return {}
        below = [segment_source(one, self.trunk.identity, precision.of_segment(one)) for one in self._below]
        tasks = [(spec, examples, gate_key(self.after.buckets, below, self._head_model.source))]
        chains = artifacts.fp32, artifacts.served
        runtime = self._runtime()
        results = measure_losses(self.trunk, *chains, tasks, self.after.buckets, self.progress, runtime, precision)
        judge(results, self.gate.max_loss, "train it better, or allow more by --max-loss")
        result = results[spec.task]
        scores = f"{100 * result.fp32:.2f} in fp32, {100 * result.reduced:.2f} as served"
        self.notes.append(f"{spec.metric} over {result.rows:,} dev rows: {scores}, by {result.measured_by}")
        return results

    def _runtime(self) -> Runtime:
        """Return the ONNX Runtime to measure by; the installed one, with a note, if the release's cannot be had."""
        try:
            runtime = gate_runtime(self.gate, self.after.triton_release, self.after.precision)
            runtime.fetch(progress=self.progress)
        except OneTrunkError as error:
            self.notes.append(f"measured by the ONNX Runtime that is installed, and not by the release's: {error}")
            return Runtime()
        return runtime

    def _dev_examples(self, spec: HeadSpec) -> Examples:
        if not self.gate.on:
            raise UserError("the repository was built with --gate off; give --max-loss to judge this head")
        return read_dev(spec, self.gate)


def reference_answers(trunk: Trunk, head: HeadFile, rows: Sequence[Row], max_length: int) -> NDArray[np.float32]:
    """Compute a head's scores in torch, with the head's last layer whole.

    Args:
        trunk: The trunk.
        head: The head. One without a torch module is run by ONNX Runtime, in its own process, on torch's hidden states.
        rows: The texts.
        max_length: The longest row in tokens; longer ones are truncated as the server's tokenizer does.

    Returns:
        *Shape:* (rows, outputs of the head), or (rows, tokens, 2) for a head that answers for every token.
    """
    tokenizer = trunk.tokenizer()
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=trunk.pad_token_id)
    encoded = tokenizer.encode_batch([(text, pair) if pair else text for text, pair in rows])
    ids = torch.tensor([row.ids for row in encoded])  # (rows, tokens), as are mask and types
    mask = torch.tensor([row.attention_mask for row in encoded])
    types = torch.tensor([row.type_ids for row in encoded])
    tap = head.spec.tap
    state = trunk.branch(head.spec.limb_id).states(ids, types, mask, [tap])[tap]  # (rows, tokens, width)
    if head.module is None:
        session = ForeignSession(head.path, head.name)
        feeds = {HIDDEN_STATE: state.numpy(), ATTENTION_MASK: mask.numpy()}
        scores: NDArray[np.float32] = session.run(None, feeds)[0]
        return scores
    with torch.no_grad():
        whole: NDArray[np.float32] = head.module.forward_whole(state, mask).numpy()
    return whole
