"""Publishing what a repository shall serve, in moves of which each leaves something that a server can load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.manifest import Manifest
from onetrunk.protocol.names import MANIFEST
from onetrunk.repository.arrivals import holds_text, make_manifest, merged_versions
from onetrunk.repository.contents import Contents
from onetrunk.repository.publication import Publication


def publish(
    contents: Contents, repository: Path, manifest: Manifest, removed: Sequence[str] = ()
) -> tuple[Manifest, list[str]]:
    """Writes the texts that are not as they should be: ensembles first, then configs that let go of old versions.

    Args:
        contents: what shall be served; its versions are on disk.
        repository: its folder.
        manifest: the manifest until now.
        removed: folders of models, or of versions as in ``head_rte/1``, that nothing needs any more.

    Returns:
        The manifest that stands then, and the files that were written.

    Raises:
        OneTrunkError: the disk is full or the like.
    """
    texts = {**contents.ensemble_texts, **contents.part_texts}
    changed = [name for name, text in texts.items() if not holds_text(repository / name, text)]
    with Publication(repository) as publication, told_on_disk(repository):
        for name in changed:
            publication.write(name, texts[name])
        versions = merged_versions(repository, manifest, (), publication)
        for name in removed:
            model, _, version = name.partition("/")
            if version:
                versions[model].pop(int(version), None)
            else:
                versions.pop(model, None)
        stands = make_manifest(contents, manifest.triton_release, versions, manifest)
        publication.write(MANIFEST, stands.text())
        publication.commit(removed, loadable=True)
    return stands, [*changed, MANIFEST]


@contextlib.contextmanager
def told_on_disk(repository: Path) -> Iterator[None]:
    """Turns an error of writing into one of ours: nothing was published then."""
    try:
        yield
    except OSError as error:
        raise OneTrunkError(f"{repository}: {error.strerror} while writing; nothing was changed") from error
