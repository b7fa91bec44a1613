"""Whether a server serves what the repository on disk says, and making it so."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.admin import AdminClient
from onetrunk.deploy.proof import PROOF
from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import ONETRUNK_PARAMETER, TOKENIZER, candidate_ensemble, head_name
from onetrunk.repository.configs import pinned_version
from onetrunk.repository.contents import Contents

_PARTS = ("head_", "heads_", "trunk_")


@dataclass(frozen=True)
class Difference:
    """Something that the server serves otherwise than the files say.

    Attributes:
        model: the model.
        what: what differs, for a reader.
        remedy: what puts it right.
        kind: parts that are missing come first, then ensembles, then parts that nothing names any more.
    """

    model: str
    what: str
    remedy: Literal["load", "unload"]
    kind: Literal["missing", "ensemble", "extra"]


def expected_versions(contents: Contents) -> dict[str, set[int]]:
    """Part -> the versions that a server of these contents holds."""
    parts = {TOKENIZER: {pinned_version(contents.tokenizer)}}
    parts |= {segment.name: {version} for segment, version in contents.segments.items()}
    parts |= {group.group.name: {group.version} for group in contents.groups_in_use}
    parts |= {head_name(task): set(contents.heads[task].loaded) for task in contents.own_models}
    return parts


def differences(contents: Contents, server: AdminClient) -> list[Difference]:
    """All that differs, in the order in which it can be put right without a request that fails.

    Raises:
        NotReady: nobody answers.
    """
    loaded, expected = server.loaded_versions(), expected_versions(contents)
    found = []
    for part, versions in expected.items():
        if missing := versions - loaded.get(part, set()):
            found.append(Difference(part, f"version {_numbers(missing)} is not loaded", "load", "missing"))
    ensembles = [config for config, _ in contents.ensembles]
    names = {config.name for config in ensembles} | expected.keys()
    # A candidate's ensemble that is gone goes first: loading another one loads its parts anew, and all that names them.
    ended = {candidate_ensemble(task) for task in contents.heads} - names
    for model in sorted(loaded):
        if model in ended:
            found.append(Difference(model, "is loaded, and its trial has ended", "unload", "ensemble"))
    for config in ensembles:
        if what := _differs(config, server.config(config.name) if config.name in loaded else None):
            found.append(Difference(config.name, what, "load", "ensemble"))
    for model in sorted(loaded):
        if model not in names and model.startswith(_PARTS):
            found.append(Difference(model, "is loaded, and nothing names it any more", "unload", "extra"))
        elif extra := loaded[model] - expected.get(model, loaded[model]):
            found.append(Difference(model, f"version {_numbers(extra)} is still loaded", "load", "extra"))
    return found


def synchronise(contents: Contents, server: AdminClient) -> list[Difference]:
    """Makes the server serve what the files say; gives what differed.

    Raises:
        OneTrunkError: the server cannot load something.
    """
    done = []
    listed, expected = set(server.loaded_versions()), expected_versions(contents)
    for model in sorted(server.running_models() - listed):
        # Without a folder a model is not listed any more, and runs on: as after a build that removed it, or the
        # ensemble of a proof whose deployer died.
        if model == PROOF or (model.startswith(_PARTS) and model not in expected):
            with contextlib.suppress(OneTrunkError):
                server.unload(model)
    # Ensembles come after what they name and before what they named: so nothing is missed by a request in between.
    for kind in ("missing", "ensemble", "extra"):
        for difference in differences(contents, server):
            if difference.kind == kind:
                if difference.remedy == "load":
                    server.load(difference.model)
                else:
                    server.unload(difference.model)
                done.append(difference)
    return done


def _differs(expected: pb.ModelConfig, found: pb.ModelConfig | None) -> str | None:
    if found is None:
        return "is not loaded"
    pins = {step.model_name: step.model_version for step in expected.ensemble_scheduling.step}
    loaded = {step.model_name: step.model_version for step in found.ensemble_scheduling.step}
    if pins != loaded:
        changed = sorted(name for name in pins.keys() | loaded.keys() if pins.get(name) != loaded.get(name))
        of = [f"{name} {loaded.get(name, 'none')} instead of {pins.get(name, 'none')}" for name in changed]
        return f"serves {', '.join(of)}"
    if found.ensemble_scheduling != expected.ensemble_scheduling:
        return "chains its parts in another way"
    if found.parameters[ONETRUNK_PARAMETER].string_value != expected.parameters[ONETRUNK_PARAMETER].string_value:
        return "says something else about its tasks"
    return None


def _numbers(versions: set[int]) -> str:
    return ", ".join(map(str, sorted(versions)))
