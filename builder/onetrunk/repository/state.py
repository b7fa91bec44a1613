"""``RepositoryState``: what a repository serves, as one value.

All configs and label files, and the manifest, are pure functions of it. ``read_state`` reads it back from disk. A build
and a deployment both plan the state that is to be, and hand it to a ``Transaction``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import (
    CPU,
    DEFAULT_RULE,
    FP32,
    Dtype,
    GateResult,
    GateRule,
    Manifest,
    ModelEntry,
    Placement,
    Precision,
    VersionEntry,
    read_manifest,
)
from onetrunk.protocol.names import (
    CONFIG_FILE,
    ENSEMBLE_VERSION,
    TOKENIZER,
    Segment,
    candidate_output,
    head_name,
    head_task,
    is_group,
    segment_named,
)
from onetrunk.protocol.reading import read_regular
from onetrunk.protocol.traffic_split import CandidateInfo, TrafficSplit
from onetrunk.repository.configs import (
    config_text,
    feeds_token_types,
    group_config,
    head_config,
    label_file,
    parameters_of,
    pinned_version,
    placed_text,
    segment_config,
)
from onetrunk.repository.ensemble import HeadModel, candidate_config, ensemble_configs
from onetrunk.repository.versions import Group, read_group
from onetrunk.tasks.head_spec import HeadSpec, read_spec
from onetrunk.tasks.kinds import get_kind

_MAX_CONFIG_BYTES = 2**20  # of the tokenizer


@dataclass(frozen=True)
class HeadVersion:
    """A version of a head that can be served.

    Attributes:
        spec: Its ``head.json``.
        dtype: The dtype in which it computes.
    """

    spec: HeadSpec
    dtype: Dtype = "fp32"


@dataclass(frozen=True)
class HeadVersions:
    """A head of a repository, in all versions that can be served.

    Attributes:
        versions: Number -> version.
        served: The version that the ensembles pin; None if the task was removed.
        loaded: The versions that Triton holds, in increasing order. Besides the served one these are a candidate, and
            the version served before, so that a rollback finds it loaded.
        candidate: The version that is tried beside the served one.
        previous: The version that was served before; for a removed task, the one that was served last.
        split: The share of the traffic that the candidate answers; None if it answers only who asks for it.
    """

    versions: Mapping[int, HeadVersion] = field(default_factory=dict)
    served: int | None = None
    loaded: tuple[int, ...] = ()
    candidate: int | None = None
    previous: int | None = None
    split: TrafficSplit | None = None

    def spec(self, version: int) -> HeadSpec:
        """Return a version's ``head.json``."""
        return self.versions[version].spec

    def at_rest(self) -> HeadVersions:
        """Return the head with the versions loaded that belong so while no deployment is in progress."""
        wanted = {self.served, self.candidate, self.previous if self.served is not None else None}
        loaded = tuple(sorted(version for version in self.versions if version in wanted))
        return replace(self, loaded=loaded, split=self.split if self.candidate is not None else None)

    def serving(self, version: int) -> HeadVersions:
        """Return the head served from a version. The version served before stays loaded."""
        before = self.previous if self.served in (None, version) else self.served
        return replace(self, served=version, previous=before if before != version else None).at_rest()

    def model(self, version: int, output: str | None = None) -> HeadModel:
        """Return a version as an ensemble uses it.

        Args:
            version: The version.
            output: The ensemble's output for it; None for the task's name.
        """
        spec, dtype = self.spec(version), self.versions[version].dtype
        config = head_config(spec, versions=self.loaded, dtype=dtype)
        return HeadModel(config, spec.labels, version, output or spec.task, self._split_of(version))

    def _split_of(self, version: int) -> CandidateInfo | None:
        if version != self.served or self.candidate is None or self.split is None:
            return None
        spec = self.spec(self.candidate)
        return CandidateInfo(
            version=self.candidate, split=self.split, reads=get_kind(spec.kind).output.client_info(spec)
        )


@dataclass(frozen=True)
class GroupVersion:
    """A version of a model that holds several heads of one tap.

    Attributes:
        group: The heads that it holds, and their versions.
        version: The model's own version.
    """

    group: Group
    version: int


