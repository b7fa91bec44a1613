"""``working_copy``: a repository in a store is changed in a folder of this machine, and published as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from onetrunk.files import cache_root
from onetrunk.protocol.signature import Verifier
from onetrunk.protocol.transaction import locked
from onetrunk.releases.release import Published, publish, pull, read_pointer, required_pointer
from onetrunk.releases.store import StoreUrl, open_store


@dataclass
class WorkingCopy:
    """A repository's folder.

    Attributes:
        folder: The folder.
        store: The store that it is a copy of; None if it is the repository itself.
        published: What was published at the end; None before it, and without a store.
    """

    folder: Path
    store: StoreUrl | None = None
    published: Published | None = field(default=None, init=False)


@contextmanager
def working_copy(
    place: Path | StoreUrl,
    *,
    verify_key: Path | None = None,
    dry_run: bool = False,
    wait_s: float = 0.0,
    new: bool = False,
) -> Iterator[WorkingCopy]:
    """Yield a folder with a repository in it; what was changed there is published when the block has ended well.

    Args:
        place: The repository's folder, which is yielded as it is, or a store. The copy of a store's release is kept
            below the caches, so that the next call fetches what has changed.
        verify_key: The file of the public key by which the release must be signed; None for no signature.
        dry_run: Whether nothing is published.
        wait_s: The seconds to wait for another process of this machine that works on the same copy.
        new: Whether the store may be empty, for what is built in the folder to be its first release.

    Raises:
        UserError: Nothing has been published in the store; or the release is not as its manifest says, or not signed
            by the key.
        ChangedMeanwhileError: Somebody else has published meanwhile. Their release is served, and nothing of this one.
        OneTrunkError: The store does not answer, or refuses.
    """
    if isinstance(place, Path):
        yield WorkingCopy(place)
        return
    store = open_store(place)
    root = cache_root() / "releases" / place.key
    with locked(root, wait_s=wait_s):
        copy = WorkingCopy(root / "repository", place)
        found = read_pointer(store)
        if found.pointer is None and new:
            shutil.rmtree(copy.folder, ignore_errors=True)  # of a store that was emptied, or of another endpoint
        else:
            verifier = None if verify_key is None else Verifier(verify_key)
            pull(store, copy.folder, pointer=required_pointer(store, found), verifier=verifier)
        yield copy
        if not dry_run:
            copy.published = publish(copy.folder, store, found)
