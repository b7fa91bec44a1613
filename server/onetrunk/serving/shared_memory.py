"""How much of /dev/shm the models' processes need, computed from their configs before Triton starts.

Triton hands every request and answer of a Python model to the model's process through one region in /dev/shm per
process. A region begins with 1 MiB. Where a tensor does not fit in, it grows by the tensor's size in whole MiB, and
never shrinks. So after one full batch of the longest texts it has its size for good, unless the process still holds the
tensors of the batch before while the next one comes, which at most doubles the growth.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.protocol.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
MIB = 1 << 20
FIRST_BYTES = MIB
# What the Python backend puts around a tensor.
OVERHEAD_BYTES = 4096
# Smaller tensors find room in what a region has left.
SMALL_BYTES = MIB // 4
# A token of a text is about so many bytes long.
BYTES_A_TOKEN = 8
# What a region may have beyond two full batches before it counts as too large: texts far longer than what is read of
# them, and gaps between tensors of different buckets.
SLACK_BYTES = 8 * MIB
LEAST_SHARE_BYTES = FIRST_BYTES + SLACK_BYTES
"""No model's share is smaller."""

_SIZES = {
    pb.TYPE_BOOL: 1,
    pb.TYPE_UINT8: 1,
    pb.TYPE_INT8: 1,
    pb.TYPE_UINT16: 2,
    pb.TYPE_INT16: 2,
    pb.TYPE_FP16: 2,
    pb.TYPE_BF16: 2,
    pb.TYPE_UINT32: 4,
    pb.TYPE_INT32: 4,
    pb.TYPE_FP32: 4,
    pb.TYPE_UINT64: 8,
    pb.TYPE_INT64: 8,
    pb.TYPE_FP64: 8,
}


def full_batch_bytes(config: pb.ModelConfig, tokens: int) -> int:
    """Return the size of a model's region after one full batch.

    Args:
        config: The model's config. An ensemble has no process and no region: 0.
        tokens: The length of the longest texts, which stands for every dimension of free size.
    """
    if not _has_process(config):
        return 0
    return FIRST_BYTES + _growth_bytes(config, tokens)


def share_bytes(config: pb.ModelConfig, tokens: int) -> int:
    """Return the size beyond which a model's region has grown for no good reason. See `full_batch_bytes`."""
    return FIRST_BYTES + 2 * _growth_bytes(config, tokens) + SLACK_BYTES


def _growth_bytes(config: pb.ModelConfig, tokens: int) -> int:
    sizes = [_tensor_bytes(tensor, config.max_batch_size, tokens) for tensor in (*config.input, *config.output)]
    large = sum(_whole_mib(size + OVERHEAD_BYTES) for size in sizes if size >= SMALL_BYTES)
    small = sum(size + OVERHEAD_BYTES for size in sizes if size < SMALL_BYTES)
    return large + _whole_mib(max(small - FIRST_BYTES * 3 // 4, 0))


def _tensor_bytes(tensor: pb.ModelInput | pb.ModelOutput, rows: int, tokens: int) -> int:
    numbers = max(rows, 1)
    for size in tensor.dims:
        numbers *= size if size > 0 else tokens
    return numbers * _SIZES.get(tensor.data_type, BYTES_A_TOKEN * tokens)


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB


def free_bytes() -> int:
    """Return how much of /dev/shm is free."""
    found = os.statvfs(SHARED_MEMORY)
    return found.f_bavail * found.f_frsize


def region_bytes(region: str) -> int:
    """Return the size of a region; 0 if it is gone."""
    try:
        return (SHARED_MEMORY / region).stat().st_size
    except OSError:
        return 0


def close_to_others(regions: Iterable[str]) -> None:
    """Take from other users the right to read regions, through which texts and answers pass.

    The Python backend lets everybody read them, whatever the umask is. A process that opened one as it was made keeps
    it: only a container, or a machine without other users, is safe from that.

    Args:
        regions: Their names. One that is gone is left out.
    """
    for region in regions:
        with contextlib.suppress(FileNotFoundError):
            (SHARED_MEMORY / region).chmod(0o600)


def check_room(configs: Mapping[str, pb.ModelConfig], tokens: int) -> str | None:
    """Check that /dev/shm has room for a full batch of the longest texts in every model.

    Args:
        configs: Model -> its config, of all models that will be loaded.
        tokens: The length of the longest texts.

    Returns:
        A warning if the room is enough for one full batch but not for several at once, or None.

    Raises:
        UserError: One full batch has no room. Triton would start, and fail at the first such batch.
    """
    free = free_bytes()
    needed = sum(full_batch_bytes(config, tokens) for config in configs.values())
    at_most = needed + sum(_growth_bytes(config, tokens) for config in configs.values() if _has_process(config))
    rows = max(config.max_batch_size for config in configs.values())
    size = _mount_size(at_most)
    found = f"{SHARED_MEMORY} has {free // MIB} MiB free, and a full batch of {rows} texts of {tokens} tokens needs"
    remedy = (
        f"give it {size} (docker run --shm-size={size}, shm_size in a compose file, or without a container mount -o "
        f"remount,size={size} {SHARED_MEMORY}), or build-repo with fewer tasks or shorter buckets"
    )
    if free < needed:
        raise UserError(f"{found} {needed // MIB} MiB in the processes of all models: {remedy}")
    if free < at_most:
        return f"{found} {needed // MIB} MiB; several at once need up to {at_most // MIB} MiB, and may fail: {remedy}"
    return None


def _has_process(config: pb.ModelConfig) -> bool:
    return bool(config.platform != "ensemble")


def _mount_size(size: int) -> str:
    """Return the power of two in MiB above a size, as Docker and mount write it."""
    return f"{1 << (-(-size // MIB) - 1).bit_length()}m"
