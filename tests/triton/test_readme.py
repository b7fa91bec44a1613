"""The README's commands, run as they are written there."""

import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = ("train-head", "search-heads", "build-repo", "deploy-head", "ask-repo", "bench-repo")


def documented(command):
    """The README's lines that begin with a command, without their trailing remarks."""
    return [shlex.split(line, comments=True) for line in re.findall(rf"^    ({command} .*)$", README, re.MULTILINE)]


_RUN_AS_A_PROCESS = set()


def run(arguments, folder):
    """Run a command: the first time in a process of its own, as a user does, and then in this one, which is quicker."""
    command, *rest = map(str, arguments)
    if command in COMMANDS and command in _RUN_AS_A_PROCESS:
        return run_here(command, rest, folder)
    _RUN_AS_A_PROCESS.add(command)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run([command, *rest], cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def run_here(command, arguments, folder):
    (script,) = (entry for entry in entry_points(group="console_scripts") if entry.name == command)
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(script.load(), arguments)
    finally:
        os.chdir(before)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return subprocess.CompletedProcess([command, *arguments], result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the checkout to the commands, and into which they may write."""
    folder = tmp_path_factory.mktemp("readme")
    for bundle in (ROOT / "heads").glob("*/head.json"):
        (folder / "heads").mkdir(exist_ok=True)
        (folder / "heads" / bundle.parent.name).symlink_to(bundle.parent)
    (folder / "limbs").symlink_to(ROOT / "limbs")
    return folder


@pytest.fixture(scope="module")
def built(checkout):
    command = next(words for words in documented("build-repo") if "all" in words)
    result = run(command, checkout)
    assert result.returncode == 0, result.stderr
    return checkout


def ports_are_free():
    for port in (8000, 8001, 8002):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


@pytest.mark.slow
def test_serve_and_ask(built):
    if not ports_are_free():
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("another program listens on 8000, 8001 or 8002, which the README's commands use")
    assert re.search(r"^    serve-repo\b", README, re.MULTILINE)
    server = subprocess.Popen(
        [Path(sys.executable).parent / "serve-repo", "--json"], cwd=built, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout.readline().startswith("{"), "serve-repo ended before it was ready"
        asked = documented("ask-repo")
        assert len(asked) >= 2
        for command in asked:
            result = run(command, built)
            assert result.returncode == 0, result.stderr
        assert "stsb" in result.stdout
        code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
        result = run([sys.executable, "-c", code], built)
        assert result.returncode == 0, result.stderr
        *reviews, request = result.stdout.splitlines()
        assert [line.split()[0] for line in reviews] == ["positive", "negative"]
        assert request.startswith("PlayMusic ")
        assert "('artist', 'nina simone', 25, 36)" in request
    finally:
        # Not SIGINT: where the tests run in the background, it is ignored from the start.
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        server.stdout.close()


def write_urgent(folder, shift):
    """A bundle of the task `urgent`, made of a shipped one."""
    import torch

    from onetrunk.nn.bundle import load_bundle, save_bundle
    from onetrunk.nn.trunk import load_trunk

    bundle, trunk = load_bundle(ROOT / "heads" / "sst2"), load_trunk()
    trunk.limbs = (ROOT / "limbs",)
    head = bundle.head(trunk)
    with torch.no_grad():
        head.output.bias[0] += shift
    save_bundle(folder, bundle.spec.model_copy(update={"task": "urgent", "labels": ("no", "yes")}), head)


@pytest.mark.slow
def test_change_a_running_server(built, monkeypatch):
    make_key = re.search(r"^    (\(umask .*)$", README, re.MULTILINE).group(1)
    subprocess.run(["sh", "-c", make_key], cwd=built, check=True)
    variable, file = re.search(r"^    export (ONETRUNK_ADMIN_KEY_FILE)=(.*)$", README, re.MULTILINE).groups()
    monkeypatch.setenv(variable, file)
    (serve,) = [line for line in documented("serve-repo") if "--admin-key-file" in line]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    server = subprocess.Popen(
        [Path(sys.executable).parent / serve[0], *serve[1:], "--json", *ports],
        cwd=built,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = ["--url", json.loads(server.stdout.readline())["grpc"]]
        add, rollback, candidate = documented("deploy-head")
        write_urgent(built / "heads" / "urgent", 0.5)
        assert run([*add, *url], built).stdout.startswith("urgent version 1 is live")
        write_urgent(built / "heads" / "urgent", 1.0)
        assert run([*add, *url], built).stdout.startswith("urgent version 2 is live (before: 1)")
        assert run([*rollback, *url], built).stdout.startswith("urgent version 1 is live again (before: 2)")
        write_urgent(built / "candidates" / "urgent", -1.0)
        assert run([*candidate, *url], built).stdout.startswith("urgent version 3 is tried as urgent_candidate")
        (built / "texts.jsonl").write_text('{"text": "a fire", "label": "yes"}\n{"text": "thank you", "label": "no"}\n')
        compared = run(["deploy-head", "--compare", "texts.jsonl", *url], built)
        assert "accuracy, 2 texts" in compared.stdout, compared.stderr
        assert run(["deploy-head", "--promote", *url], built).stdout.startswith("urgent version 3 is live (before: 1)")
        assert run(["deploy-head", "--verify", *url], built).stdout == "manifest, disk and server agree\n"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        server.stdout.close()
        shutil.rmtree(built / "heads" / "urgent", ignore_errors=True)


@pytest.mark.slow
def test_commands_within_a_sentence(built):
    sentences = re.findall(r"`(build-repo [^`]+)`", README)
    assert "build-repo --tasks sst2,cola" in sentences
    for command in sentences:
        result = run([*shlex.split(command), "--output", "two"], built)
        assert result.returncode == 0, result.stderr
    assert {path.name for path in (built / "two").glob("head_*")} == {"head_cola", "head_sst2"}


@pytest.mark.slow
def test_train_a_head_of_ones_own(checkout, tmp_path):
    toml = re.search(r"```toml\n(.*?)```", README, re.DOTALL).group(1)
    (tmp_path / "urgent.toml").write_text(toml)
    random.seed(0)
    for name, rows in (("urgent_train.csv", 48), ("urgent_dev.csv", 16)):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["message", "urgent"])
            for row in range(rows):
                thing = random.choice(["printer", "server", "invoice", "door"])
                writer.writerow(
                    [
                        f"the {thing} is on fire, help now" if row % 2 else f"thanks for the {thing}",
                        ("no", "yes")[row % 2],
                    ]
                )
    result = run([*documented("train-head")[0], "--cache", str(tmp_path / "cache")], tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "heads" / "urgent" / "head.safetensors").is_file()
    build = next(line for line in reversed(documented("build-repo")) if "adopted/heads" not in line)
    result = run(build, tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "model_repository" / "head_urgent" / "config.pbtxt").is_file()


@pytest.mark.parametrize("command", [*COMMANDS, "serve-repo"])
def test_help_has_examples_and_loads_neither_torch_nor_onnx_runtime(command, tmp_path):
    script = Path(sys.executable).parent / command
    check = (
        f"import runpy, sys; sys.argv = ['{command}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'onnxruntime', 'transformers'} & set(sys.modules)"
    )
    result = run([sys.executable, "-c", check], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Examples:" in result.stdout