@dataclass(frozen=True)
class RepositoryState:
    """What a repository serves, and what lies on disk beside that.

    Attributes:
        trunk: The trunk's identity.
        width: The size of its hidden states.
        triton_release: The Triton release that must be able to load the files.
        tokenizer: The tokenizer's config.
        segments: Segment below a head in use -> version, lowest segment first.
        heads: Task -> head, also of tasks that were removed and not pruned.
        groups: The models that hold several heads of one tap, also those that answer for no head at the moment.
        precision: The dtypes of the segments, and of heads that are exported from now on.
        placement: Where the models run, and in how many threads.
        gate: Task -> the gate's last result.
        gate_rule: The rule that the gate applies.
        on_disk: Model -> its versions on disk.
        recorded_files: Model -> the files beside its version folders, as last written: path -> SHA-256. They are needed
            for models that are not in use, which have no config text in this state.
        notes: Remarks on files that ``read_state`` left out.
    """

    trunk: str
    width: int
    triton_release: str
    tokenizer: pb.ModelConfig
    segments: Mapping[Segment, int]
    heads: Mapping[str, HeadVersions] = field(default_factory=dict)
    groups: tuple[GroupVersion, ...] = ()
    precision: Precision = FP32
    placement: Placement = CPU
    gate: Mapping[str, GateResult] = field(default_factory=dict)
    gate_rule: GateRule = DEFAULT_RULE
    on_disk: Mapping[str, Mapping[int, VersionEntry]] = field(default_factory=dict)
    recorded_files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The padded lengths in tokens, in increasing order."""
        return tuple(int(bucket) for bucket in parameters_of(self.tokenizer)["buckets"].split(","))

    @property
    def max_length(self) -> int:
        """The longest text in tokens; longer ones are truncated."""
        return int(parameters_of(self.tokenizer)["max_length"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are served."""
        return tuple(task for task, head in sorted(self.heads.items()) if head.served is not None)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The tasks that have a candidate."""
        return tuple(task for task, head in sorted(self.heads.items()) if head.candidate is not None)

    @property
    def specs_in_use(self) -> tuple[HeadSpec, ...]:
        """What is known of served heads and candidates."""
        pairs = [(head, version) for head in self.heads.values() for version in (head.served, head.candidate)]
        return tuple(head.spec(version) for head, version in pairs if version is not None)

    @property
    def groups_in_use(self) -> tuple[GroupVersion, ...]:
        """The groups that answer for a task."""
        return tuple(group for group in self.groups if self._answered_by(group))

    @property
    def own_models(self) -> tuple[str, ...]:
        """The tasks whose head's own model is loaded: all but those of which a group holds the only loaded version."""
        grouped = {task for group in self.groups for task in self._answered_by(group)}
        return tuple(
            task
            for task, head in sorted(self.heads.items())
            if head.loaded and not (task in grouped and head.loaded == (head.served,))
        )

    def _answered_by(self, group: GroupVersion) -> tuple[str, ...]:
        """Return the tasks for which a group answers: those served from the version that it holds."""
        return tuple(task for task in self.tasks if group.group.holds(task, self.heads[task].served))

    def with_head(self, task: str, head: HeadVersions) -> RepositoryState:
        """Return the state with one head replaced or added."""
        return replace(self, heads={**self.heads, task: head})

    def with_records_of(self, other: RepositoryState) -> RepositoryState:
        """Return the state with another one's records: what is on disk, and the gate's results."""
        return replace(self, on_disk=other.on_disk, recorded_files=other.recorded_files, gate=other.gate)

    def segment_configs(self) -> dict[Segment, pb.ModelConfig]:
        """Return the segments' configs."""
        return {
            segment: segment_config(
                segment,
                width=self.width,
                trunk=self.trunk,
                version=version,
                dtype=self.precision.of_segment(segment),
                token_types=feeds_token_types(self.tokenizer),
            )
            for segment, version in self.segments.items()
        }

    @property
    def segments_in_use(self) -> dict[Segment, int]:
        """The segments that an ensemble names: not a limb that is part of the group of all of its heads."""
        named = {step.model_name for config, _ in self.ensembles for step in config.ensemble_scheduling.step}
        return {segment: version for segment, version in self.segments.items() if segment.name in named}

    def _group_configs(self) -> list[tuple[Group, pb.ModelConfig]]:
        return [
            (used.group, group_config(used.group, width=self.width, version=used.version))
            for used in self.groups_in_use
        ]

    @cached_property
    def ensembles(self) -> list[tuple[pb.ModelConfig, list[HeadModel]]]:
        """Every ensemble with the heads that it chains: the two of all served tasks, then one for each candidate."""
        segments = self.segment_configs()
        served = [(self.heads[task], self.heads[task].served) for task in self.tasks]
        heads = [head.model(version) for head, version in served if version is not None]
        configs = ensemble_configs(self.tokenizer, segments, heads, self._group_configs())
        found = [(config, heads) for config in configs]
        for task in self.candidates:
            head = self.heads[task]
            both = [] if head.served is None else [head.model(head.served)]
            if head.candidate is not None:
                both.append(head.model(head.candidate, candidate_output(task)))
            found.append((candidate_config(task, self.tokenizer, segments, both), both))
        return found

    def ensemble(self, name: str) -> pb.ModelConfig:
        """Return the config of the ensemble of this name."""
        return next(config for config, _ in self.ensembles if config.name == name)

    @cached_property
    def part_texts(self) -> Mapping[str, str]:
        """Path -> content of the configs and label files of tokenizer, segments, heads and groups in use."""
        heads = [self.heads[task] for task in sorted(self.heads) if self.heads[task].loaded]
        # Versions of a head differ in tap and layers at most; its config shows those of the version that answers.
        shown = [head.model(head.served or head.candidate or head.loaded[-1]) for head in heads]
        named = [head for head in shown if head.has_label_file]
        texts = {f"{head_name(head.task)}/{label_file(head.task)}": _label_text(head) for head in named}
        groups = [config for _, config in self._group_configs()]
        for config in (self.tokenizer, *self.segment_configs().values(), *(head.config for head in shown), *groups):
            config.max_batch_size = self.tokenizer.max_batch_size
            texts[f"{config.name}/{CONFIG_FILE}"] = placed_text(config, self.placement)
        return texts

    @cached_property
    def ensemble_texts(self) -> Mapping[str, str]:
        """Path -> content of the configs and label files of the ensembles."""
        texts = {}
        for config, heads in self.ensembles:
            # Every model needs a version folder, and an ensemble has nothing to put into it.
            texts[f"{config.name}/{ENSEMBLE_VERSION}/.keep"] = ""
            named = [head for head in heads if head.has_label_file]
            texts |= {f"{config.name}/{label_file(head.task)}": _label_text(head) for head in named}
            texts[f"{config.name}/{CONFIG_FILE}"] = config_text(config)
        return texts

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """Path -> content of all texts, each config after those of the parts that it names."""
        return {**self.part_texts, **self.ensemble_texts}

    def manifest(self) -> Manifest:
        """Return the state in its serialised form."""
        in_use = {TOKENIZER: pinned_version(self.tokenizer)}
        in_use |= {segment.name: version for segment, version in self.segments.items()}
        in_use |= {group.group.name: group.version for group in self.groups_in_use}
        in_use |= {config.name: ENSEMBLE_VERSION for config, _ in self.ensembles}
        models = {name: self._entry(name, version, (version,)) for name, version in in_use.items()}
        for task, head in self.heads.items():
            name = head_name(task)
            entry = self._entry(name, head.served, head.loaded, head.candidate, head.previous)
            models[name] = entry.model_copy(update={"split": head.split})
        for name, versions in self.on_disk.items():
            if name not in models and versions:
                models[name] = self._entry(name, None, ())
        return Manifest(
            onetrunk_version=__version__,
            trunk=self.trunk,
            triton_release=self.triton_release,
            max_length=self.max_length,
            buckets=self.buckets,
            tasks=self.tasks,
            models=models,
            precision=self.precision,
            gate=dict(self.gate),
            gate_rule=self.gate_rule,
            placement=self.placement,
        )

    def _entry(
        self,
        name: str,
        served: int | None,
        loaded: tuple[int, ...],
        candidate: int | None = None,
        previous: int | None = None,
    ) -> ModelEntry:
        files = {path: text_digest(text) for path, text in self.texts.items() if path.startswith(f"{name}/")}
        return ModelEntry(
            served=served,
            loaded=loaded,
            candidate=candidate,
            previous=previous,
            versions=dict(self.on_disk.get(name, {})),
            files=files or dict(self.recorded_files.get(name, {})),
        )


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text file's content."""
    return hashlib.sha256(text.encode()).hexdigest()


