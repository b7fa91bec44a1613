"""The frozen trunk: an encoder that is never trained, and its identity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor, nn

from onetrunk.nn.checkpoint import CONFIG, Checkpoint, open_checkpoint
from onetrunk.nn.encoder import Encoder
from onetrunk.nn.families import FAMILIES, find_family
from onetrunk.nn.trunk_source import find_trunk
from onetrunk.nn.trunk_tokenizer import check_agreement, check_ids, tokenizer_files
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import LimbId
from onetrunk.protocol.reading import sha256_file
from onetrunk.tasks.head_spec import DEFAULT_LIMBS
from onetrunk.toml_file import explain

Starts: TypeAlias = Mapping[tuple[str, str], Mapping[str, Tensor]]

_TRIED = ("A text.", "Another one.")


class Trunk(nn.Module):
    """A pre-trained encoder that is shared by all heads and never trained.

    It stays in evaluation mode and none of its parameters has a gradient, whatever is done to a module that holds it.

    Attributes:
        encoder: The adapter of the encoder.
        identity: Family, shape and a hash over configuration, tokenizer and weights, such as
            ``bert-6x384@0123456789ab``. A head fits the trunk with the identity that it was trained on, and no other.
        folder: The folder of its files.
        tokenizer_file: Its tokenizer.json: in the folder, or made of the vocabulary there.
        source: Where they came from, if from a hub: ``owner/name@commit``, whatever revision was asked for.
        notes: What a user should know about how it was loaded, such as parts of the checkpoint that were left out.
        root: The trunk of which this is a branch, with a limb's layers in place of its own; itself if it is none.
        limb: The identity of that limb; None for the trunk itself.
        limbs: The folders in which limbs are looked for that heads name.
        starts: Task and the hash over it and its data -> the weights that its one-layer head on the limb starts from,
            which it had when the limb was trained. Any other head starts from the trunk's own layer.
        family: Task that the limb was trained on -> the hash over it and its data then.
    """

    def __init__(
        self,
        encoder: Encoder,
        identity: str,
        folder: Path,
        tokenizer_file: Path,
        source: str | None = None,
        notes: tuple[str, ...] = (),
        root: Trunk | None = None,
        limb: LimbId | None = None,
        starts: Starts | None = None,
        family: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.embeddings = encoder.embeddings
        self.layers = encoder.layers
        self.shared = encoder.shared
        self.identity = identity
        self.folder = folder
        self.tokenizer_file = tokenizer_file
        self.source = source
        self.notes = notes
        # In a list, so that it is no part of this module.
        self._root = [root] if root is not None else [self]
        self.limb = limb
        self.limbs: tuple[Path, ...] = (DEFAULT_LIMBS,)
        self.starts: Starts = {} if starts is None else starts  # not asked whether it is empty: it is read late
        self.family: Mapping[str, str] = family or {}
        self._branches: dict[LimbId, Trunk] = {}
        self.requires_grad_(False)
        self.eval()

    @property
    def root(self) -> Trunk:
        """See the class."""
        return self._root[0]

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
    def reads_types(self) -> bool:
        """Whether it tells the texts of a pair apart by token types."""
        return self.encoder.reads_types

    @property
    def pad_token_id(self) -> int:
        """The id that pads short rows."""
        return self.encoder.pad_token_id

    def train(self, mode: bool = True) -> Trunk:
        """Stay in evaluation mode: a frozen trunk has no dropout."""
        return super().train(False)

    def check_tap(self, tap: int, *, above: int = 0) -> None:
        """Check that the trunk has a tap. A branch has one tap that is not its root's: above its limb.

        Args:
            tap: The tap.
            above: The least number of layers that are needed above it.

        Raises:
            UserError: It has no such tap, or not so many layers above it.
        """
        if self.limb is not None and tap != self.limb.stop:
            raise UserError(f"tap {tap} is not on limb {self.limb}: heads on it stand on tap {self.limb.stop}")
        most = self.depth - above
        if not 0 <= tap <= self.depth:
            raise UserError(f"tap {tap} is not on this trunk of {self.depth} layers: give 0 to {most}")
        if tap > most:
            few = "no layer" if above == 1 else f"fewer than {above} layers"
            raise UserError(f"tap {tap} has {few} above it on this trunk: give 0 to {most}")

    def branch(self, limb: LimbId | None, places: Sequence[Path] = ()) -> Trunk:
        """Return the trunk as heads on a limb see it: the limb's layers in place of its own.

        Args:
            limb: The limb's identity; None for the trunk itself.
            places: Where the limb is looked for besides the trunk's ``limbs``.

        Raises:
            UserError: There is no such limb, or it does not fit the trunk.
        """
        from onetrunk.nn.limb import find_limb

        if limb is None:
            return self.root
        if limb == self.limb:
            return self
        if limb not in self.root._branches:
            self.root._branches[limb] = find_limb([*self.root.limbs, *places], limb).branch(self.root)
        return self.root._branches[limb]

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
        context = self.encoder.shared.prepare(attention_mask, hidden_state)
        for layer in self.layers[start:stop]:
            hidden_state = self.encoder.run_layer(layer, hidden_state, context)
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
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def load_trunk(
    source: str | Path | None = None, progress: ProgressCallback = silent, *, cache: Path | None = None
) -> Trunk:
    """Load a trunk from its files.

    Args:
        source: A folder with config.json, safetensors and tokenizer.json; a name of ``onetrunk.nn.trunk_source.NAMES``;
            or a hub id: ``owner/name``, or ``owner/name@revision`` for a branch, a tag or a commit. None stands for the
            default trunk, all-MiniLM-L6-v2, from the package that carries its weights.
        progress: Called while files are fetched.
        cache: The root folder of all caches, for what is fetched or made of its files; None is the user's own.

    Raises:
        UserError: There is no such folder, name or hub id, a file is missing or broken, or the encoder's family is
            unknown.
        OneTrunkError: Files could not be fetched or written.
    """
    found = find_trunk(source, progress, cache=cache)
    checkpoint, tokenizer = open_checkpoint(found.folder), tokenizer_files(found.folder, cache=cache)
    family, parameters = _family(checkpoint)
    checkpoint.check_size(parameters)
    encoder = _encoder(family, checkpoint)
    check_ids(tokenizer.file, encoder.vocab_size, encoder.token_types if encoder.reads_types else None)
    disagreement = check_agreement(found.folder, tokenizer.file)
    left_out = _load_weights(encoder, checkpoint, parameters)
    # Once the sizes are known to be right. The hashes serve for what is published of a known model, too.
    hashes = {file.name: sha256_file(file) for file in (found.folder / CONFIG, *tokenizer.sources, *checkpoint.weights)}
    found.check(hashes)
    notes = (found.note, tokenizer.note, disagreement, left_out)
    trunk = Trunk(
        encoder,
        identity=f"{family.family}-{len(encoder.layers)}x{encoder.width}@{_digest(hashes)[:12]}",
        folder=found.folder,
        tokenizer_file=tokenizer.file,
        source=found.commit,
        notes=tuple(note for note in notes if note is not None),
    )
    _try(trunk)
    return trunk


def _family(checkpoint: Checkpoint) -> tuple[type[Encoder], int]:
    """Return the encoder's family, and the number of parameters that it has by config.json.

    Raises:
        UserError: The family is unknown, or a number is none that an encoder can have.
    """
    path, config = checkpoint.folder / CONFIG, checkpoint.config
    name = config.get("model_type")
    if name is None:
        raise UserError(f"{path} has no model_type, the encoder's family; allowed are {', '.join(FAMILIES)}")
    if name not in FAMILIES:
        raise UserError(f"{path}: model_type is {name!r:.40}; allowed are {', '.join(FAMILIES)}")
    family = find_family(name)
    try:
        return family, family.count_parameters(config)
    except ValidationError as error:
        raise UserError(explain(path, error.errors()[0])) from error


def _encoder(family: type[Encoder], checkpoint: Checkpoint) -> Encoder:
    try:
        return family.from_config(checkpoint.config)
    except Exception as error:  # transformers raises many types for values that do not go together
        raise UserError(
            f"{checkpoint.folder / CONFIG}: no {family.family} encoder can be made of it: {_reason(error)}"
        ) from error


def _load_weights(encoder: Encoder, checkpoint: Checkpoint, parameters: int) -> str | None:
    """Load the weights; return a note on what of the checkpoint was left out.

    Raises:
        UserError: They do not fit the encoder, or cannot be read.
    """
    folder = checkpoint.folder
    try:
        names = encoder.load(checkpoint.read_weights(parameters))
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit config.json or cannot be read: {error}") from error
    except KeyError as error:
        raise UserError(
            f"{folder}: the weights lack {error.args[0]}: is this a {encoder.family} checkpoint?"
        ) from error
    # Most encoders are published with the pooler of their pre-training, which nobody expects to be used.
    heads = [name for name in names if "pooler." not in name]
    if not heads:
        return None
    more = f" and {len(heads) - 3} more" if len(heads) > 3 else ""
    return f"{folder}: left out what is no part of the encoder: {', '.join(heads[:3])}{more}"


def _try(trunk: Trunk) -> None:
    """Run a text and a pair once, padded to one length: numbers that do not go together are told here, not in training.

    Raises:
        UserError: They cannot be computed, or what comes out are no numbers.
    """
    tokenizer = trunk.tokenizer()
    rows = [tokenizer.encode(_TRIED[0]), tokenizer.encode(*_TRIED)]
    length = min(max(len(row.ids) for row in rows), trunk.max_positions)
    fields = ((row.ids, row.type_ids, [1] * len(row.ids)) for row in rows)
    padding = (trunk.pad_token_id, 0, 0)
    ids, types, mask = (
        torch.tensor([(list(row) + [pad] * length)[:length] for row in both])
        for both, pad in zip(zip(*fields, strict=True), padding, strict=True)
    )
    try:
        last = trunk.states(ids, types, mask, [trunk.depth])[trunk.depth]
        whole = bool(torch.isfinite(trunk.shared.close(last)[mask.bool()]).all())
    except Exception as error:  # torch and transformers raise many types
        raise UserError(
            f"{trunk.folder}: config.json, weights and tokenizer do not go together: the encoder cannot read a text: "
            f"{_reason(error)}"
        ) from error
    if not whole:
        raise UserError(f"{trunk.folder}: the states of a text are not finite: are the weights damaged?")


def _reason(error: Exception) -> str:
    """Return an error's first line, and the second if the first announces it, as those of transformers' checks do."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{' '.join([first, *more[:1]]) if first.endswith(':') else first:.200}"


def _digest(hashes: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, sha256 in hashes.items():
        digest.update(f"{name}\0".encode())
        digest.update(bytes.fromhex(sha256))
    return digest.hexdigest()
