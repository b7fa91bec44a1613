"""A front under a launcher: `python -m onetrunk.serving.front`.

The launcher writes lines of JSON to stdin: first the settings, then the folder of Triton's sockets, again whenever it
changes, or null while there is no Triton. So no key stands in a command line or an environment. The front writes a
line to stdout when it listens and every second from then on: `{}`; or `{"error": ...}` if it cannot. It ends when stdin
is closed, which the kernel does if the launcher dies.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import sys

import uvloop

from onetrunk.protocol.admin_key import MAX_KEY_BYTES
from onetrunk.protocol.api_key import MAX_KEYS
from onetrunk.protocol.errors import UserError
from onetrunk.serving.front.observer import log_json_lines
from onetrunk.serving.front.process import Front
from onetrunk.serving.front.settings import MIB, FrontSettings, TritonAddress
from onetrunk.serving.front.triton import Triton

LIFE_S = 1.0


async def main() -> int:
    """Serve until stdin is closed; return the exit status."""
    lines = await _stdin()
    settings = FrontSettings.model_validate_json(await lines.readline())
    log_json_lines(settings.verbose)
    triton = Triton()
    front = Front(settings, triton)
    try:
        await front.open()
    except OSError as error:
        print(
            json.dumps({"error": error.strerror or str(error), "port_taken": error.errno == errno.EADDRINUSE}),
            flush=True,
        )
        return 1
    except UserError as error:
        print(json.dumps({"error": str(error), "user": True}), flush=True)
        return 2
    # What was made until now stays. Otherwise each full collection would look through all of it, and hold every request
    # for some 45 ms (measured; without it, below 1 ms).
    gc.collect()
    gc.freeze()
    alive = asyncio.create_task(_show_life())
    while line := await lines.readline():
        folder = json.loads(line)
        triton.move(TritonAddress(folder=folder) if folder is not None else None)
    await front.close()
    alive.cancel()
    return 0


async def _show_life() -> None:
    while True:
        print("{}", flush=True)
        await asyncio.sleep(LIFE_S)


async def _stdin() -> asyncio.StreamReader:
    # The settings are one line, in which all API keys are.
    reader = asyncio.StreamReader(limit=MIB + MAX_KEYS * (MAX_KEY_BYTES + len('"",')))
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
