"""The signature of a repository's manifest by ed25519, in a file beside the manifest.

It needs the package ``cryptography``, of the extra ``signing``, and only where a key is given. The file holds the 64
bytes of the signature and nothing else, so that other tools can check it too.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import ModuleType

from onetrunk.protocol.commit import read_commit
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import MAX_BYTES
from onetrunk.protocol.names import MANIFEST, SIGNATURE, STAGING
from onetrunk.protocol.reading import open_regular, read_regular

_SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 16 * 2**10


class Signer:
    """A private key, by which manifests are signed.

    Attributes:
        file: The file of the key.
    """

    def __init__(self, file: Path) -> None:
        """Read the key.

        Args:
            file: A PEM file that only its owner can read.

        Raises:
            UserError: The file is missing, others can read it, or it holds no ed25519 private key without a password.
        """
        from_pem = _cryptography(file)
        self.file = file
        try:
            with open_regular(file, max_bytes=_MAX_KEY_BYTES) as stream:
                found = os.fstat(stream.fileno())
                if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
                    raise UserError(
                        f"{file}: found mode {stat.S_IMODE(found.st_mode):04o} of user {found.st_uid}; a private key "
                        f"is yours, and nobody else can read it: chmod 600 {file}, or make a new key"
                    )
                content = stream.read()
        except FileNotFoundError:
            raise UserError(f"{file}: no such key; make one by {_make(file)}") from None
        try:
            key = from_pem.load_pem_private_key(content, password=None)
        except (ValueError, TypeError, _unsupported()) as error:  # TypeError: it has a password
            raise UserError(f"{file}: no private key without a password ({_line(error)}): {_make(file)}") from None
        if not isinstance(key, _ed25519().Ed25519PrivateKey):
            raise UserError(f"{file}: found a private key of another kind than ed25519: {_make(file)}")
        self._key = key

    def sign(self, manifest: bytes) -> bytes:
        """Return the signature of a manifest's content. It is the same each time."""
        return bytes(self._key.sign(manifest))

    def has_signed(self, repository: Path) -> bool:
        """Return whether a repository's manifest has this key's signature.

        Raises:
            UserError: The manifest or its signature is no regular file.
        """
        try:
            content = read_regular(repository / MANIFEST, max_bytes=MAX_BYTES, inside=repository)
        except FileNotFoundError:
            return False
        return read_signature(repository) == self.sign(content)


class Verifier:
    """A public key, by which signatures of manifests are checked.

    Attributes:
        file: The file of the key.
    """

    def __init__(self, file: Path) -> None:
        """Read the key.

        Args:
            file: A PEM file.

        Raises:
            UserError: The file is missing, or holds no ed25519 public key.
        """
        from_pem = _cryptography(file)
        self.file = file
        how = "write the public key of KEY.pem by openssl pkey -in KEY.pem -pubout -out PUB.pem"
        try:
            key = from_pem.load_pem_public_key(read_regular(file, max_bytes=_MAX_KEY_BYTES))
        except FileNotFoundError:
            raise UserError(f"{file}: no such key; {how}") from None
        except (ValueError, _unsupported()) as error:
            raise UserError(f"{file}: no public key ({_line(error)}): {how}") from None
        if not isinstance(key, _ed25519().Ed25519PublicKey):
            raise UserError(f"{file}: found a public key of another kind than ed25519: {how}")
        self._key = key

    def check(self, repository: Path, manifest: bytes) -> None:
        """Check that a manifest's content is signed.

        Args:
            repository: The repository, in which the signature is. One of a deployment that was interrupted between two
                moves may still be staged.
            manifest: The content.

        Raises:
            UserError: It is not signed, or by another key, or was changed since.
        """
        folders = [repository]
        if read_commit(repository) is not None:
            folders.append(repository / STAGING / "files")
        found = [signature for folder in folders if (signature := read_signature(folder)) is not None]
        if not found:
            raise UserError(
                f"{repository}: the manifest is not signed ({SIGNATURE} is missing): build or deploy with --sign, or "
                "leave --verify-key out"
            )
        if not any(self._has_signed(signature, manifest) for signature in found):
            raise UserError(
                f"{repository}: the manifest has no valid signature of {self.file}: it was changed since, or signed by "
                "another key; build it again with --sign, or give the public key of who signed it"
            )

    def _has_signed(self, signature: bytes, manifest: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, manifest)
        except InvalidSignature:
            return False
        return True


def read_signature(folder: Path) -> bytes | None:
    """Return the signature in a folder; None if there is none.

    Raises:
        UserError: It is no regular file, or has another size than a signature.
    """
    try:
        return read_regular(folder / SIGNATURE, max_bytes=_SIGNATURE_BYTES, inside=folder)
    except FileNotFoundError:
        return None


def _cryptography(file: Path) -> ModuleType:
    """Return what reads keys.

    Raises:
        UserError: The package is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise UserError(f"{file}: keys need the package cryptography: pip install 'onetrunk[signing]'") from None
    return serialization


def _ed25519() -> ModuleType:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm


def _make(file: Path) -> str:
    return f"openssl genpkey -algorithm ed25519 -out {file}"


def _line(error: Exception) -> str:
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.120}"
