"""Checks a model repository before Triton reads it, since Triton's messages about a user's mistakes fill pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from onetrunk.protocol.commit import read_commit
from onetrunk.protocol.ensemble_info import EnsembleInfo, TaskInfo, read_ensemble_info
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.integrity import check_files, remove_byte_code
from onetrunk.protocol.names import CONFIG_FILE, ENSEMBLES, ONETRUNK_PARAMETER
from onetrunk.protocol.reading import read_regular
from onetrunk.protocol.signature import Verifier

# An ensemble of as many tasks as a repository can have, with their labels, takes less than a tenth of it.
MAX_CONFIG_BYTES = 64 * 2**20
BUILD_HINT = "run build-repo"
# Servers of a fleet start together, and each makes byte code of the same models once.
_CHECKS = 10


@dataclass(frozen=True)
class Repository:
    """A repository that looks complete. Only Triton can find out whether its models work.

    Attributes:
        path: Its folder.
        tasks: Task -> its description in the ensembles.
        configs: The configs of the models that will be loaded: the ensembles and their parts.
        max_length: The length in tokens of the longest texts.
    """

    path: Path
    tasks: Mapping[str, TaskInfo]
    configs: Mapping[str, model_config_pb2.ModelConfig]
    max_length: int

    @property
    def models(self) -> frozenset[str]:
        """The models that will be loaded."""
        return frozenset(self.configs)


def read_repository(path: Path, *, verify: bool = False, verifier: Verifier | None = None) -> Repository:
    """Read the ensembles and check that their parts are there.

    Args:
        path: The repository's folder.
        verify: Whether all files that are loaded must be as the manifest says.
        verifier: The key by which the manifest must be signed, in which case files are compared too; None for none.

    Raises:
        UserError: Something is missing or broken, is not as the manifest says, or is not signed.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give a model repository, or {BUILD_HINT} first")
    interrupted = read_commit(path)
    if interrupted is not None and not interrupted.loadable:
        raise UserError(
            f"{path}: a build or a pull was interrupted while it was publishing: run the same command again "
            "(build-repo or pull-repo), which completes it"
        )
    if not any(path.glob(f"*/{CONFIG_FILE}")):
        raise UserError(f"{path} holds no models: {BUILD_HINT} first")
    ensembles = {name: read_config(path, name, f"the ensemble {name}") for name in ENSEMBLES}
    configs = dict(ensembles)
    for name, ensemble in ensembles.items():
        for step in ensemble.ensemble_scheduling.step:
            configs[step.model_name] = read_part(path, name, step.model_name, step.model_version)
    if verify or verifier is not None:
        _check_files(path, configs, verifier)
    about, _ = (read_about(path, ensemble) for ensemble in ensembles.values())
    return Repository(path, about.tasks, configs, about.max_length)


def _check_files(path: Path, configs: Collection[str], verifier: Verifier | None) -> None:
    """Check the files without their byte code, which another server that starts on them may make at the same time."""
    remove_byte_code(path, configs)
    for _ in range(_CHECKS - 1):
        try:
            check_files(path, configs, verifier)
            return
        except UserError:
            if not remove_byte_code(path, configs):
                raise
    check_files(path, configs, verifier)


def read_config(path: Path, model: str, what: str) -> model_config_pb2.ModelConfig:
    """Parse a model's config.pbtxt.

    Args:
        path: The repository.
        model: The model.
        what: What the model is to the user, for messages.

    Raises:
        UserError: The file is missing or not a Triton config.
    """
    file = path / model / CONFIG_FILE
    try:
        content = read_regular(file, max_bytes=MAX_CONFIG_BYTES, inside=path)
        return text_format.Parse(content.decode(), model_config_pb2.ModelConfig())
    except FileNotFoundError:
        raise UserError(f"{path} lacks {what} ({model}/{CONFIG_FILE}): {BUILD_HINT} again") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a Triton config (line:column : what) {error}: {BUILD_HINT} again") from None


def read_part(path: Path, ensemble: str, model: str, version: int) -> model_config_pb2.ModelConfig:
    """Return the config of a part of an ensemble, and check that it has the version that the ensemble pins.

    Args:
        path: The repository.
        ensemble: The ensemble.
        model: The part.
        version: The version that is pinned; -1 for none.

    Raises:
        UserError: The config or the version is missing.
    """
    config = read_config(path, model, f"{model}, a part of {ensemble}")
    folder = path / model / str(version)
    if version > 0 and not (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{path}: {ensemble} pins version {version} of {model}, which is missing: {BUILD_HINT} again")
    return config


def read_about(path: Path, ensemble: model_config_pb2.ModelConfig) -> EnsembleInfo:
    """Read what an ensemble says about itself and its tasks.

    Raises:
        UserError: It says nothing that can be read, or has no tasks.
    """
    try:
        about = read_ensemble_info(ensemble.parameters[ONETRUNK_PARAMETER].string_value)
    except ValueError as error:
        raise UserError(
            f"{path}: {ensemble.name} has no readable parameter `{ONETRUNK_PARAMETER}`, from which clients learn the "
            f"tasks ({error}): {BUILD_HINT} again"
        ) from None
    if not about.tasks:
        raise UserError(f"{path}: {ensemble.name} has no tasks: {BUILD_HINT} with at least one")
    return about
