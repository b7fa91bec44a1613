"""A checkpoint: the configuration and the weights in a Hugging Face folder, read once their sizes were checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onetrunk.nn.tensor_file import Limits, map_tensors
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import MAX_LAYERS
from onetrunk.protocol.reading import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_CONFIG_BYTES = 2**20
_MAX_LABELS = 100_000
# A layer of BERT's form has 16 tensors. Each has a line of about 100 bytes in an index.
_MAX_TENSORS = 64 * MAX_LAYERS
_MAX_INDEX_BYTES = 1024 * _MAX_TENSORS
# Of at most 8 bytes each, twice as many numbers as the encoder has: a checkpoint may hold the pre-training's head too.
_BYTES_A_PARAMETER = 16
_OTHER_BYTES = 2**26


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint.

    Attributes:
        folder: The folder that they are in.
        config: The parsed config.json.
        weights: The safetensors files: one, or the shards that the index names.
        index: Tensor -> the name of its shard; empty for one file.
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    index: dict[str, str]

    def check_size(self, parameters: int) -> None:
        """Check that the weights and the memory can be of the size that config.json asks for.

        Args:
            parameters: The number of the encoder's parameters.

        Raises:
            UserError: They cannot.
        """
        stored = sum(file.stat().st_size for file in self.weights)
        if parameters > stored:  # no format stores a parameter in less than a byte
            raise UserError(
                f"{self.folder}: the weights do not fit config.json: it describes {parameters:,} parameters, and the "
                f"files have {stored:,} bytes"
            )
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 4 * parameters > memory:
            raise UserError(
                f"{self.folder}: config.json describes {parameters:,} parameters, which take "
                f"{4 * parameters / 1e9:.0f} GB; this machine has {memory / 1e9:.0f} GB"
            )

    def read_weights(self, parameters: int) -> dict[str, Tensor]:
        """Map the weights into memory.

        Args:
            parameters: The number of the encoder's parameters, which bounds the files.

        Returns:
            Name -> tensor, as stored.

        Raises:
            UserError: A file is no safetensors file or too large, or the shards do not hold what the index says.
            FileNotFoundError: A file was removed in the meantime.
        """
        limits = Limits(_MAX_TENSORS, _BYTES_A_PARAMETER * parameters + _OTHER_BYTES)
        tensors: dict[str, Tensor] = {}
        shard_of: dict[str, str] = {}
        for file in self.weights:
            for name, tensor in map_tensors(file, limits).items():
                if name in tensors:
                    raise UserError(
                        f"{self.folder}: {name} is in {shard_of[name]} and in {file.name}; each tensor belongs in one "
                        "shard: save the model again"
                    )
                tensors[name], shard_of[name] = tensor, file.name
        for name, shard in self.index.items():
            if shard_of.get(name) != shard:
                raise UserError(
                    f"{self.folder / INDEX} says that {name:.100} is in {shard}, which does not have it: the shards "
                    "are of another model, or of another saving of it"
                )
        return tensors


def open_checkpoint(folder: Path) -> Checkpoint:
    """Find the files of a checkpoint and read its configuration; the weights are not read yet.

    Args:
        folder: A Hugging Face folder.

    Raises:
        UserError: A file is missing, broken or too large, or the weights are in another format than safetensors.
    """
    config = _read_config(folder)
    index = {} if (folder / WEIGHTS).exists() else read_index(folder)
    names = sorted(set(index.values())) or [WEIGHTS]
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / INDEX} names {name}, which is not in the folder: copy all shards")
    return Checkpoint(folder, config, tuple(folder / name for name in names), index)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG, max_bytes=_MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json in it; a trunk is a Hugging Face folder of an encoder") from None
    except ValueError as error:
        raise UserError(f"{folder}/config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not a JSON object")
    # transformers makes a name for each label, which an encoder has no use for, wherever it reads the file.
    labels = config.get("num_labels", 0)
    if type(labels) is not int or not 0 <= labels <= _MAX_LABELS:
        raise UserError(f"{folder}/config.json: num_labels is {labels!r:.40}; allowed are 0 to {_MAX_LABELS:,}")
    if config.get("transformers_weights") is not None:
        raise UserError(
            f"{folder}/config.json: transformers_weights names a file of weights; allowed are {WEIGHTS} and {INDEX}: "
            "save the model again"
        )
    return config


def read_index(folder: Path) -> dict[str, str]:
    """Read the index of a checkpoint in shards. It alone says which files belong to the checkpoint.

    Args:
        folder: A Hugging Face folder.

    Returns:
        Tensor -> the name of its shard, which is a plain name.

    Raises:
        UserError: There is none, or it is not an index.
    """
    path = folder / INDEX
    try:
        content = read_json(path, max_bytes=_MAX_INDEX_BYTES)
    except FileNotFoundError:
        raise UserError(_no_weights(folder)) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path}: found no weight_map, which says for each tensor in which file it is")
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise UserError(
                f"{path}: {name:.100} is in {str(shard)!r:.100}; allowed are names of .safetensors files in the folder"
            )
    return places


def _is_plain(name: str) -> bool:
    return name.endswith(".safetensors") and name.isprintable() and "/" not in name and not name.startswith(".")


def _no_weights(folder: Path) -> str:
    if any(folder.glob("model-*-of-*.safetensors")):
        return f"{folder}: there are shards, but no {INDEX}, which says what is in them: copy that file too"
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if pickles:
        # A pickle can run code when it is read.
        return (
            f"{folder}: no {WEIGHTS} in it, and {pickles[0]:.100} is not read, as it may hold code; if you trust it, "
            f"convert it: python -c \"from transformers import AutoModel as M; m = '{folder}'; "
            'M.from_pretrained(m).save_pretrained(m)"'
        )
    return f"{folder}: no {WEIGHTS} in it; other weight formats are not read"
