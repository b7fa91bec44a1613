"""``prune`` removes old releases from a store, and what writers have left there that died."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from onetrunk.protocol.names import MANIFEST
from onetrunk.releases.release import read_pointer, required_pointer
from onetrunk.releases.store import PARTIAL, ChangedMeanwhileError, Store

SETTLED_S = 24 * 3600.0
"""Nothing that was written within this time is removed: somebody may be about to publish it."""

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredRelease:
    """A release of a store.

    Attributes:
        release: Its hash.
        published: When it was published last, in seconds since 1970; None if it was never completed.
        current: Whether the store's pointer names it.
    """

    release: str
    published: float | None
    current: bool = False


@dataclass(frozen=True)
class Pruned:
    """What was removed from a store, or with a dry run would be.

    Attributes:
        kept: The releases that stay, the one published last first.
        removed: Those that went.
        files: The number of objects that went, logs and leftovers among them.
    """

    kept: tuple[StoredRelease, ...]
    removed: tuple[StoredRelease, ...] = ()
    files: int = 0


def prune(store: Store, keep: int, *, dry_run: bool = False, now: float | None = None) -> Pruned:
    """Remove all releases but the last ones, and never the one that is served.

    A release's manifest goes first, so that an interrupted call leaves none that looks complete.

    Args:
        store: The store.
        keep: The number of releases that stay, by when they were published last; and of logs.
        dry_run: Whether to remove nothing.
        now: The time, in seconds since 1970; None for this moment.

    Raises:
        UserError: Nothing has been published, or the pointer is broken.
        OneTrunkError: The store does not answer, or refuses.
    """
    settled = (time.time() if now is None else now) - SETTLED_S
    current = required_pointer(store, read_pointer(store))
    files: dict[str, dict[str, float]] = {}
    for path, at in store.written("releases").items():
        release, _, file = path.partition("/")
        if _HASH.fullmatch(release):  # what else lies there is somebody else's
            files.setdefault(release, {})[file] = at
    found = [StoredRelease(name, of.get(MANIFEST), name == current.release) for name, of in files.items()]
    found.sort(key=lambda one: (one.published is None, -(one.published or 0.0), one.release))
    last = {one.release for one in found[:keep] if one.published is not None}
    removed = tuple(
        one
        for one in found
        if not one.current and one.release not in last and max(files[one.release].values()) < settled
    )
    kept = tuple(one for one in found if one not in removed)

    logs = {name: at for name, at in store.written("logs").items() if _HASH.fullmatch(name.removesuffix(".jsonl"))}
    last_logs = sorted(logs, key=lambda name: (-logs[name], name))[:keep]
    names = [
        f"logs/{name}"
        for name, at in logs.items()
        if at < settled and name not in last_logs and name != f"{current.log}.jsonl"
    ]
    names += [f"{PARTIAL}/{name}" for name, at in store.written(PARTIAL).items() if at < settled]
    count = len(names) + sum(len(files[one.release]) for one in removed)
    if not dry_run:
        store.remove(names)
        for one in removed:
            if read_pointer(store).pointer != current:
                raise ChangedMeanwhileError(
                    f"{store.url}: somebody has published meanwhile: give the same command again"
                )
            # Somebody may be publishing it again, and have sent its manifest since.
            there = store.written(f"releases/{one.release}")
            if max(there.values(), default=0.0) >= settled:
                raise ChangedMeanwhileError(
                    f"{store.url}: somebody is writing release {one.release[:12]}...: give the same command again"
                )
            manifest_first = sorted(there, key=lambda file: (file != MANIFEST, file))
            store.remove(f"releases/{one.release}/{file}" for file in manifest_first)
    return Pruned(kept, removed, count)
