"""Which heads of a tap are served by one model, and what that model holds."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import group_name

GROUP_JSON = "group.json"


class Member(BaseModel):
    """A head in a group.

    Attributes:
        version: the version of the head's own model that it was taken from.
        outputs: how many numbers it gives for a text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    outputs: int


class Group(BaseModel):
    """``group.json``: the heads of one tap that one model holds.

    A group answers for a head as long as the version that it holds is the one that is served. After a deployment the
    head's own model answers, and after a rollback the group does again; a build with ``--group-heads`` makes it anew.

    Attributes:
        tap: the tap that its heads stand on.
        trunk: the trunk's identity.
        heads: task -> its head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    tap: int
    trunk: str
    heads: dict[str, Member]

    @property
    def name(self) -> str:
        """The model's name."""
        return group_name(self.tap)

    def holds(self, task: str, version: int | None) -> bool:
        """Whether this is the version of the task's head that it holds, and so answers for."""
        return task in self.heads and self.heads[task].version == version

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"


def read_group(folder: Path) -> Group:
    """Reads the ``group.json`` of a version folder.

    Raises:
        UserError: it is missing or broken.
    """
    path = folder / GROUP_JSON
    try:
        return Group.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(f"{path} is missing or broken ({str(error).splitlines()[0]}): run build-repo again") from error


def grouped_versions(repository: Path, task: str) -> list[int]:
    """The versions of a task's head that groups on disk were made of, those too that are on disk no more.

    A group whose record is broken is passed over: it answers for nobody, so nobody is mistaken for one of its heads.
    """
    versions = []
    for path in repository.glob(f"heads_*/*/{GROUP_JSON}"):
        with contextlib.suppress(UserError):
            group = read_group(path.parent)
            versions += [group.heads[task].version] if task in group.heads else []
    return versions
