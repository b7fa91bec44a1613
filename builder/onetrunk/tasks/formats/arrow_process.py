"""The process in which Parquet and Arrow files are read. It imports nothing of OneTrunk, and is started by its path.

A small file may stand for rows that no memory holds, and no library bounds what it unpacks: this process has a bound.
It reads the file from its standard input, and writes lines of JSON: ``["schema", features]``, then ``["row", values]``
for each row, and ``["end", null]``, or ``["fault", why]`` in place of what it cannot read.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

_ROWS = 1024
# For the address space. What is not compressed is read as large as it is.
_ADDRESS_BYTES = 4 * 2**30
_ADDRESS_BYTES_A_BYTE = 4


def main(form: str, wanted: list[str]) -> None:
    """Read the file.

    Args:
        form: ``Parquet`` or ``Arrow``.
        wanted: The columns that are read, if all of them are there; else all columns are.
    """
    limit = _ADDRESS_BYTES + _ADDRESS_BYTES_A_BYTE * os.fstat(0).st_size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        with open(0, "rb") as stream:
            schema, batches = {"Parquet": _parquet, "Arrow": _arrow}[form](stream, wanted)
            _send("schema", ((schema.metadata or {}).get(b"huggingface") or b"{}").decode())
            maps = [field.name for field in schema if field.type.id == import_module("pyarrow.lib").Type_MAP]
            for batch in batches:
                for row in batch.to_pylist():
                    # A map is a list of pairs, which JSON does not tell from a list of lists.
                    pairs = {name: dict(row[name]) for name in maps if row.get(name) is not None}
                    _send("row", {**row, **pairs})
        _send("end", None)
    except BrokenPipeError:
        os._exit(0)  # nobody reads any more
    except MemoryError:
        _send("fault", f"it takes more than {limit / 2**30:.1f} GiB of memory")
    except Exception as error:  # pyarrow raises many types for a broken file
        memory = type(error).__name__ == "ArrowMemoryError"
        _send("fault", f"it takes more than {limit / 2**30:.1f} GiB of memory" if memory else _reason(error))
    sys.stdout.flush()


def _parquet(stream: BinaryIO, wanted: list[str]) -> tuple[Any, Iterator[Any]]:
    file = import_module("pyarrow.parquet").ParquetFile(stream)
    schema = file.schema_arrow
    return schema, file.iter_batches(batch_size=_ROWS, columns=_columns(schema.names, wanted), use_threads=False)


def _arrow(stream: BinaryIO, wanted: list[str]) -> tuple[Any, Iterator[Any]]:
    ipc = import_module("pyarrow.ipc")
    batches: Iterator[Any]
    try:
        file = ipc.open_file(stream)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    except Exception:  # not the form for files, then the one for streams
        stream.seek(0)
        file = ipc.open_stream(stream)
        batches = iter(file)
    columns = _columns(file.schema.names, wanted)
    chosen = (batch.select(columns) if columns is not None else batch for batch in batches)
    return file.schema, (batch.slice(start, _ROWS) for batch in chosen for start in range(0, batch.num_rows, _ROWS))


def _columns(there: list[str], wanted: list[str]) -> list[str] | None:
    return wanted if wanted and all(name in there for name in wanted) else None


def _send(kind: str, value: object) -> None:
    # A value that JSON does not have is none that a task reads: it is told by its type.
    print(json.dumps([kind, value], default=lambda other: {"type": type(other).__name__}))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
