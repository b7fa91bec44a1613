"""A server that starts follows the files: what was switched while it was starting, and candidates on trial.

Triton reads the files when it starts, and then serves both ensembles as they were at that moment. A deployment may
switch them before it is ready, and so before any deployment can see it; and it does not load the ensembles of
candidates by itself. So whoever starts a Triton has it compared with the files when it is ready, and once more when
every deployment that began earlier has had the time to find it. A server that has run for longer follows nobody: then
its deployments prove what they switch to.
"""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.admin import AdminClient
from onetrunk.protocol.commit import read_commit
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.integrity import compare
from onetrunk.protocol.manifest import Manifest, read_manifest
from onetrunk.protocol.names import ENSEMBLES, ONETRUNK_PARAMETER, is_candidate_ensemble
from onetrunk.protocol.signature import Verifier
from onetrunk.serving.repository import read_config

FOLLOW_AFTER_S = (0.0, 60.0)
"""When a Triton is compared with the files, in seconds after it is ready; names tell of it within a minute."""


def follow(repository: Path, server: AdminClient, verifier: Verifier | None = None) -> list[str]:
    """Make a Triton serve what the files say, as far as ensembles are concerned.

    Args:
        repository: The repository's folder. One without a manifest, or in the middle of a change, is left alone.
        server: The Triton, which serves both ensembles in some version.
        verifier: The key by which the manifest must be signed; None for no signature.

    Returns:
        The models that were loaded.

    Raises:
        UserError: The manifest is not signed by the key, or a file that would be loaded is not as it says.
        OneTrunkError: Triton does not answer, or cannot load one.
    """

    def check(content: bytes) -> None:
        if verifier is not None:
            verifier.check(repository, content)

    manifest = read_manifest(repository, check)
    if manifest is None or read_commit(repository) is not None:
        return []
    loaded, done = server.loaded_versions(), list[str]()
    for name in [*ENSEMBLES, *filter(is_candidate_ensemble, sorted(manifest.models))]:
        expected = read_config(repository, name, f"the ensemble {name}")
        if _is_served(expected, server.config(name) if name in loaded else None):
            continue
        steps = expected.ensemble_scheduling.step
        _check_files(repository, manifest, [name, *(step.model_name for step in steps)])
        for step in steps:
            if step.model_version > 0 and step.model_version not in loaded.get(step.model_name, set()):
                server.load(step.model_name)
                done.append(step.model_name)
        server.load(name)
        done.append(name)
    return done


def _is_served(expected: pb.ModelConfig, found: pb.ModelConfig | None) -> bool:
    return (
        found is not None
        and found.ensemble_scheduling == expected.ensemble_scheduling
        and found.parameters[ONETRUNK_PARAMETER].string_value == expected.parameters[ONETRUNK_PARAMETER].string_value
    )


def _check_files(repository: Path, manifest: Manifest, models: list[str]) -> None:
    entries = [manifest.models[name] for name in models if name in manifest.models]
    expected = {file: {digest} for entry in entries for file, digest in entry.files.items()}
    for entry in entries:
        for number in entry.loaded:
            if number in entry.versions:
                expected |= {file: {digest} for file, digest in entry.versions[number].files.items()}
    if faults := compare(repository, expected):
        file, fault = next(iter(faults.items()))
        raise UserError(f"{repository}: {file} {fault}: run build-repo again, or deploy-head --sync")
