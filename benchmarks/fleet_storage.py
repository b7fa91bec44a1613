"""A writer into an object store is killed before each of its requests in turn: is the old release whole every time?

``python -m benchmarks.fleet_storage`` starts moto, an imitation of S3, on the loopback, and sets ``s3_interrupted_ok``
in docs/results/fleet/summary.json. It needs the extras ``s3`` and ``dev-s3``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import tempfile
import urllib.request
from pathlib import Path

from benchmarks.scale import RESULTS
from benchmarks.summary_file import set_figures
from onetrunk.protocol.manifest import Manifest, ModelEntry, VersionEntry
from onetrunk.protocol.names import ENSEMBLES, MANIFEST
from onetrunk.releases.release import publish, pull, read_pointer
from onetrunk.releases.s3 import S3Store
from onetrunk.releases.store import open_store, parse_store

BUCKET = "benchmark"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def write_repository(folder: Path, head: str) -> None:
    """Write a repository of a segment, a head with this content, and the ensembles."""

    def written(files: dict[str, str]) -> dict[str, str]:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}

    models = {}
    for name, content in {"trunk_00_01": "trunk", "head_a": head}.items():
        version = VersionEntry(source="x", files=written({f"{name}/1/model.onnx": content}))
        config = written({f"{name}/config.pbtxt": f"of {content}"})
        models[name] = ModelEntry(served=1, loaded=(1,), versions={1: version}, files=config)
    for name in ENSEMBLES:
        models[name] = ModelEntry(served=1, loaded=(1,), files=written({f"{name}/config.pbtxt": f"pins {head}"}))
    manifest = Manifest(
        onetrunk_version="0",
        trunk="none",
        triton_release="24.10",
        max_length=32,
        buckets=(32,),
        tasks=("a",),
        models=models,
    )
    (folder / MANIFEST).write_text(manifest.text(), encoding="utf-8")


def publish_until(step: int, repository: Path, store: S3Store) -> bool:
    """Publish in a process that is killed before its step-th request; return whether it was."""
    child = os.fork()
    if child == 0:
        requests = 0

        def count(**_: object) -> None:
            nonlocal requests
            requests += 1
            if requests == step:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            store._client.meta.events.register("before-send.s3", count)
            publish(repository, store)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def measure() -> dict[str, object]:
    """Kill a writer before each request, and look at the store after each time."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    bucket = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT", data=b"")
    urllib.request.urlopen(bucket).close()
    with tempfile.TemporaryDirectory() as folder:
        old, new, here = (Path(folder) / name for name in ("old", "new", "here"))
        write_repository(old, "first")
        write_repository(new, "second")
        url = parse_store(f"s3://{BUCKET}/one")
        # Two clients: processes must not share a connection.
        store, unused = open_store(url), open_store(url)
        assert isinstance(unused, S3Store)
        release = publish(old, store).release
        pull(store, here)
        step, whole = 1, True
        while publish_until(step, new, unused):
            found = read_pointer(store).pointer
            pulled = pull(store, here)
            whole &= found is not None and found.release == release and not pulled.written
            step += 1
        pull(store, here)
        same = all(
            (here / file.relative_to(new)).read_bytes() == file.read_bytes()
            for file in new.rglob("*")
            if file.is_file()
        )
    server.stop()
    return {"s3_interrupted_ok": bool(whole and same and step > 5), "s3_kills": step - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure()
    set_figures(options.output / "summary.json", found)
    print(found)


if __name__ == "__main__":
    main()
