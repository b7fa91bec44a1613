"""What somebody else may have put into the place of a file is refused in one line, at once, and before it is held."""

import json
import os
import shutil
import socket
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular, read_json, read_regular, resolve_inside

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(30)]


def fifo(path):
    os.mkfifo(path)


def link_to_device(path):
    path.symlink_to("/dev/zero")


def link_outside(path):
    outside = path.parent.parent / "outside"
    outside.write_text("{}")
    path.symlink_to(outside)


def link_in_a_circle(path):
    path.symlink_to(path.name)


def folder(path):
    path.mkdir()


def unix_socket(path):
    # The name of a socket is short: it is made under its own name in the folder.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def sparse(path):
    with path.open("wb") as stream:
        stream.truncate(2**40)


IN_PLACE_OF_A_FILE = [fifo, link_to_device, link_outside, link_in_a_circle, folder, unix_socket, sparse]


def refused(call):
    """The message with which a call is refused, which is one line."""
    with pytest.raises(UserError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("put", IN_PLACE_OF_A_FILE)
def test_only_a_regular_file_of_the_folder_is_read(tmp_path, put):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    put(bundle / "file")
    assert str(bundle / "file") in refused(lambda: read_regular(bundle / "file", max_bytes=1000, inside=bundle))


@pytest.mark.parametrize("put", [fifo, link_to_device, link_in_a_circle, folder, unix_socket, sparse])
def test_links_may_be_followed_and_still_only_to_regular_files(tmp_path, put):
    put(tmp_path / "target")
    (tmp_path / "link").symlink_to("target")
    refused(lambda: open_regular(tmp_path / "link", max_bytes=1000))


def test_a_link_within_the_folder_is_followed(tmp_path):
    (tmp_path / "file").write_text("[1]")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link", max_bytes=10, inside=tmp_path) == [1]


PARTS = st.sampled_from(["..", ".", "", "a", "b", "link", "up", "etc", "\0"])


@given(parts=st.lists(PARTS, max_size=6), absolute=st.booleans())
def test_no_path_of_a_file_leads_out(tmp_path_factory, parts, absolute):
    root = tmp_path_factory.getbasetemp() / "root"
    if not root.exists():
        (root / "a" / "b").mkdir(parents=True)
        (root / "link").symlink_to("/etc")
        (root / "a" / "up").symlink_to("../..")
    path = ("/" if absolute else "") + "/".join(parts)
    try:
        found = resolve_inside(root, path)
    except UserError:
        pass
    else:
        assert found.is_relative_to(root.resolve())
        assert found != root.resolve()
        assert not absolute


@given(text=st.text(st.characters(categories=["Cs", "L"]), min_size=1))
def test_half_of_a_surrogate_pair_is_refused_wherever_it_is(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.json"
    for values in ([text], {text: 1}, {"a": [{"b": text}]}):
        path.write_text(json.dumps(values))
        if any("\ud800" <= character <= "\udfff" for character in json.loads(json.dumps(text))):
            with pytest.raises(ValueError, match="half of a surrogate pair") as raised:
                read_json(path, max_bytes=10_000)
            assert str(raised.value).isprintable()
            str(raised.value).encode()
        else:
            assert read_json(path, max_bytes=10_000) == values


# Bundles.


@pytest.fixture
def bundle(tiny_heads, tmp_path):
    return shutil.copytree(tiny_heads / "mood", tmp_path / "heads" / "mood")


def with_values(bundle, **values):
    spec = json.loads((bundle / "head.json").read_text())
    (bundle / "head.json").write_text(json.dumps({**spec, **values}))


@pytest.mark.parametrize("name", ["head.json", "head.safetensors"])
@pytest.mark.parametrize("put", IN_PLACE_OF_A_FILE)
def test_a_bundle_of_anything_but_files_is_refused(bundle, name, put):
    from onetrunk.nn.bundle import load_bundle

    (bundle / name).unlink()
    put(bundle / name)
    assert str(bundle) in refused(lambda: load_bundle(bundle))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"layers": 10**9}, "layers"),
        ({"tap": 10**9}, "tap"),
        ({"width": 2**40}, "width"),
        ({"max_length": 10**12}, "max_length"),
        ({"labels": [f"label {number}" for number in range(20_000)]}, "labels"),
        ({"labels": ["yes", "n" * 100_000]}, "labels"),
        ({"labels": ["yes", "\ud800"]}, "surrogate"),
        ({"story": {"\udfff": 1}}, "surrogate"),
        ({"trunk": "t" * 10_000}, "trunk"),
        ({"metric": "m" * 10_000}, "metric"),
        ({"licence": "l" * 100_000}, "licence"),
        ({"recipe": {"note": "n" * 5_000_000}}, "bytes"),
        ({"layers": 100}, "layers"),
        ({"width": 16_384}, "width"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_head_json_says_is_bounded_before_anything_is_made(bundle, tiny_trunk, values, named):
    from onetrunk.nn.bundle import load_bundle

    with_values(bundle, **values)
    tracemalloc.start()
    try:
        message = refused(lambda: load_bundle(bundle, trunk=tiny_trunk))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert named in message
    assert len(message) < 1000
    message.encode()
    assert peak < 100 * 2**20


def safetensors_of(header, data=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of({f"t{n}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for n in range(500_000)}),
        safetensors_of({f"t{n}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for n in range(500)}),
        (2**63).to_bytes(8, "little") + b"{}",
        safetensors_of(b"[" * 100_000),
        safetensors_of({"t": {"dtype": "F16", "shape": [2**40], "data_offsets": [0, 2**41]}}),
        safetensors_of({"t": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 2]}}, b"ab"),
        safetensors_of(b"7"),
        b"",
    ],
    ids=["many tensors", "too many tensors", "long header", "deep", "larger than it is", "negative", "number", "empty"],
)
def test_weights_are_bounded_by_what_head_json_implies(bundle, content):
    from onetrunk.nn.bundle import load_bundle

    (bundle / "head.safetensors").write_bytes(content)
    assert "head.safetensors" in refused(lambda: load_bundle(bundle))


# Trunks.


@pytest.fixture
def trunk(tiny_trunk_folder, tmp_path):
    return shutil.copytree(tiny_trunk_folder, tmp_path / "trunk")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("put", [fifo, link_to_device, folder, sparse])
def test_a_trunk_of_anything_but_files_is_refused(trunk, name, put):
    from onetrunk.nn.trunk import load_trunk

    (trunk / name).unlink()
    put(trunk / name)
    assert str(trunk) in refused(lambda: load_trunk(trunk))


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 128},
        {"hidden_size": 2**40},
        {"vocab_size": 2**22},
        {"intermediate_size": 2**18},
        {"max_position_embeddings": -1},
        {"num_attention_heads": 0},
        {"num_attention_heads": 7},
        {"hidden_size": "wide"},
        {"hidden_act": "\u0001 no function"},
        {"hidden_dropout_prob": {}},
    ],
    ids=str,
)
def test_a_trunk_is_as_large_as_its_weights(trunk, values):
    from onetrunk.nn.trunk import load_trunk

    config = json.loads((trunk / "config.json").read_text())
    (trunk / "config.json").write_text(json.dumps({**config, **values}))
    assert str(trunk) in refused(lambda: load_trunk(trunk))


