"""The process in which a foreign ONNX file runs, or any file on another ONNX Runtime.

It imports nothing of OneTrunk, and is started by its path. It is told the file, the number of a pipe, whose the file
is, and where the package of its ONNX Runtime is if it is not the installed one. It sends the file's signature, or why
it cannot be loaded, and then answers feeds with outputs until the pipe is closed or its parent is gone.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ANSWER, FAULT = b"A", b"F"

# For the address space, of which ONNX Runtime and its threads reserve more than they use, beside the weights.
_ADDRESS_BYTES = 8 * 2**30
_ADDRESS_BYTES_A_BYTE = 4
_PARENT_POLL_S = 1.0


def main(file: str, descriptor: int, whose: str, packages: str | None = None) -> None:
    """Load a file and answer feeds.

    Args:
        file: The ONNX file.
        descriptor: The number of the open pipe to the parent.
        whose: ``foreign`` bounds its memory; ``own`` is a file that was exported here, and needs what it needs.
        packages: The folder of an ONNX Runtime that takes the place of the installed one.
    """
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if whose == "foreign":
        limit = _ADDRESS_BYTES + _ADDRESS_BYTES_A_BYTE * os.stat(file).st_size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # If memory ends all the same, this process is the first to go.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    with Connection(descriptor) as parent:
        try:
            session = _load(file, packages)
            parent.send_bytes(ANSWER + json.dumps(_signature(session)).encode())
        except Exception as error:  # ONNX Runtime has one exception class per status, without a common base
            parent.send_bytes(FAULT + str(error).encode(errors="replace"))
            return
        while True:
            try:
                feeds = parent.recv_bytes()
            except EOFError:
                return
            parent.send_bytes(_answer(session, feeds))


def _load(file: str, packages: str | None) -> Any:
    if packages is not None:
        sys.path.insert(0, packages)
    import onnxruntime

    if packages is not None and not Path(onnxruntime.__file__).is_relative_to(packages):
        raise ImportError(f"there is no ONNX Runtime in {packages}: remove that folder, and it is fetched again")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _signature(session: Any) -> dict[str, list[tuple[str, str, list[Any]]]]:
    sides = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
    return {side: [(one.name, one.type, list(one.shape)) for one in tensors] for side, tensors in sides.items()}


def _answer(session: Any, feeds: bytes) -> bytes:
    import numpy as np

    try:
        results = session.run(None, dict(np.load(io.BytesIO(feeds), allow_pickle=False)))
        content = io.BytesIO()
        np.savez(content, *results)
    except Exception as error:  # as above; also outputs that are no tensors
        return FAULT + str(error).encode(errors="replace")
    return ANSWER + content.getvalue()


def _end_with_parent(parent: int) -> None:
    """End this process once its parent has: in an endless loop it would see no closed pipe."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
