"""The ensembles that chain tokenizer, trunk and heads: a pure function of the parts' configs.

Triton runs only the steps that a requested output needs. So trunk states are never outputs of an ensemble (the
pruning would not see that heads need them too), no two tensors have one name, and the trunk comes in
segments, of which a request runs those below its deepest tap.
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
    TOKEN_TYPE_IDS,
    TOKEN_WORDS,
    TRUNCATED,
    Segment,
    candidate_ensemble,
    hidden_name,
)
from onetrunk.repository.configs import MAX_BATCH_SIZE, parameters_of, pinned_version
from onetrunk.repository.grouping import Group
from onetrunk.tasks.kinds import get_kind


@dataclass(frozen=True)
class HeadModel:
    """A head as it stands in a repository.

    Attributes:
        config: its config, whose parameters name task, kind, form, tap and trunk.
        labels: its labels, in the order of its scores; None where it gives a number.
        version: the version that is meant.
        output: what it answers as, in an ensemble: its task, or another name beside it.
    """

    config: pb.ModelConfig
    labels: tuple[str, ...] | None
    version: int
    output: str

    @property
    def task(self) -> str:
        """The task that it answers, and the name of its model's output."""
        return parameters_of(self.config)["task"]

    @property
    def tap(self) -> int:
        """The tap that it stands on."""
        return int(parameters_of(self.config)["tap"])

    @property
    def by_token(self) -> bool:
        """Whether it answers for every token, so that whoever reads its answers needs to know the tokens' words."""
        return get_kind(parameters_of(self.config)["kind"]).by_token

    @property
    def has_label_file(self) -> bool:
        """Whether Triton can name its scores."""
        return bool(self.config.output[0].label_filename)

    def is_in(self, group: GroupModel) -> bool:
        """Whether the group answers for it, as it stands here: with its version, and under its task's name."""
        return self.output == self.task and group.group.holds(self.task, self.version)

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
                "layers": parameters["layers"],
                "version": self.version,
                **json.loads(parameters.get("served", "{}")),
            }
        )


@dataclass(frozen=True)
class GroupModel:
    """Several heads of one tap in one model, as it stands in a repository.

    Attributes:
        group: what it holds.
        config: its config.
    """

    group: Group
    config: pb.ModelConfig


def ensemble_configs(
    tokenizer: pb.ModelConfig,
    segments: Mapping[Segment, pb.ModelConfig],
    heads: Sequence[HeadModel],
    groups: Sequence[GroupModel] = (),
) -> list[pb.ModelConfig]:
    """Both ensembles: ``multitask`` (text in) and ``multitask_tokens`` (token ids in).

    A head that a group holds in the version that is served is answered by the group, any other by its own model.

    Raises:
        OneTrunkError: a head stands on another trunk, on a tap that no segment ends at, or its task has the name of
            another tensor.
    """
    _check_parts(segments, heads)
    used = _used(segments, heads)
    return [
        _ensemble(MULTITASK, (TEXT,), (TEXT_PAIR,), tokenizer, used, heads, groups),
        _ensemble(MULTITASK_TOKENS, (INPUT_IDS,), (ATTENTION_MASK, TOKEN_TYPE_IDS), tokenizer, used, heads, groups),
    ]


def candidate_config(
    task: str, tokenizer: pb.ModelConfig, segments: Mapping[Segment, pb.ModelConfig], heads: Sequence[HeadModel]
) -> pb.ModelConfig:
    """The ensemble by which a candidate is tried: text in, the served head and the candidate side by side out.

    Errors as for ensemble_configs.
    """
    _check_parts(segments, heads)
    return _ensemble(candidate_ensemble(task), (TEXT,), (TEXT_PAIR,), tokenizer, _used(segments, heads), heads)


def _used(segments: Mapping[Segment, pb.ModelConfig], heads: Sequence[HeadModel]) -> dict[Segment, pb.ModelConfig]:
    """The segments that these heads need; Triton refuses an ensemble with a step that nothing reads."""
    taps = {head.tap for head in heads}
    return {
        segment: config
        for segment, config in segments.items()
        if segment.stop <= max(taps) and (segment.stop > 0 or 0 in taps)
    }


