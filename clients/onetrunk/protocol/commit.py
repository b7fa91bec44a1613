"""``commit.json``: the decision of a transaction, which the builder carries out and the server takes into account."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import COMMIT, STAGING
from onetrunk.protocol.reading import read_json, resolve_inside

RepositoryPath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$")
]
"""A file below a repository: no part is empty, ``.`` or ``..``, and the first begins with no dot, as `STAGING` does."""

ModelFolder = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(/[0-9]+)?$")]
"""A model's folder, such as ``head_rte``, or that of one of its versions, such as ``head_rte/1``."""

# A path takes about fifty bytes, so this is enough for a hundred thousand files.
MAX_BYTES = 8 * 2**20


class Commit(BaseModel):
    """What a decided transaction is to do.

    Attributes:
        moves: The staged files, in the order in which they become the repository's.
        removed: The folders that are removed after that.
        loadable: Whether Triton can load the repository after any number of the moves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    moves: tuple[RepositoryPath, ...] = ()
    removed: tuple[ModelFolder, ...] = ()
    loadable: bool = Field(default=False, strict=True)


def read_commit(repository: Path) -> Commit | None:
    """Read the decision of a transaction that was interrupted; return None if there is none.

    Every path in it lies inside the repository, also once links are resolved.

    Raises:
        UserError: The file is broken, or names a path outside of the repository.
    """
    path = repository / STAGING / COMMIT
    remedy = f"nothing was changed; remove {path.parent} and run build-repo again"
    try:
        commit = Commit.model_validate(read_json(path, max_bytes=MAX_BYTES, inside=repository))
        for name in (*commit.moves, *commit.removed):
            resolve_inside(repository, name)
            resolve_inside(repository, f"{STAGING}/files/{name}")
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: {where}: found {first['input']!r:.80}, which no transaction writes (allowed are paths inside the "
            f"repository): {remedy}"
        ) from None
    except UserError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}): {remedy}") from error
    return commit
