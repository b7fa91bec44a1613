"""A finished head as a teacher: of a shorter one, of one on another tap or limb, or of the limb itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onetrunk.files import cache_root
from onetrunk.nn.bundle import WEIGHTS, Bundle
from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import sha256_file
from onetrunk.tasks import Task
from onetrunk.tasks.examples import Texts
from onetrunk.tasks.kinds.base import KindConfig, Offsets
from onetrunk.tasks.soft_targets import RawTargets
from onetrunk.training.cache import StateCache
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.evaluation import raw_outputs


class HeadTeacher:
    """A ``SoftTeacher`` that is a finished head, on the trunk or on a limb.

    Attributes:
        bundle: The head.
        sha256: The hash of its weights.
    """

    def __init__(
        self,
        bundle: Bundle,
        task: Task,
        trunk: Trunk,
        compute: ComputeConfig,
        *,
        max_length: int,
        cache: Path | None = None,
    ) -> None:
        """Create a teacher.

        Args:
            bundle: The head.
            task: The task that it is to teach.
            trunk: The trunk that it was trained on, not a branch of it.
            compute: The device, and the data type of the trunk's pass.
            max_length: The longest text in tokens.
            cache: The root folder of all caches; None is the user's own.

        Raises:
            UserError: It was trained for another task or on another trunk, its limb is missing, or its kind has no
                weights.
        """
        bundle.check_task(task)
        head = bundle.head(trunk)
        if not isinstance(head, Head):
            raise UserError(f"{bundle.folder}: a head of kind {bundle.spec.kind} teaches nothing")
        self.bundle, self._compute, self._max_length = bundle, compute, max_length
        self.sha256 = sha256_file(bundle.folder / WEIGHTS, inside=bundle.folder)
        self._head = head
        self._cache = StateCache(cache_root(cache), trunk.branch(bundle.spec.limb_id), compute)

    @property
    def identity(self) -> str:
        """See ``SoftTeacher.identity``."""
        spec = self.bundle.spec
        return f"{self.sha256} {spec.limb or spec.trunk} {spec.tap} {spec.labels}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """See ``SoftTeacher.facts``."""
        spec = self.bundle.spec
        layers = "1 layer" if spec.layers == 1 else f"{spec.layers} layers"
        where = f"limb {spec.limb}" if spec.limb else f"tap {spec.tap}"
        return {"name": self.bundle.folder.name, "sha256": self.sha256, "family": f"a head of {layers} on {where}"}

    @property
    def texts(self) -> Texts:
        """None: a head brings no texts."""
        return ()

    def raw(
        self,
        texts: Texts,
        config: KindConfig,
        offsets: Offsets | None = None,
        progress: ProgressCallback = silent,
    ) -> RawTargets:
        """See ``SoftTeacher.raw``. The head reads the tokens that the trunk reads, so it needs no offsets.

        Raises:
            UserError: The trunk cannot read texts of this length.
            OneTrunkError: The disk is full.
        """
        spec = self.bundle.spec
        what = f"{spec.task}: the trunk reads for the teacher"
        states = self._cache.states(texts, [spec.tap], max_length=self._max_length, what=what, progress=progress)
        head = self._head.to(self._compute.device)
        return np.asarray(raw_outputs(head, states.states[spec.tap]).numpy(), dtype=np.float32)
