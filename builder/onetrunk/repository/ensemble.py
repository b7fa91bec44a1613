"""The ensembles that chain tokenizer, trunk and heads: a pure function of the configs of these parts.

Triton runs only the steps that a requested output needs. Therefore hidden states are never outputs of an ensemble (the
pruning would not see that heads need them too), no two tensors share a name, and the trunk comes in segments, of which
a request runs those below its deepest tap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.ensemble_info import EnsembleInfo, TaskInfo
from onetrunk.protocol.errors import OneTrunkError, UserError
from onetrunk.protocol.names import (
    ATTENTION_MASK,
    ENSEMBLE_VERSION,
    HIDDEN_STATE,
    INPUT_IDS,
    MULTITASK,
    MULTITASK_TOKENS,
    ONETRUNK_PARAMETER,
    PADDED,
    TEXT,
    TEXT_PAIR,
    TOKEN_COUNT,
    TOKEN_TYPE_IDS,
    TOKEN_WORDS,
    TRUNCATED,
    WINDOWS,
    LimbId,
    Segment,
    candidate_ensemble,
    hidden_name,
    segments_below,
)
from onetrunk.protocol.traffic_split import CandidateInfo
from onetrunk.repository.configs import parameters_of, pinned_version
from onetrunk.repository.versions import Group
from onetrunk.tasks.kinds import get_kind


@dataclass(frozen=True)
class HeadModel:
    """One version of a head, as an ensemble uses it.

    Attributes:
        config: The head's config, whose parameters name its task, kind, form, tap and trunk.
        labels: Its labels in the order of its scores; None if it returns a number.
        version: The version that the ensemble pins.
        output: The ensemble's output for its answer: its task, or another name beside the task's.
        candidate: The candidate that answers a share of the task's traffic; None if there is none.
    """

    config: pb.ModelConfig
    labels: tuple[str, ...] | None
    version: int
    output: str
    candidate: CandidateInfo | None = None

    @property
    def task(self) -> str:
        """The head's task, which is also the name of its model's output."""
        return parameters_of(self.config)["task"]

    @property
    def tap(self) -> int:
        """The tap whose hidden state the head reads."""
        return int(parameters_of(self.config)["tap"])

    @property
    def limb(self) -> str | None:
        """The identity of the limb that the head stands on; None for the trunk itself."""
        return parameters_of(self.config).get("limb")

    @property
    def state(self) -> str:
        """The tensor of the hidden state that the head reads."""
        return hidden_name(self.tap, LimbId.parse(self.limb).label if self.limb else "")

    @property
    def by_token(self) -> bool:
        """Whether the head answers for every token, so that a client has to know which words the tokens belong to."""
        return get_kind(parameters_of(self.config)["kind"]).by_token

    @property
    def has_label_file(self) -> bool:
        """Whether Triton can name the head's scores."""
        return bool(self.config.output[0].label_filename)

    def is_in(self, group: Group) -> bool:
        """Return whether a group answers for the head: it holds this version, and the output is the task's own."""
        return self.output == self.task and group.holds(self.task, self.version)

    def info(self) -> TaskInfo:
        """Return what clients need to know about the task."""
        parameters = parameters_of(self.config)
        bounds = parameters.get("range")
        return TaskInfo.model_validate(
            {
                "name": self.output,
                "kind": parameters["kind"],
                "form": parameters["form"],
                "labels": self.labels or None,
                "range": bounds.split(",") if bounds else None,
                "metric": parameters["metric"],
                "tap": self.tap,
                "limb": self.limb,
                "layers": parameters["layers"],
                "version": self.version,
                "candidate": self.candidate,
                **json.loads(parameters.get("served", "{}")),
            }
        )


SegmentConfigs = Mapping[Segment, pb.ModelConfig]
GroupConfigs = Sequence[tuple[Group, pb.ModelConfig]]


def ensemble_configs(
    tokenizer: pb.ModelConfig, segments: SegmentConfigs, heads: Sequence[HeadModel], groups: GroupConfigs = ()
) -> list[pb.ModelConfig]:
    """Return both ensembles: ``multitask`` (text in) and ``multitask_tokens`` (token ids in).

    Args:
        tokenizer: The tokenizer's config.
        segments: The configs of the segments in use.
        heads: The heads to serve.
        groups: Groups of heads. A group answers for each head that it holds in the version to serve; any other head
            answers by its own model.

    Raises:
        OneTrunkError: A head belongs to another trunk, or no segment ends at its tap.
    """
    _check_parts(segments, heads)
    used = _used(segments, heads, groups)
    return [
        _ensemble(MULTITASK, (TEXT,), (TEXT_PAIR,), tokenizer, used, heads, groups),
        _ensemble(MULTITASK_TOKENS, (INPUT_IDS,), (ATTENTION_MASK, TOKEN_TYPE_IDS), tokenizer, used, heads, groups),
    ]


def candidate_config(
    task: str, tokenizer: pb.ModelConfig, segments: SegmentConfigs, heads: Sequence[HeadModel]
) -> pb.ModelConfig:
    """Return the ensemble that serves a candidate: text in, the live head and the candidate side by side out.

    Args:
        task: The candidate's task.
        tokenizer: The tokenizer's config.
        segments: The configs of the segments in use.
        heads: The live head, if there is one, and the candidate.

    Raises:
        OneTrunkError: A head belongs to another trunk, or no segment ends at its tap.
    """
    _check_parts(segments, heads)
    return _ensemble(candidate_ensemble(task), (TEXT,), (TEXT_PAIR,), tokenizer, _used(segments, heads), heads)