@pytest.mark.parametrize("where", ["vocab", "special"])
def test_ids_beyond_the_embeddings_are_found_before_anything_is_built(trunk, where):
    from onetrunk.nn.trunk import load_trunk

    tokenizer = json.loads((trunk / "tokenizer.json").read_text())
    if where == "vocab":
        tokenizer["model"]["vocab"]["zzz"] = 70_000
    else:
        tokenizer["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [70_000]
    (trunk / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "found id 70000" in refused(lambda: load_trunk(trunk))


# TOML, records and logs.


@pytest.mark.parametrize("put", [fifo, link_to_device, folder, sparse, unix_socket])
def test_toml_of_anything_but_a_file_is_refused(tmp_path, put):
    from onetrunk.toml_file import read_toml

    put(tmp_path / "task.toml")
    refused(lambda: read_toml(tmp_path / "task.toml", "task file"))


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a = " + "1" * 10_000, 'a = "\ud800"'])
def test_toml_that_exhausts_its_reader_is_refused(tmp_path, content):
    from onetrunk.toml_file import read_toml

    (tmp_path / "task.toml").write_bytes(content.encode(errors="surrogatepass"))
    refused(lambda: read_toml(tmp_path / "task.toml", "task file"))


@pytest.mark.parametrize("put", [fifo, link_to_device, folder, sparse])
def test_records_of_anything_but_files_are_refused(tmp_path, put):
    from onetrunk.distill.costs import CostTable
    from onetrunk.distill.trials import read_trials
    from onetrunk.repository.versions import read_group
    from onetrunk.training.runs import read_record

    put(tmp_path / "group.json")
    for read in (CostTable.read, read_trials, read_record, lambda path: read_group(path.parent)):
        refused(lambda read=read: read(tmp_path / "group.json"))


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "a\0b"])
def test_no_record_leads_out_of_its_folder(name):
    from pydantic import ValidationError

    from onetrunk.distill.plan_file import PlannedHead
    from onetrunk.tasks import Recipe
    from onetrunk.training.runs import Distillation, RunSpec

    for make in (
        lambda: Distillation(teacher=name),
        lambda: RunSpec(task=name, role="fork", recipe=Recipe()),
        lambda: PlannedHead(tap=1, score=0.5, full=0.5, run=name, layers=1),
    ):
        with pytest.raises(ValidationError):
            make()


def test_the_log_is_read_line_by_line(tmp_path):
    from onetrunk.deploy.history import History

    history = History(tmp_path)
    history.add(action="deploy", task="mood")
    with (tmp_path / "deployments.jsonl").open("ab") as stream:
        stream.write(b"[" * 100_000 + b"\n")
        stream.truncate(64 * 2**20)  # a hole: a line of zeros
    history.add(action="remove", task="mood")
    tracemalloc.start()
    try:
        assert [entry["action"] for entry in history.entries()] == ["deploy", "remove"]
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("put", [fifo, link_to_device, link_outside])
def test_the_log_is_a_file(tmp_path, put):
    from onetrunk.deploy.history import History

    repository = tmp_path / "repository"
    repository.mkdir()
    put(repository / "deployments.jsonl")
    refused(lambda: list(History(repository).entries()))


def test_writers_of_one_file_do_not_share_what_they_write_aside(tmp_path):
    from onetrunk.files import atomic_write

    path = tmp_path / "a.json"
    # Threads have one process id, and so may processes in containers.
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "first", "the outer one ended last"
    with atomic_write(tmp_path / "a.toml") as toml, atomic_write(tmp_path / "a.json") as json_file:
        assert toml != json_file
        for file in (toml, json_file):
            file.touch()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.toml"]
