"""The whole generated repository, tree and texts, against files that a reader can look at.

Renewed by ``pytest --renew-golden`` after a change that is meant.
"""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

GOLDEN = Path(__file__).parent / "golden"


def texts_of(repository, trunk):
    """Path -> content of all small text files, the trunk's identity replaced; binaries are there by name only."""
    found = {}
    for path in sorted(repository.rglob("*")):
        name = str(path.relative_to(repository))
        if path.suffix in (".pbtxt", ".txt") or path.name == ".keep":
            found[name] = path.read_text().replace(trunk.identity, "bert-4x32@TRUNK")
        elif path.is_file():
            found[name] = None
    return found


def test_generated_repository_is_the_golden_one(tiny_repository, tiny_trunk, request):
    found = texts_of(tiny_repository, tiny_trunk)
    tree = "".join(f"{name}\n" for name in found)
    written = {"tree.txt": tree, **{name: text for name, text in found.items() if text}}
    if request.config.getoption("--renew-golden"):
        for name, text in written.items():
            (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name).write_text(text)
    golden = {str(path.relative_to(GOLDEN)): path.read_text() for path in GOLDEN.rglob("*") if path.is_file()}
    assert written == golden


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("config.pbtxt")), ids=lambda path: path.parent.name)
def test_golden_config_is_one_that_triton_parses(path):
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert config.name == path.parent.name
    assert config.max_batch_size == 32
    assert bool(config.backend) != bool(config.platform)