def _label_text(head: HeadModel) -> str:
    return "".join(f"{label}\n" for label in head.labels or ())


def changed_texts(repository: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Return those texts that are missing on disk or differ from the files there, in the same order.

    Args:
        repository: The repository's folder.
        texts: Path below the repository -> content.
    """
    return {name: text for name, text in texts.items() if not _holds_text(repository / name, text)}


def _holds_text(path: Path, text: str) -> bool:
    content = text.encode()
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def read_state(repository: Path) -> RepositoryState:
    """Read the state of a repository that ``build-repo`` wrote.

    Raises:
        UserError: There is no repository, or one of its files in use is broken.
    """
    manifest = required_manifest(repository)
    heads, segments = {}, {}
    for name, entry in manifest.models.items():
        task, segment = head_task(name), segment_named(name)
        if task is not None:
            heads[task] = _read_head(repository, name, entry, manifest.trunk)
        elif segment is not None and entry.served is not None:
            segments[segment] = entry.served
    widths = {version.spec.width for head in heads.values() for version in head.versions.values()}
    if len(widths) != 1:
        raise UserError(f"{repository}: its heads do not stand on one trunk: run build-repo again")
    notes: list[str] = []
    return RepositoryState(
        trunk=manifest.trunk,
        width=widths.pop(),
        triton_release=manifest.triton_release,
        tokenizer=_read_tokenizer(repository),
        segments=dict(sorted(segments.items())),
        heads=heads,
        groups=tuple(_read_groups(repository, manifest, heads, notes)),
        precision=manifest.precision,
        placement=manifest.placement,
        gate=manifest.gate,
        gate_rule=manifest.gate_rule,
        on_disk={name: entry.versions for name, entry in manifest.models.items()},
        recorded_files={name: entry.files for name, entry in manifest.models.items()},
        notes=tuple(notes),
    )


def required_manifest(repository: Path) -> Manifest:
    """Read the manifest of a repository that must exist.

    Raises:
        UserError: There is no repository, or its manifest is broken.
    """
    manifest = read_manifest(repository)
    if manifest is None:
        raise UserError(f"{repository}: no repository here: run build-repo first, or give --repository")
    return manifest


def _read_head(repository: Path, name: str, entry: ModelEntry, trunk: str) -> HeadVersions:
    versions = {}
    in_use = (entry.served, entry.candidate)
    for version, record in sorted(entry.versions.items()):
        try:
            spec = read_spec(repository / name / str(version), any_folder=True)
            if spec.task != head_task(name):
                raise UserError(f"{repository / name}/{version}: found the head of {spec.task}: run build-repo again")
        except UserError:
            # A version that is not in use only cannot be rolled back to; that is no reason to stop.
            if version in in_use:
                raise
        else:
            # The same holds for a version of another trunk, left by an earlier build.
            if version in in_use or spec.trunk == trunk:
                versions[version] = HeadVersion(spec, record.dtype)
    loaded = tuple(version for version in entry.loaded if version in versions)
    return HeadVersions(versions, entry.served, loaded, entry.candidate, entry.previous, entry.split)


def _read_groups(
    repository: Path, manifest: Manifest, heads: Mapping[str, HeadVersions], notes: list[str]
) -> Iterator[GroupVersion]:
    for name, entry in sorted(manifest.models.items()):
        if is_group(name) and entry.versions:
            # A group that answers for no head may do so again after a rollback.
            version = entry.served or max(entry.versions)
            try:
                group = read_group(repository / name / str(version))
                _check_limb(group, heads, repository / name / str(version))
            except UserError as error:
                if entry.served is not None:
                    raise
                notes.append(f"{name} answers for no task and is left out: {error}")
                continue
            if group.trunk == manifest.trunk and group.name == name:
                yield GroupVersion(group, version)


def _check_limb(group: Group, heads: Mapping[str, HeadVersions], folder: Path) -> None:
    """Check that the limb in a group is that of the heads which it holds.

    Raises:
        UserError: It is another one.
    """
    if group.segment is None:
        return
    for task, member in group.heads.items():
        versions = heads[task].versions if task in heads else {}
        limb = versions[member.version].spec.limb_id if member.version in versions else None
        if limb is not None and limb.segment != group.segment.segment:
            raise UserError(
                f"{folder}: it holds {group.segment.name}, and {task} stands on {limb}: run build-repo again"
            )


def _read_tokenizer(repository: Path) -> pb.ModelConfig:
    path = repository / TOKENIZER / CONFIG_FILE
    try:
        config = text_format.Parse(read_regular(path, max_bytes=_MAX_CONFIG_BYTES, inside=repository), pb.ModelConfig())
        int(parameters_of(config)["max_length"])
    except (OSError, UnicodeDecodeError, text_format.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or broken ({error}): run build-repo again") from error
    return config
