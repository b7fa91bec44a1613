"""What a repository serves, as a value: its parts, which versions of each, and the texts that follow from that.

A build and a deployment both end in such a value. All configs and label files are a pure function of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.manifest import CPU, FP32, Dtype, Placement, Precision
from onetrunk.protocol.names import ENSEMBLE_VERSION, Segment, candidate_output, head_name
from onetrunk.repository.configs import config_text, group_config, head_config, label_file, placed_text, segment_config
from onetrunk.repository.ensemble import GroupModel, HeadModel, candidate_config, ensemble_configs
from onetrunk.repository.grouping import Group
from onetrunk.tasks.head_spec import HeadSpec


@dataclass(frozen=True)
class HeadState:
    """A head as it stands in a repository.

    Attributes:
        specs: version -> what it is; of the versions that can be served.
        served: the version that the ensembles pin; None where the task was removed.
        loaded: the versions that Triton holds, rising. Beside the served one, that is the one before it, which a
            rollback then finds at once, and a candidate.
        candidate: the version that is tried beside the served one.
        previous: the version that was served before; of a removed task, the one that was served last.
        numbers: version -> what it computes in, where that is not fp32.
    """

    specs: Mapping[int, HeadSpec]
    served: int | None
    loaded: tuple[int, ...]
    candidate: int | None = None
    previous: int | None = None
    numbers: Mapping[int, Dtype] = field(default_factory=dict)

    def at_rest(self) -> HeadState:
        """The same with those versions loaded that should be while nothing is being changed."""
        wanted = {self.served, self.candidate, self.previous if self.served is not None else None}
        return replace(self, loaded=tuple(sorted(version for version in self.specs if version in wanted)))

    def model(self, version: int, output: str | None = None) -> HeadModel:
        """One version, as an ensemble names it."""
        spec = self.specs[version]
        config = head_config(spec, versions=self.loaded, dtype=self.numbers.get(version, "fp32"))
        return HeadModel(config, spec.labels, version, output or spec.task)


@dataclass(frozen=True)
class GroupState:
    """A model that holds several heads of one tap.

    Attributes:
        group: which heads, in which versions.
        version: the model's own version.
    """

    group: Group
    version: int


@dataclass(frozen=True)
class Contents:
    """A repository to be, or one that is.

    Attributes:
        trunk: the trunk's identity.
        width: size of its hidden states.
        tokenizer: the tokenizer's config.
        segments: segment in use -> version.
        heads: every head, by task.
        groups: the models that hold several heads of one tap, those too of which no head is served just now.
        precision: what segments compute in, and heads that are exported from now on.
        placement: where the models run, and with how many threads.
    """

    trunk: str
    width: int
    tokenizer: pb.ModelConfig
    segments: Mapping[Segment, int]
    heads: Mapping[str, HeadState] = field(default_factory=dict)
    groups: tuple[GroupState, ...] = ()
    precision: Precision = FP32
    placement: Placement = CPU

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are served."""
        return tuple(task for task, head in sorted(self.heads.items()) if head.served is not None)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The tasks that have a candidate."""
        return tuple(task for task, head in sorted(self.heads.items()) if head.candidate is not None)

    @property
    def taps(self) -> set[int]:
        """The taps that a served head or a candidate stands on."""
        pairs = [(head, version) for head in self.heads.values() for version in (head.served, head.candidate)]
        return {head.specs[version].tap for head, version in pairs if version is not None}

    def grouped(self, group: GroupState) -> tuple[str, ...]:
        """The tasks that a group answers for: those of its heads that are served in the version that it holds."""
        return tuple(task for task in self.tasks if group.group.holds(task, self.heads[task].served))

    @property
    def groups_in_use(self) -> tuple[GroupState, ...]:
        """The groups that answer for some task."""
        return tuple(group for group in self.groups if self.grouped(group))

    @property
    def own_models(self) -> tuple[str, ...]:
        """The tasks whose head's own model a server holds: not those of which a group answers for the only version."""
        by_group = {task for group in self.groups for task in self.grouped(group)}
        return tuple(
            task
            for task, head in sorted(self.heads.items())
            if head.loaded and not (task in by_group and head.loaded == (head.served,))
        )

    def with_head(self, task: str, head: HeadState) -> Contents:
        """The same with one head in another state."""
        return replace(self, heads={**self.heads, task: head})

    def segment_configs(self) -> dict[Segment, pb.ModelConfig]:
        """The segments' configs."""
        return {
            segment: segment_config(
                segment, width=self.width, trunk=self.trunk, version=version, dtype=self.precision.of_segment(segment)
            )
            for segment, version in self.segments.items()
        }

    @cached_property
    def part_texts(self) -> Mapping[str, str]:
        """Labels and configs of tokenizer, segments and heads in use: path below the repository -> content."""
        heads = [self.heads[task] for task in sorted(self.heads) if self.heads[task].loaded]
        # Versions of a head differ in tap and layers at most; its config tells those of the version that answers.
        shown = [head.model(head.served or head.candidate or head.loaded[-1]) for head in heads]
        named = [head for head in shown if head.has_label_file]
        texts = {f"{head_name(head.task)}/{label_file(head.task)}": label_text(head) for head in named}
        groups = (group.config for group in self._group_models())
        for config in (self.tokenizer, *self.segment_configs().values(), *(head.config for head in shown), *groups):
            texts[f"{config.name}/config.pbtxt"] = placed_text(config, self.placement)
        return texts

    @cached_property
    def ensembles(self) -> list[tuple[pb.ModelConfig, list[HeadModel]]]:
        """Every ensemble with the heads that it chains: the two of all served tasks, then one a candidate."""
        segments = self.segment_configs()
        served = [(self.heads[task], self.heads[task].served) for task in self.tasks]
        heads = [head.model(version) for head, version in served if version is not None]
        groups = self._group_models()
        found = [(config, heads) for config in ensemble_configs(self.tokenizer, segments, heads, groups)]
        for task in self.candidates:
            head = self.heads[task]
            both = [] if head.served is None else [head.model(head.served)]
            if head.candidate is not None:
                both.append(head.model(head.candidate, candidate_output(task)))
            found.append((candidate_config(task, self.tokenizer, segments, both), both))
        return found

    def _group_models(self) -> list[GroupModel]:
        return [
            GroupModel(state.group, group_config(state.group, width=self.width, version=state.version))
            for state in self.groups_in_use
        ]

    @cached_property
    def ensemble_texts(self) -> Mapping[str, str]:
        """Labels and configs of the ensembles: path below the repository -> content."""
        texts = {}
        for config, heads in self.ensembles:
            # A model needs a version folder, an ensemble has nothing to put in it.
            texts[f"{config.name}/{ENSEMBLE_VERSION}/.keep"] = ""
            named = [head for head in heads if head.has_label_file]
            texts |= {f"{config.name}/{label_file(head.task)}": label_text(head) for head in named}
            texts[f"{config.name}/config.pbtxt"] = config_text(config)
        return texts

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """All texts, in the order in which they are moved in: no config before that of what it names."""
        return {**self.part_texts, **self.ensemble_texts}


def label_text(head: HeadModel) -> str:
    """The content of a head's label file."""
    return "".join(f"{label}\n" for label in head.labels or ())
