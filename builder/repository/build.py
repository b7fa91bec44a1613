"""Building a repository: plan, export what is missing, check all of it, publish the difference."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import builder
from builder.digest import sha256_file
from builder.errors import OneTrunkError
from builder.export.modules import ServedHead
from builder.export.names import head_name
from builder.export.onnx_file import export_head, export_segment
from builder.export.parity import ServedTask, check_parity
from builder.export.release import DEFAULT_RELEASE, Release, get_release
from builder.model.trunk import Trunk, load_trunk
from builder.progress import Progress, silent
from builder.repository.buckets import buckets_up_to
from builder.repository.configs import TOKENIZER
from builder.repository.ensemble import ENSEMBLE_VERSION
from builder.repository.manifest import MANIFEST, Manifest, ModelEntry, read_manifest
from builder.repository.plan import RepositoryPlan, plan_repository, select_bundles, tokenizer_files
from builder.repository.publication import Publication, finish_publication, locked


@dataclass(frozen=True)
class BuildReport:
    """What a build did, or with ``dry_run`` would do.

    Attributes:
        output: the repository.
        tasks: the tasks that it serves.
        models: model -> ``version N, new``, ``version N, kept`` or ``removed``.
        written: files that were written, below the repository.
        removed: folders of models that have gone.
        differences: model -> greatest difference from torch; empty where nothing had to be checked.
        finished_earlier: whether an earlier publication, cut off in its moves, was completed first.
        seconds: time taken.
    """

    output: Path
    tasks: tuple[str, ...]
    models: dict[str, str]
    written: tuple[str, ...]
    removed: tuple[str, ...]
    differences: dict[str, float] = field(default_factory=dict)
    finished_earlier: bool = False
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, written or removed."""
        return bool(self.written or self.removed)


def build_repository(
    output: Path,
    *,
    heads: Path = Path("heads"),
    tasks: Sequence[str] | None = None,
    trunk: str | Path | None = None,
    max_length: int = 128,
    triton_release: str = DEFAULT_RELEASE,
    dry_run: bool = False,
    progress: Progress = silent,
) -> BuildReport:
    """Builds a Triton model repository from bundles, or brings an existing one up to date.

    Args:
        output: the repository's folder; made where it is not there.
        heads: the folder of bundles.
        tasks: which tasks; None for all. The repository then has these and no others.
        trunk: see builder.model.trunk.load_trunk.
        max_length: longest text in tokens, and the last bucket.
        triton_release: the Triton release that must be able to load the files, as in ``24.10``.
        dry_run: only say what would be done.
        progress: see Progress.

    Raises:
        UserError: an argument, a bundle or the trunk is wrong.
        OneTrunkError: an export or a check failed. Nothing was published then.
    """
    started = time.monotonic()
    release = get_release(triton_release)
    progress("loading the trunk", 0, 1)
    loaded = load_trunk(trunk)
    buckets = buckets_up_to(max_length, loaded.max_positions)
    bundles = select_bundles(heads, tasks)
    for bundle in bundles.values():
        bundle.check_trunk(loaded)
    with nullcontext() if dry_run else locked(output):
        finished = not dry_run and _finish_earlier(output)
        manifest = read_manifest(output)
        plan = plan_repository(output, loaded, bundles, buckets, manifest)
        texts = [name for name, text in plan.texts.items() if not _holds(output / name, text)]
        written = [file for model in plan.models.values() if model.fresh for file in model.files] + texts
        changed = bool(written or plan.removed or manifest is None or manifest.triton_release != release.name)
        differences = {}
        if changed and not dry_run:
            differences = _publish(output, plan, loaded, release, texts, progress)
    return BuildReport(
        output=output,
        tasks=tuple(bundles),
        models={
            **{name: f"version {m.version}, {'new' if m.fresh else 'kept'}" for name, m in plan.models.items()},
            **dict.fromkeys(plan.removed, "removed"),
        },
        written=(*written, MANIFEST) if changed else (),
        removed=tuple(plan.removed),
        differences=differences,
        finished_earlier=finished,
        seconds=time.monotonic() - started,
    )


def _finish_earlier(output: Path) -> bool:
    try:
        return finish_publication(output)
    except OSError as error:
        raise OneTrunkError(f"{output}: {error.strerror} while completing an earlier publication") from error


def _publish(
    output: Path,
    plan: RepositoryPlan,
    trunk: Trunk,
    release: Release,
    texts: Sequence[str],
    progress: Progress,
) -> dict[str, float]:
    """Writes fresh versions and texts aside, checks the whole, moves it in. Gives what check_parity gives."""
    with Publication(output) as publication:
        try:
            _export(plan, trunk, release, publication, progress)
            differences = _check(plan, trunk, publication, progress)
            for name in texts:
                publication.write(name, plan.texts[name])
            publication.write(MANIFEST, _manifest(plan, trunk, release, publication).text())
        except OSError as error:
            raise OneTrunkError(f"{output}: {error.strerror} while writing; nothing was published") from error
        progress("publishing", 0, 1)
        publication.commit(plan.removed)
    return differences


def _export(plan: RepositoryPlan, trunk: Trunk, release: Release, publication: Publication, progress: Progress) -> None:
    fresh = [model.name for model in plan.models.values() if model.fresh]

    def starts(name: str) -> Path | None:
        """Where to write the model; None where it is there already."""
        model = plan.models[name]
        if not model.fresh:
            return None
        progress(f"exporting {name}", fresh.index(name), len(fresh))
        return publication.path(model.files[0])

    tokenizer = plan.models[TOKENIZER]
    if tokenizer.fresh:
        for file, source in zip(tokenizer.files, tokenizer_files(trunk).values(), strict=True):
            shutil.copyfile(source, publication.path(file))
    for segment in plan.segments:
        if path := starts(segment.name):
            export_segment(trunk, segment, path, release)
    for task, bundle in plan.bundles.items():
        if path := starts(head_name(task)):
            export_head(bundle.head(trunk), bundle.spec, path, release)


def _check(plan: RepositoryPlan, trunk: Trunk, publication: Publication, progress: Progress) -> dict[str, float]:
    def file(name: str) -> Path:
        return publication.current(plan.models[name].files[0])

    heads = [
        ServedTask(head_name(task), file(head_name(task)), ServedHead(bundle.head(trunk), bundle.spec))
        for task, bundle in plan.bundles.items()
    ]
    segments = {segment: file(segment.name) for segment in plan.segments}
    total, done = 2 * len(plan.buckets), itertools.count(1)
    progress("checking against torch", 0, total)
    return check_parity(
        trunk, segments, heads, plan.buckets, lambda: progress("checking against torch", next(done), total)
    )


def _manifest(plan: RepositoryPlan, trunk: Trunk, release: Release, publication: Publication) -> Manifest:
    digests: dict[str, dict[str, str]] = {}
    for name, text in plan.texts.items():
        digests.setdefault(name.split("/")[0], {})[name] = hashlib.sha256(text.encode()).hexdigest()
    for model in plan.models.values():
        digests[model.name] |= {name: sha256_file(publication.current(name)) for name in model.files}
    return Manifest(
        onetrunk_version=builder.__version__,
        trunk=trunk.identity,
        triton_release=release.name,
        max_length=plan.buckets[-1],
        buckets=plan.buckets,
        tasks=tuple(plan.bundles),
        models={
            name: ModelEntry(
                version=plan.models[name].version if name in plan.models else ENSEMBLE_VERSION,
                source=plan.models[name].source if name in plan.models else "",
                files=files,
            )
            for name, files in digests.items()
        },
    )


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