def _check_parts(segments: SegmentConfigs, heads: Sequence[HeadModel]) -> None:
    trunks = {parameters_of(config)["trunk"] for config in segments.values()}
    states = sorted(segment.output for segment in segments)
    for head in heads:
        if parameters_of(head.config)["trunk"] not in trunks:
            raise OneTrunkError(f"{head.config.name}: its trunk is not the one in the repository ({', '.join(trunks)})")
        if head.state not in states:
            raise OneTrunkError(f"{head.config.name}: reads {head.state}, and segments end at {', '.join(states)}")


def _used(segments: SegmentConfigs, heads: Sequence[HeadModel], groups: GroupConfigs = ()) -> SegmentConfigs:
    """Return the segments that the heads need; Triton refuses an ensemble with a step that nothing reads."""
    states = {next((group.state for group, _ in groups if head.is_in(group)), head.state) for head in heads}
    needed = {segment for state in states for segment in segments_below(segments, state)}
    return {segment: config for segment, config in segments.items() if segment in needed}


def _ensemble(
    name: str,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    tokenizer: pb.ModelConfig,
    segments: SegmentConfigs,
    heads: Sequence[HeadModel],
    groups: GroupConfigs = (),
) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=tokenizer.max_batch_size)
    config.version_policy.specific.versions.append(ENSEMBLE_VERSION)
    _add_inputs(config, tokenizer, required, optional)
    for head in heads:
        output = config.output.add()
        output.CopyFrom(head.config.output[0])
        output.name = head.output
    # A tensor of an ensemble that no step reads is an error, such as the types above a trunk that reads none.
    tokenized = {tensor.name: tensor.name for tensor in tokenizer.output if tensor.name in PADDED.values()}
    if name != MULTITASK_TOKENS:
        # Token ids are never truncated, so only text can be; only text has words; and who sends ids has counted them.
        about_text = [TRUNCATED]
        if any(tensor.name == TOKEN_COUNT for tensor in tokenizer.output):  # an older tokenizer does not count
            about_text.append(TOKEN_COUNT)
        if any(head.by_token for head in heads):
            about_text.append(TOKEN_WORDS)
        if any(head.info().reads_windows for head in heads):
            _output_of(tokenizer, WINDOWS)
        for tensor in about_text:
            config.output.append(_output_of(tokenizer, tensor))
            tokenized[tensor] = tensor
    _add_step(config, tokenizer, pinned_version(tokenizer), {name: name for name in (*required, *optional)}, tokenized)
    for segment, part in sorted(segments.items()):
        feeds = {tensor.name: PADDED.get(tensor.name, tensor.name) for tensor in part.input}
        _add_step(config, part, pinned_version(part), feeds, {segment.output: segment.output})
    for group, part in groups:
        # A head that was updated after the group was made is not in it: its own model answers.
        members = {head.task: head.output for head in heads if head.is_in(group)}
        if members:
            feeds = {group.input: group.state, ATTENTION_MASK: PADDED[ATTENTION_MASK]}
            _add_step(config, part, pinned_version(part), feeds, members)
    for head in heads:
        if not any(head.is_in(group) for group, _ in groups):
            feeds = {HIDDEN_STATE: head.state, ATTENTION_MASK: PADDED[ATTENTION_MASK]}
            _add_step(config, head.config, head.version, feeds, {head.task: head.output})
    config.parameters[ONETRUNK_PARAMETER].string_value = _info(tokenizer, segments, heads).text()
    return config


def _add_inputs(
    ensemble: pb.ModelConfig, tokenizer: pb.ModelConfig, required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    types = {tensor.name: tensor for tensor in tokenizer.input}
    for name in (*required, *optional):
        tensor = types[name]
        ensemble.input.append(
            pb.ModelInput(name=name, data_type=tensor.data_type, dims=tensor.dims, optional=name in optional)
        )


def _output_of(tokenizer: pb.ModelConfig, name: str) -> pb.ModelOutput:
    found = next((tensor for tensor in tokenizer.output if tensor.name == name), None)
    if found is None:
        raise UserError(f"the repository's tokenizer is of an older version and has no {name}: run build-repo first")
    return found


def _add_step(
    ensemble: pb.ModelConfig, part: pb.ModelConfig, version: int, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> None:
    # Pinned: a new version of a part on disk changes nothing until an ensemble names it.
    step = ensemble.ensemble_scheduling.step.add(model_name=part.name, model_version=version)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def _info(tokenizer: pb.ModelConfig, segments: SegmentConfigs, heads: Sequence[HeadModel]) -> EnsembleInfo:
    settings = parameters_of(tokenizer)
    (trunk,) = {parameters_of(config)["trunk"] for config in segments.values()}
    return EnsembleInfo(
        trunk=trunk,
        max_length=int(settings["max_length"]),
        buckets=tuple(int(bucket) for bucket in settings["buckets"].split(",")),
        tasks={head.output: head.info() for head in heads},
    )
