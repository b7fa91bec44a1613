"""Whether manifest, disk and server agree."""

from __future__ import annotations

from pathlib import Path

from onetrunk.admin import AdminClient
from onetrunk.deploy.synchrony import differences
from onetrunk.files import sha256_file
from onetrunk.repository.publication import is_decided
from onetrunk.repository.standing import changed_texts, read_standing


def verify(repository: Path, server: AdminClient | None) -> list[str]:
    """What does not agree, a line each; empty where all does.

    Args:
        repository: its folder.
        server: the server on it; None compares manifest and disk alone.

    Raises:
        UserError: there is no repository, or it cannot be read at all.
        NotReady: nobody answers at the server's address.
    """
    found = []
    if is_decided(repository):
        found.append("a publication was cut off half-way: the next deployment or build-repo completes it")
    standing = read_standing(repository)
    for name, entry in sorted(standing.manifest.models.items()):
        for file, digest in sorted(entry.all_files.items()):
            path = repository / file
            if not path.is_file():
                found.append(f"{file}: is missing")
            elif sha256_file(path) != digest:
                found.append(f"{file}: is not as it was written")
        found += _unknown_versions(repository, name, set(entry.versions))
    for text in changed_texts(repository, standing.contents):
        if (repository / text).is_file() and not any(line.startswith(f"{text}:") for line in found):
            found.append(f"{text}: is not what the manifest says")
    known = set(standing.manifest.models)
    for folder in sorted(repository.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in known:
            found.append(f"{folder.name}/: is not in the manifest")
    if server is not None:
        found += [
            f"server: {difference.model} {difference.what}" for difference in differences(standing.contents, server)
        ]
    return found


def _unknown_versions(repository: Path, model: str, known: set[int]) -> list[str]:
    if not known:  # an ensemble
        return []
    versions = {int(path.name) for path in (repository / model).glob("*") if path.name.isdecimal()}
    return [f"{model}/{version}/: is not in the manifest" for version in sorted(versions - known)]
