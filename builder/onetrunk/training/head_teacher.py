"""A finished head as a teacher: of a shorter one, of one on another tap or limb, or of the limb itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from onetrunk.files import cache_root
from onetrunk.nn.bundle import WEIGHTS, Bundle
from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.reading import sha256_file
from onetrunk.tasks import Task
from onetrunk.tasks.examples import Texts
from onetrunk.tasks.head_spec import HeadSpec, limbs_of
from onetrunk.tasks.kinds.base import KindConfig, Offsets
from onetrunk.tasks.kinds.classification import calibrated
from onetrunk.tasks.soft_targets import RawTargets, raw_above
from onetrunk.training.cache import StateCache
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.evaluation import raw_outputs


class HeadTeacher:
    """A ``SoftTeacher`` that is a finished head, on the trunk or on a limb.

    It reads texts as long as those that it learned from, as it does when it is served. One that answers for every token
    reads those of its student, since both label the same tokens.

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
            compute: The device, and the data type of the trunk's pass over train texts.
            max_length: The longest text of its student, in tokens.
            cache: The root folder of all caches; None is the user's own.

        Raises:
            UserError: It was trained for another task or on another trunk, its limb is missing, or its kind has no
                weights.
        """
        bundle.check_teaches(task)
        branch = trunk.branch(bundle.spec.limb_id, limbs_of(bundle.folder.absolute().parent))
        head = bundle.head(trunk)
        if not isinstance(head, Head):
            raise UserError(f"{bundle.folder}: a head of kind {bundle.spec.kind} teaches nothing")
        self.bundle, self._compute, self._cache_root = bundle, compute, cache_root(cache)
        self._max_length = max_length if head.by_token else bundle.spec.max_length
        self.sha256 = sha256_file(bundle.folder / WEIGHTS, inside=bundle.folder)
        self._head, self._trunk = head, branch

    @property
    def decodes(self) -> bool:
        """Whether its answers are not those of its outputs one by one, as a CRF's are not: it labels no texts then."""
        return getattr(self._head.output, "transitions", None) is not None

    @property
    def identity(self) -> str:
        """See ``SoftTeacher.identity``."""
        spec = self.bundle.spec
        return f"{self.sha256} {spec.limb or spec.trunk} {spec.tap} {spec.labels} {_fitted(spec)}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """See ``SoftTeacher.facts``."""
        spec = self.bundle.spec
        where = f"limb {spec.limb}" if spec.limb else f"tap {spec.tap}"
        found = {
            "name": spec.task,
            "sha256": self.sha256,
            "family": f"a head of {counted(spec.layers, 'layer', 'layers')} on {where}",
        }
        return found | {key: str(value) for key, value in _fitted(spec).items()}

    @property
    def texts(self) -> Texts:
        """None: a head brings no texts."""
        return ()

    def outputs(self, texts: Texts, compute: ComputeConfig, progress: ProgressCallback = silent) -> Tensor:
        """Return the head's raw outputs, as they are before what is fitted to dev data.

        Args:
            texts: Texts, or pairs of texts.
            compute: The device, and the data type of the trunk's pass.
            progress: Called as the pass goes on.

        Returns:
            *Shape:* (texts, outputs), by token (texts, tokens, outputs)

        Raises:
            UserError: The trunk cannot read texts of this length.
            OneTrunkError: The disk is full.
        """
        spec = self.bundle.spec
        cache = StateCache(self._cache_root, self._trunk, compute)
        what = f"{spec.task}: the trunk reads for the teacher"
        found = cache.states(texts, [spec.tap], max_length=self._max_length, what=what, progress=progress)
        return raw_outputs(self._head.to(compute.device), found.states[spec.tap])

    def raw(
        self,
        texts: Texts,
        config: KindConfig,
        offsets: Offsets | None = None,
        progress: ProgressCallback = silent,
    ) -> RawTargets:
        """See ``SoftTeacher.raw``: what the head says as it is served. It needs no offsets.

        Raises:
            UserError: See ``outputs``.
            OneTrunkError: See ``outputs``.
        """
        fitted = _fitted(self.bundle.spec)
        outputs = calibrated(self.outputs(texts, self._compute.exact, progress), fitted)
        raw = np.asarray(outputs.numpy(), dtype=np.float32)
        if (thresholds := fitted.get("thresholds")) is not None:
            raw = raw_above(raw, thresholds)
        return raw.astype(np.float32)


def _fitted(spec: HeadSpec) -> dict[str, Any]:
    """Return what was fitted to the dev data and changes what a head says."""
    changing = ("temperature", "entropy_power", "thresholds")
    return {key: spec.fitted[key] for key in changing if key in spec.fitted}
