"""Transactions that stage a repository's state: its configs, label files and manifest, signed where there is a key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from onetrunk.protocol import transaction
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import VersionEntry
from onetrunk.protocol.names import MANIFEST, SIGNATURE
from onetrunk.protocol.reading import sha256_file
from onetrunk.protocol.signature import Signer
from onetrunk.protocol.transaction import finish_transaction, is_decided, locked, recover
from onetrunk.repository.state import RepositoryState, changed_texts
from onetrunk.repository.versions import ModelVersion

__all__ = [
    "Transaction",
    "check_signer",
    "commit_state",
    "finish_transaction",
    "is_decided",
    "locked",
    "recover",
    "signed_by",
]

_signer: ContextVar[Signer | None] = ContextVar("signer", default=None)


@contextmanager
def signed_by(signer: Signer | None) -> Iterator[None]:
    """Sign every manifest that is written inside the block.

    Args:
        signer: The key; None for a repository whose manifest is not signed.
    """
    token = _signer.set(signer)
    try:
        yield
    finally:
        _signer.reset(token)


def check_signer(signer: Signer | None, repository: Path) -> None:
    """Check that a manifest that is signed is signed again.

    Raises:
        UserError: There is no key, and the manifest is signed.
    """
    if signer is None and (repository / SIGNATURE).exists():
        raise UserError(
            f"{repository}: the manifest is signed, and a change needs a new signature: give the key by --sign, or "
            f"remove {SIGNATURE} to go on without one"
        )


class Transaction(transaction.Transaction):
    """A change of a repository's state; see ``onetrunk.protocol.transaction.Transaction``."""

    def write_manifest(self, content: str) -> None:
        """Stage a manifest, and its signature if a key was given by ``signed_by``.

        Raises:
            UserError: No key was given, and the manifest is signed.
        """
        signer = _signer.get()
        check_signer(signer, self.repository)
        self.write(MANIFEST, content)
        if signer is not None:
            # After the manifest: between the two moves, a server finds the new signature still staged.
            self.path(SIGNATURE).write_bytes(signer.sign(content.encode()))

    def stage_state(
        self, state: RepositoryState, texts: Mapping[str, str], models: Iterable[ModelVersion] = ()
    ) -> tuple[RepositoryState, list[str]]:
        """Stage those texts that differ from the files on disk, and then the manifest of a state.

        Args:
            state: The state to commit.
            texts: Path -> content of configs and label files, in the order in which they are to be moved.
            models: The versions that the state needs. Fresh ones have been staged in this transaction.

        Returns:
            The state with everything recorded that is on disk after the commit, and the paths of the staged texts.
        """
        changed = changed_texts(self.repository, texts)
        for name, text in changed.items():
            self.write(name, text)
        recorded = replace(state, on_disk=self._versions_on_disk(state, models))
        manifest = recorded.manifest()
        self.write_manifest(manifest.text())
        files = {name: entry.files for name, entry in manifest.models.items()}
        return replace(recorded, recorded_files=files), list(changed)

    def _versions_on_disk(
        self, state: RepositoryState, models: Iterable[ModelVersion]
    ) -> dict[str, dict[int, VersionEntry]]:
        found = {
            name: {n: entry for n, entry in versions.items() if (self.repository / name / str(n)).is_dir()}
            for name, versions in state.on_disk.items()
        }
        for model in models:
            if model.fresh:
                files = {name: sha256_file(self.current(name)) for name in model.files}
                entry = VersionEntry(source=model.source, files=files, dtype=model.dtype)
                found.setdefault(model.name, {})[model.version] = entry
        return found


def commit_state(
    repository: Path, state: RepositoryState, removed: Sequence[str] = ()
) -> tuple[RepositoryState, list[str]]:
    """Make a repository of which all versions are on disk serve a state.

    Ensembles are moved first, then the configs that release old versions: a server can load what each move leaves.

    Args:
        repository: The repository's folder.
        state: The state to commit.
        removed: Folders of models, or of versions such as ``head_rte/1``, to remove.

    Returns:
        The state as committed, and the files that were written.

    Raises:
        OneTrunkError: The disk is full or cannot be written.
    """
    with Transaction(repository) as transaction:
        committed, written = transaction.stage_state(state, {**state.ensemble_texts, **state.part_texts})
        transaction.commit(removed, loadable=True)
    return committed, [*written, MANIFEST]
