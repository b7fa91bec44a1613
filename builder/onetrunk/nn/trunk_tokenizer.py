"""A trunk's tokenizer: its files, the conversion of a bare vocabulary, and what is checked before it is used."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from onetrunk.files import atomic_write_text, cache_root
from onetrunk.nn.checkpoint import CONFIG
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular, read_regular, sha256_file

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
VOCABULARIES = (("vocab.txt",), ("vocab.json", "merges.txt"))
"""The files that a tokenizer of before tokenizer.json consists of, a family after the other."""

# What transformers reads beside a vocabulary.
_SETTINGS = (SETTINGS, "special_tokens_map.json", "added_tokens.json")
FILES = (TOKENIZER, *(name for names in VOCABULARIES for name in names), *_SETTINGS)
"""All that a folder may have for its tokenizer."""

# The largest vocabularies, of a quarter of a million pieces, take 17 MB.
_MAX_BYTES = 2**27

_TEXTS = 200
_PIECES = """
the quick Brown fox JUMPS over naïve café Ångström ÉCOLE straße İstanbul don't it's we'll O'Neill 3.14 1,000 50% $9.99
e-mail user@example.com https://example.com/a?b=c C++ #tag under_score 東京 日本語テスト 안녕하세요 привет мир Ελλάδα
مرحبا नमस्ते 👍 👩‍👩‍👧 ☃️ … — “quoted” ﬁne ½ ² e\u0301 \u00ad \u200b unbelievably antidisestablishment
"""
_BLANKS = (" ", " ", " ", " ", "  ", "", "\t", "\n", "\u00a0", "\u3000")


@dataclass(frozen=True)
class TokenizerFiles:
    """Where a tokenizer is.

    Attributes:
        file: The tokenizer.json, in the trunk's folder or made of a vocabulary.
        sources: The files of the trunk's folder that decide what it does. They are part of the trunk's identity.
        note: What a user should know; None if the folder has a tokenizer.json.
    """

    file: Path
    sources: tuple[Path, ...]
    note: str | None = None


def tokenizer_files(folder: Path, *, cache: Path | None = None) -> TokenizerFiles:
    """Find a folder's tokenizer; a vocabulary without tokenizer.json is converted by `transformers`, into the cache.

    Args:
        folder: A Hugging Face folder.
        cache: The root folder of all caches; None is the user's own.

    Raises:
        UserError: There is neither, or it cannot be converted.
        OneTrunkError: The cache cannot be written.
    """
    if (folder / TOKENIZER).exists():
        return TokenizerFiles(folder / TOKENIZER, (folder / TOKENIZER,))
    vocabulary = next((names for names in VOCABULARIES if all((folder / name).exists() for name in names)), None)
    if vocabulary is None:
        raise UserError(
            f"{folder}: no tokenizer.json in it, and no vocab.txt or vocab.json with merges.txt to make one of; save "
            "the tokenizer in its fast form first"
        )
    _check_files(folder)
    sources = tuple(folder / name for name in (*vocabulary, *_SETTINGS) if (folder / name).exists())
    made = cache_root(cache) / "tokenizers" / f"{_conversion_key(folder, sources)}.json"
    if not _is_tokenizer(made):
        atomic_write_text(made, _convert(folder, vocabulary))
    return TokenizerFiles(made, sources, f"{folder}: no tokenizer.json in it: made of {vocabulary[0]}, {made}")


def _is_tokenizer(file: Path) -> bool:
    try:
        return file.is_file() and bool(Tokenizer.from_file(str(file)))
    except Exception:  # tokenizers raises bare Exception for a broken file
        return False


def check_ids(file: Path, vocab_size: int, token_types: int | None) -> None:
    """Check that every id of a tokenizer has an embedding, those of its special tokens and its token types included.

    Args:
        file: The tokenizer.json.
        vocab_size: The number of the trunk's token embeddings.
        token_types: The number of its embeddings of token types; None if it has no use for types.

    Raises:
        UserError: One has none, or the file is broken.
    """
    try:
        tokenizer = Tokenizer.from_str(read_regular(file, max_bytes=_MAX_BYTES).decode())
        used = [tokenizer.encode("a"), tokenizer.encode("a", "b")]  # special tokens may differ
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise UserError(f"{file} is broken: {_reason(error)}") from error
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    greatest = max([*pieces.values(), *(number for one in used for number in one.ids)], default=0)
    if greatest >= vocab_size:
        piece = next((piece for piece, number in pieces.items() if number == greatest), "a special token")
        raise UserError(
            f"{file}: found id {greatest} ({piece!r:.40}), but the trunk has embeddings for ids 0 to {vocab_size - 1} "
            "(vocab_size in config.json): tokenizer and weights belong to different models"
        )
    type_id = max((number for one in used for number in one.type_ids), default=0)
    if token_types is not None and type_id >= token_types:
        raise UserError(
            f"{file}: it gives token type {type_id} to a text, but the trunk has embeddings for types 0 to "
            f"{token_types - 1} (type_vocab_size in config.json): tokenizer and weights belong to different models"
        )


def check_agreement(folder: Path, file: Path) -> str | None:
    """Check that a tokenizer does what `transformers` does in its place, where settings beside it may ask for more.

    `tokenizer_config.json` may contradict tokenizer.json: with ``do_lower_case`` false, `transformers` does not lower
    what tokenizer.json alone would. Texts of many scripts are compared, alone and in pairs.

    Args:
        folder: The trunk's folder.
        file: The tokenizer.json.

    Returns:
        A note if `transformers` cannot load the folder's tokenizer, so that there is nothing to compare with.

    Raises:
        UserError: They differ.
    """
    if not (folder / SETTINGS).exists():
        return None
    try:
        reference = _load_by_transformers(folder)
    except UserError:
        raise
    except Exception as error:  # transformers raises many types
        return f"{folder}/{SETTINGS} is not followed, as transformers cannot load this tokenizer: {_reason(error)}"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = generated_texts()
    for text, second in [*((text, None) for text in texts), *zip(texts[::4], texts[1::4], strict=True)]:
        try:
            expected = reference(text, second, verbose=False)
        except Exception as error:
            return f"{folder}/{SETTINGS} is not followed, as transformers cannot use this tokenizer: {_reason(error)}"
        found = tokenizer.encode(text, second)
        types = expected.get("token_type_ids", found.type_ids)
        if found.ids != expected["input_ids"] or found.type_ids != types:
            raise UserError(
                f"{folder}: tokenizer.json and {SETTINGS} disagree: transformers reads {text!r:.80} as "
                f"{expected.tokens()[:8]}, and tokenizer.json alone as {found.tokens[:8]}; save the tokenizer again by "
                f"AutoTokenizer, or remove {SETTINGS}"
            )
    return None


def generated_texts() -> list[str]:
    """Return the same texts each time: words of many scripts, signs and blanks in a random order."""
    chosen, pieces = random.Random(0), _PIECES.split()
    return [
        "".join(chosen.choice(pieces) + chosen.choice(_BLANKS) for _ in range(chosen.randint(1, 12)))
        for _ in range(_TEXTS)
    ]


def _check_files(folder: Path) -> None:
    """Check what transformers would wait for, such as a pipe, or read whatever its size.

    Raises:
        UserError: It is no regular file, or too large.
    """
    for name in (CONFIG, *FILES):
        if (folder / name).exists():
            open_regular(folder / name, max_bytes=_MAX_BYTES).close()


def _load_by_transformers(folder: Path) -> Any:
    _check_files(folder)
    # Imported here: only some trunks need it.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)


def _convert(folder: Path, vocabulary: tuple[str, ...]) -> str:
    """Return the tokenizer.json that `transformers` makes of a vocabulary.

    Raises:
        UserError: It makes none, or one that lacks pieces of the vocabulary.
    """
    try:
        backend = _load_by_transformers(folder).backend_tokenizer
        text: str = backend.to_str()
        lacking = _pieces(folder / vocabulary[0]) - backend.get_vocab(with_added_tokens=True).keys()
    except UserError:
        raise
    except Exception as error:  # transformers raises many types
        raise UserError(f"{folder}: no tokenizer.json can be made of {vocabulary[0]}: {_reason(error)}") from error
    if lacking:
        raise UserError(
            f"{folder}: the tokenizer that transformers makes of {vocabulary[0]} lacks {len(lacking):,} of its pieces, "
            f"such as {min(lacking)!r:.40}: is it a vocabulary of this model?"
        )
    return text


def _pieces(vocabulary: Path) -> set[str]:
    content = read_regular(vocabulary, max_bytes=_MAX_BYTES).decode()
    if vocabulary.suffix == ".json":
        return set(json.loads(content))
    return {line.removesuffix("\r") for line in content.split("\n")} - {""}


def _conversion_key(folder: Path, sources: Iterable[Path]) -> str:
    import transformers

    digest = hashlib.sha256(transformers.__version__.encode())
    for file in (folder / CONFIG, *sources):
        digest.update(f"\0{file.name}\0{sha256_file(file)}".encode())
    return digest.hexdigest()[:32]


def _reason(error: Exception) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}"