def _check_parts(segments: Mapping[Segment, pb.ModelConfig], heads: Sequence[HeadModel]) -> None:
    trunks = {parameters_of(config)["trunk"] for config in segments.values()}
    taps = {segment.stop for segment in segments}
    for head in heads:
        if parameters_of(head.config)["trunk"] not in trunks:
            raise OneTrunkError(f"{head.config.name}: its trunk is not the one in the repository ({', '.join(trunks)})")
        if head.tap not in taps:
            raise OneTrunkError(f"{head.config.name}: tap {head.tap}, but segments end at {sorted(taps)}")


def _ensemble(
    name: str,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    tokenizer: pb.ModelConfig,
    segments: Mapping[Segment, pb.ModelConfig],
    heads: Sequence[HeadModel],
    groups: Sequence[GroupModel] = (),
) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.append(ENSEMBLE_VERSION)
    types = {tensor.name: tensor for tensor in tokenizer.input}
    for tensor in (*required, *optional):
        config.input.append(
            pb.ModelInput(
                name=tensor,
                data_type=types[tensor].data_type,
                dims=types[tensor].dims,
                optional=tensor in optional,
            )
        )
    for head in heads:
        output = config.output.add()
        output.CopyFrom(head.config.output[0])
        output.name = head.output
    outputs = dict(zip(PADDED.values(), PADDED.values(), strict=True))
    if name != MULTITASK_TOKENS:
        # Token ids are never cut, so only text can be; and only text has words.
        about_words = any(head.by_token for head in heads)
        for tensor in (TRUNCATED, TOKEN_WORDS) if about_words else (TRUNCATED,):
            config.output.append(_output_of(tokenizer, tensor))
            outputs[tensor] = tensor
    _add_step(config, tokenizer, pinned_version(tokenizer), {name: name for name in (*required, *optional)}, outputs)
    for segment, part in sorted(segments.items()):
        feeds = {tensor: PADDED.get(tensor, tensor) for tensor in segment.inputs}
        _add_step(config, part, pinned_version(part), feeds, {segment.output: segment.output})
    for group in groups:
        # A head that was updated since is not asked of the group.
        members = {head.task: head.output for head in heads if head.is_in(group)}
        if members:
            _add_step(config, group.config, pinned_version(group.config), _head_inputs(group.group.tap), members)
    for head in heads:
        if not any(head.is_in(group) for group in groups):
            _add_step(config, head.config, head.version, _head_inputs(head.tap), {head.task: head.output})
    config.parameters[ONETRUNK_PARAMETER].string_value = _info(tokenizer, segments, heads).text()
    return config


def _output_of(tokenizer: pb.ModelConfig, name: str) -> pb.ModelOutput:
    found = next((tensor for tensor in tokenizer.output if tensor.name == name), None)
    if found is None:
        raise UserError(f"the repository's tokenizer is of an older version and gives no {name}: run build-repo first")
    return found


def _head_inputs(tap: int) -> dict[str, str]:
    return {HIDDEN_STATE: hidden_name(tap), ATTENTION_MASK: PADDED[ATTENTION_MASK]}


def _add_step(
    ensemble: pb.ModelConfig, part: pb.ModelConfig, version: int, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> None:
    # Pinned: a new version of a part on disk changes nothing until an ensemble names it.
    step = ensemble.ensemble_scheduling.step.add(model_name=part.name, model_version=version)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def _info(
    tokenizer: pb.ModelConfig, segments: Mapping[Segment, pb.ModelConfig], heads: Sequence[HeadModel]
) -> EnsembleInfo:
    settings = parameters_of(tokenizer)
    (trunk,) = {parameters_of(config)["trunk"] for config in segments.values()}
    return EnsembleInfo(
        trunk=trunk,
        max_length=int(settings["max_length"]),
        buckets=tuple(int(bucket) for bucket in settings["buckets"].split(",")),
        tasks={head.output: head.info() for head in heads},
    )
