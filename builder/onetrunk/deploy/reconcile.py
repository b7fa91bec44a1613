"""Comparing a server with the repository on disk, and making the server serve what the files say."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.admin import AdminClient
from onetrunk.deploy.fleet import reason_at
from onetrunk.deploy.proof import PROOF
from onetrunk.protocol.ensemble_info import read_ensemble_info
from onetrunk.protocol.errors import NotReady, OneTrunkError
from onetrunk.protocol.integrity import compare
from onetrunk.protocol.names import MULTITASK, ONETRUNK_PARAMETER, TOKENIZER, candidate_ensemble, head_name, is_part
from onetrunk.repository.configs import pinned_version
from onetrunk.repository.state import RepositoryState, changed_texts, read_state, required_manifest
from onetrunk.repository.transaction import is_decided

# A list of tasks waits no longer for what a server says beside it.
_LOOK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Difference:
    """Something that the server serves differently from what the files say.

    Attributes:
        model: The model.
        what: What differs, for a reader.
        remedy: The request that fixes it.
        kind: Missing parts are fixed first, then ensembles, then parts that nothing names.
    """

    model: str
    what: str
    remedy: Literal["load", "unload"]
    kind: Literal["missing", "ensemble", "extra"]


def differences(state: RepositoryState, server: AdminClient) -> list[Difference]:
    """Return everything that differs, in an order in which it can be fixed without a failing request.

    Raises:
        NotReady: The server does not answer.
    """
    loaded, expected = server.loaded_versions(), _expected_versions(state)
    found = []
    for part, versions in expected.items():
        if missing := versions - loaded.get(part, set()):
            found.append(Difference(part, f"version {_join(missing)} is not loaded", "load", "missing"))
    ensembles = [config for config, _ in state.ensembles]
    names = {config.name for config in ensembles} | expected.keys()
    # The ensembles of ended candidates go first: loading another ensemble reloads its parts, and all that names them.
    ended = {candidate_ensemble(task) for task in state.heads} - names
    for model in sorted(loaded):
        if model in ended:
            found.append(Difference(model, "is loaded, and its trial has ended", "unload", "ensemble"))
    for config in ensembles:
        if what := _ensemble_difference(config, server.config(config.name) if config.name in loaded else None):
            found.append(Difference(config.name, what, "load", "ensemble"))
    for model in sorted(loaded):
        if model not in names and is_part(model):
            found.append(Difference(model, "is loaded, but nothing names it", "unload", "extra"))
        elif extra := loaded[model] - expected.get(model, loaded[model]):
            found.append(Difference(model, f"version {_join(extra)} is still loaded", "load", "extra"))
    return found


@dataclass(frozen=True)
class ReplicaState:
    """What one of several servers serves.

    Attributes:
        address: Its address.
        serves: Task -> the version that it serves; None if it did not say.
        differences: What it serves differently from what the files say, or why it did not say, a line each.
    """

    address: str
    serves: Mapping[str, int] | None
    differences: tuple[str, ...] = ()


def replica_state(state: RepositoryState, server: AdminClient) -> ReplicaState:
    """Return what a server serves.

    Raises:
        NotReady: It does not answer.
    """
    serves = _served_versions(server)
    lines = [f"{difference.model} {difference.what}" for difference in differences(state, server)]
    return ReplicaState(server.url, serves, tuple(lines))


def server_state(state: RepositoryState, server: AdminClient) -> ReplicaState:
    """Return what a single server serves, and in one line how that differs from the files, or why it did not say.

    It raises nothing, and needs no admin key: without one, only the versions that are served are compared.
    """
    try:
        with server.within(_LOOK_TIMEOUT_S):
            serves = _served_versions(server)
            try:
                found = differences(state, server)
            except OneTrunkError:  # what is loaded is told only to whoever has the key, and to nobody while models load
                found = []
    except OneTrunkError as error:
        unknown = f"the server at {server.url} does not say what it serves ({reason_at(server.url, error)})"
        what = f"no server answers at {server.url}" if isinstance(error, NotReady) else unknown
        return ReplicaState(server.url, None, (f"{what}; this is what the files say",))
    files = {task: head.served for task, head in state.heads.items() if head.served is not None}
    other = [
        f"{task} {serves.get(task, 'none')}, the files say {files.get(task, 'none')}"
        for task in sorted(serves.keys() | files.keys())
        if serves.get(task) != files.get(task)
    ]
    if other:
        told = f"the server at {server.url} serves {'; '.join(other)}"
    elif found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        told = f"the server at {server.url} differs from the files ({found[0].model} {found[0].what}{more})"
    else:
        return ReplicaState(server.url, serves)
    return ReplicaState(server.url, serves, (f"{told}: run deploy-head --sync",))


def _served_versions(server: AdminClient) -> dict[str, int]:
    """Return task -> the version that a server serves; nothing if it has no ensemble that says so."""
    config = server.config(MULTITASK)
    text = config.parameters[ONETRUNK_PARAMETER].string_value if config is not None else ""
    try:
        return {task: info.version for task, info in read_ensemble_info(text).tasks.items()} if text else {}
    except ValueError:
        return {}


def silent_replica(address: str, error: Exception) -> ReplicaState:
    """Return the state of a server that does not say what it serves.

    Args:
        address: Its address.
        error: What went wrong.
    """
    return ReplicaState(address, None, (reason_at(address, error),))


def reconcile(state: RepositoryState, server: AdminClient) -> list[Difference]:
    """Make the server serve what the files say, and return what differed.

    Raises:
        OneTrunkError: The server cannot load something.
    """
    done = []
    listed, expected = set(server.loaded_versions()), _expected_versions(state)
    for model in sorted(server.running_models() - listed):
        # A model whose folder is gone runs on and is not listed: after a build that removed it, or the ensemble of a
        # proof whose deployer died.
        if model == PROOF or (is_part(model) and model not in expected):
            with contextlib.suppress(OneTrunkError):
                server.unload(model)
    # Ensembles are loaded after what they name, and before what they named is unloaded, so that no request in between
    # misses a part.
    for kind in ("missing", "ensemble", "extra"):
        for difference in differences(state, server):
            if difference.kind == kind:
                if difference.remedy == "load":
                    server.load(difference.model)
                else:
                    server.unload(difference.model)
                done.append(difference)
    return done


def load_rewritten(state: RepositoryState, server: AdminClient) -> None:
    """Make the server load the parts whose files are others than when it loaded them, by versions of equal number.

    A store that went back to an older release gives numbers again, and no config tells two such versions apart. Triton
    loads a model again if its files are newer, and otherwise ignores the request.

    Raises:
        OneTrunkError: The server cannot load something.
    """
    for model in sorted(_expected_versions(state)):
        server.load(model)


def _expected_versions(state: RepositoryState) -> dict[str, set[int]]:
    """Return part -> the versions that a server of this state holds."""
    parts = {TOKENIZER: {pinned_version(state.tokenizer)}}
    parts |= {segment.name: {version} for segment, version in state.segments_in_use.items()}
    parts |= {group.group.name: {group.version} for group in state.groups_in_use}
    parts |= {head_name(task): set(state.heads[task].loaded) for task in state.own_models}
    return parts


def _ensemble_difference(expected: pb.ModelConfig, found: pb.ModelConfig | None) -> str | None:
    if found is None:
        return "is not loaded"
    pins = {step.model_name: step.model_version for step in expected.ensemble_scheduling.step}
    loaded = {step.model_name: step.model_version for step in found.ensemble_scheduling.step}
    if pins != loaded:
        changed = sorted(name for name in pins.keys() | loaded.keys() if pins.get(name) != loaded.get(name))
        of = [f"{name} {loaded.get(name, 'none')} instead of {pins.get(name, 'none')}" for name in changed]
        return f"serves {', '.join(of)}"
    if found.ensemble_scheduling != expected.ensemble_scheduling:
        return "chains its parts differently"
    if found.parameters[ONETRUNK_PARAMETER].string_value != expected.parameters[ONETRUNK_PARAMETER].string_value:
        return "describes its tasks differently"
    return None


def _join(versions: set[int]) -> str:
    return ", ".join(map(str, sorted(versions)))


def verify(repository: Path, server: AdminClient | None) -> list[str]:
    """Return what manifest, disk and server disagree on, a line each; nothing if they agree.

    Args:
        repository: The repository's folder.
        server: The server on it; None compares manifest and disk alone.

    Raises:
        UserError: There is no repository, or it cannot be read at all.
        NotReady: The server does not answer.
    """
    found = []
    if is_decided(repository):
        found.append("a transaction was interrupted: the next deployment or build-repo completes it")
    manifest, state = required_manifest(repository), read_state(repository)
    for name, entry in sorted(manifest.models.items()):
        expected = {file: [digest] for file, digest in entry.all_files.items()}
        found += [f"{file}: {fault}" for file, fault in compare(repository, expected).items()]
        found += _unknown_versions(repository, name, set(entry.versions))
    for text in changed_texts(repository, state.texts):
        if (repository / text).is_file() and not any(line.startswith(f"{text}:") for line in found):
            found.append(f"{text}: is not what the manifest says")
    for folder in sorted(repository.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in manifest.models:
            found.append(f"{folder.name}/: is not in the manifest")
    if server is not None:
        found += [f"server: {difference.model} {difference.what}" for difference in differences(state, server)]
    return found


def _unknown_versions(repository: Path, model: str, known: set[int]) -> list[str]:
    if not known:  # an ensemble
        return []
    versions = {int(path.name) for path in (repository / model).glob("*") if path.name.isdecimal()}
    return [f"{model}/{version}/: is not in the manifest" for version in sorted(versions - known)]
