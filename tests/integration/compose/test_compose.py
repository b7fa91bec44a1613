"""docker-compose.yml says nothing that is not so: each path, port, flag, name and version is held to its source."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from locks.make import packages
from onetrunk.client.bench.perf_analyzer import NoPerfAnalyzer, find_perf_analyzer
from onetrunk.export.release import DEFAULT_RELEASE, RELEASES
from onetrunk.protocol import __version__
from onetrunk.protocol.names import MULTITASK, MULTITASK_TOKENS
from onetrunk.repository.configs import MAX_TEXT_BYTES
from onetrunk.serving.installation import find_triton
from tests.fixtures.compose import COMPOSE, DOCKERFILE, FRONT, ROOT, SERVE, TRITONS, VARIABLE, flags, read_compose
from tests.fixtures.wheel import build

FLAG = re.compile(r"--?[a-z][a-z0-9-]*")
PROFILES = ("gpu", "bench", "metrics")


def compose_programs() -> list[list[str]]:
    """The Compose programs on this machine, old (docker-compose) and new (docker compose)."""
    candidates = [["docker-compose"], ["docker", "compose"]]
    return [
        program
        for program in candidates
        if shutil.which(program[0]) and subprocess.run([*program, "version"], capture_output=True).returncode == 0
    ]


def resolve_with(program: list[str], variables: dict[str, str]) -> dict[str, Any]:
    """What a Compose program makes of the file."""
    arguments = [argument for profile in PROFILES for argument in ("--profile", profile)]
    environment = {name: value for name, value in os.environ.items() if name not in documented_variables()}
    done = subprocess.run(
        [*program, "-f", str(COMPOSE), *arguments, "config"],
        env={**environment, **variables},
        cwd="/",  # where no .env lies
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    resolved: dict[str, Any] = yaml.safe_load(done.stdout)
    return resolved


def documented_variables() -> set[str]:
    """The variables in the table of docs/docker.md."""
    return set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "docker.md").read_text(encoding="utf-8"), re.M))


def triton_flags() -> set[str]:
    """Every flag that the real Triton 2.51.0 (release 24.10) names in its help."""
    triton = find_triton()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(triton.libraries)}
    # Triton exits 1 after --help.
    helped = subprocess.run([triton.binary, "--help"], env=environment, capture_output=True, text=True, timeout=60)
    return set(re.findall(r"^  (--[a-z0-9-]+)", helped.stdout + helped.stderr, re.M))


def bind_mounts(service: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """A service's bind mounts: path on the host, path in the container."""
    for volume in service.get("volumes", []):
        if volume["type"] == "bind":
            yield ROOT / volume["source"], volume["target"]


def on_host(service: dict[str, Any], inside: str) -> Path:
    """Where a path inside a service's container comes from."""
    if "build" in service:
        context = ROOT / service["build"]["context"]
        dockerfile = context / service["build"].get("dockerfile", "Dockerfile")
        for names, folder in re.findall(r"^COPY (?!--)(.+) (\S+/)$", dockerfile.read_text(encoding="utf-8"), re.M):
            for name in names.split():
                if inside == folder + Path(name).name:
                    return context / name
    for source, target in bind_mounts(service):
        if inside == target or inside.startswith(f"{target}/"):
            return source / inside[len(target) :].lstrip("/") if inside != target else source
    raise AssertionError(f"{inside}: neither mounted nor copied into the image")


# The file as a whole


@pytest.mark.parametrize("program", compose_programs() or [None], ids=lambda p: " ".join(p) if p else "none")
def test_compose_accepts_the_file(program: list[str] | None, services: dict[str, Any]) -> None:
    if program is None:
        pytest.skip("no Compose program here (apt-get install docker-compose)")
    resolved = resolve_with(program, {})["services"]
    assert set(resolved) == set(services)
    # The fixture puts in defaults by itself: it must read what Compose reads.
    for name, service in services.items():
        assert resolved[name].get("command") == service.get("command")
        assert resolved[name].get("image") == service.get("image")


@pytest.mark.parametrize("program", compose_programs() or [None], ids=lambda p: " ".join(p) if p else "none")
def test_compose_puts_variables_in(program: list[str] | None) -> None:
    if program is None:
        pytest.skip("no Compose program here (apt-get install docker-compose)")
    resolved = resolve_with(
        program, {"TRITON_RELEASE": "25.08", "ONETRUNK_HTTP_PORT": "9000", "ONETRUNK_HOST": "10.0.0.1"}
    )
    triton = resolved["services"]["triton"]
    assert triton["image"] == "onetrunk-triton:25.08"
    assert triton["build"]["args"]["TRITON_RELEASE"] == "25.08"
    assert resolved["services"]["bench"]["image"].endswith(":25.08-py3-sdk")
    http = resolved["services"]["front"]["ports"][0]
    if isinstance(http, str):  # docker-compose
        assert http == "10.0.0.1:9000:8000/tcp"
    else:  # docker compose
        assert (http["host_ip"], str(http["published"]), http["target"]) == ("10.0.0.1", "9000", 8000)


def test_every_variable_is_documented_with_its_default() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    documented = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    used = {match[1]: match[2] for match in VARIABLE.finditer(text) if match[1] != "VARIABLE"}
    assert set(used) == documented_variables()
    for name, default in used.items():
        assert re.search(rf"^\| `{name}` \| {f'`{re.escape(default)}`' if default else 'none'} \|", documented, re.M), (
            name
        )
    # A variable without default would be empty, with a warning, for everybody who does not set it.
    assert "$" not in VARIABLE.sub("", text)


def test_plain_up_starts_triton_and_its_front(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if "profiles" not in service] == ["triton", "front"]


# Paths


def test_every_host_path_exists(services: dict[str, Any]) -> None:
    mounts = [path for service in services.values() for path, _ in bind_mounts(service)]
    assert ROOT / "model_repository" in [path.resolve() for path in mounts]
    for path in mounts:
        assert path.exists(), path
    for name in TRITONS:
        assert (ROOT / services[name]["build"]["context"] / "Dockerfile").resolve() == DOCKERFILE


def test_every_path_a_command_names_is_in_its_container(services: dict[str, Any]) -> None:
    for name in TRITONS:
        command = services[name]["command"]
        assert on_host(services[name], command[1]) == SERVE
        assert on_host(services[name], flags(command)["--model-repository"][0]).is_dir()
    prometheus, bench = services["prometheus"], services["bench"]
    assert on_host(prometheus, flags(prometheus["command"])["--config.file"][0]).is_file()
    assert on_host(bench, flags(bench["command"])["--input-data"][0]).is_file()
    for name in re.findall(r"/opt/onetrunk/\S+\.\w+", DOCKERFILE.read_text(encoding="utf-8")):
        assert on_host(services["triton"], name).is_file()


def test_what_is_mounted_from_the_host_is_read_only(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            assert volume["type"] != "bind" or volume["read_only"] is True, volume


# Ports


def test_ports_are_the_ones_the_front_is_told(services: dict[str, Any]) -> None:
    front = services["front"]
    told = flags(front["command"])
    http, grpc, metrics = (told[f"--{port}-port"][0] for port in ("http", "grpc", "metrics"))
    assert [port.rpartition(":")[2] for port in front["ports"]] == [http, grpc, metrics]
    assert front["healthcheck"]["test"][-1] == http
    bench = services["bench"]["command"]
    assert bench[bench.index("-u") + 1] == f"front:{grpc}"
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    targets = [target for job in scraped["scrape_configs"] for c in job["static_configs"] for target in c["targets"]]
    assert targets == [f"front:{metrics}"]


# Flags


def test_every_flag_of_triton_exists(services: dict[str, Any]) -> None:
    known = triton_flags()
    assert "--model-repository" in known
    given = {flag for name in TRITONS for flag in flags(services[name]["command"])}
    assert given <= known, given - known


def test_every_flag_of_perf_analyzer_exists(services: dict[str, Any]) -> None:
    command = services["bench"]["command"]
    assert command[0] == "perf_analyzer"
    try:
        with find_perf_analyzer() as found:
            helped = subprocess.run(
                [found.path, "--help"], env=found.environment, capture_output=True, text=True, timeout=60
            )
    except NoPerfAnalyzer as error:
        pytest.skip(str(error))
    synopsis = (helped.stdout + helped.stderr).partition("==== OPTIONS ====")[0]
    known = set(re.findall(r"(?<=[\t(])--?[a-z][a-z-]*", synopsis))
    assert "--input-data" in known
    given = {argument.partition("=")[0] for argument in command if FLAG.match(argument)}
    assert {"-m", "-u", "-i"} <= given
    assert given <= known, given - known


def test_triton_loads_both_ensembles_and_waits_for_no_other_to_ask(services: dict[str, Any]) -> None:
    for name in TRITONS:
        told = flags(services[name]["command"])
        assert told["--load-model"] == [MULTITASK, MULTITASK_TOKENS]
        # --load-model counts in this mode only.
        assert told["--model-control-mode"] == ["explicit"]
        assert told["--exit-on-error"] == ["true"]
    bench = services["bench"]["command"]
    assert bench[bench.index("-m") + 1] == MULTITASK


def test_gpu_service_differs_by_the_gpu_alone(services: dict[str, Any]) -> None:
    cpu, gpu = (dict(services[name]) for name in TRITONS)
    assert [a for a in cpu["command"] if a not in gpu["command"]] == ["--allow-gpu-metrics=false"]
    own = [argument.partition("=")[0] for argument in gpu["command"] if argument not in cpu["command"]]
    assert own == ["--allow-gpu-metrics", "--cuda-memory-pool-byte-size"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    for key in ("command", "profiles", "deploy"):
        cpu.pop(key, None), gpu.pop(key, None)
    assert cpu == gpu


# Versions


def test_triton_is_the_newest_release_and_loads_what_build_repo_writes(services: dict[str, Any]) -> None:
    newest = list(RELEASES)[-1]
    assert list(RELEASES) == sorted(RELEASES)
    defaults = {match[2] for match in VARIABLE.finditer(COMPOSE.read_text(encoding="utf-8")) if "RELEASE" in match[1]}
    assert defaults == {newest}
    assert newest >= DEFAULT_RELEASE
    written, read = RELEASES[DEFAULT_RELEASE], RELEASES[newest]
    assert (written.max_ir, written.max_opset) <= (read.max_ir, read.max_opset)
    dockerfile = DOCKERFILE.read_text(encoding="utf-8")
    assert f"ARG TRITON_RELEASE={newest}\n" in dockerfile
    assert "ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3\nFROM ${TRITON_IMAGE}\n" in dockerfile
    assert services["bench"]["image"] == f"nvcr.io/nvidia/tritonserver:{newest}-py3-sdk"


def test_the_front_is_this_version_of_the_project(services: dict[str, Any]) -> None:
    assert services["front"]["image"] == f"onetrunk-front:{__version__}"
    assert (ROOT / services["front"]["build"]["context"] / services["front"]["build"]["dockerfile"]).resolve() == FRONT


def test_the_fronts_image_is_built_from_what_the_context_has(tmp_path: Path) -> None:
    """Without Docker: the wheel is built from the paths that the Dockerfile copies, which .dockerignore must let in."""
    dockerfile = FRONT.read_text(encoding="utf-8")
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    first, _, second = dockerfile.partition("\n\n")
    for stage in (first, second):
        for names in re.findall(r"^COPY (?!--)(.+) \S+$", stage, re.M):
            assert set(names.split()) <= set(allowed), names
    for names in re.findall(r"^COPY (.+) \S+$", first, re.M):
        for name in names.split():
            source = ROOT / name
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    with ZipFile(build("wheel", tmp_path, tmp_path / "dist")) as wheel:
        assert "onetrunk/serving/front/__init__.py" in wheel.namelist()
        (scripts,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        assert f"{read_compose({})['services']['front']['command'][0]} = " in wheel.read(scripts).decode()


def test_tokenizers_is_the_version_the_project_is_tested_with() -> None:
    (pinned,) = packages((DOCKERFILE.parent / "requirements.txt").read_text(encoding="utf-8"))
    assert pinned.startswith("tokenizers==")
    assert pinned in packages((ROOT / "locks" / "serving.txt").read_text(encoding="utf-8"))


def test_no_image_moves_under_its_tag(services: dict[str, Any]) -> None:
    for service in services.values():
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


# Starting, stopping, measuring


def test_requests_in_flight_have_time_to_finish(services: dict[str, Any]) -> None:
    for name in TRITONS:
        (seconds,) = flags(services[name]["command"])["--exit-timeout-secs"]
        assert int(services[name]["stop_grace_period"].rstrip("s")) > int(seconds)


def test_curl_gives_up_before_the_healthcheck_does(services: dict[str, Any]) -> None:
    check = services["triton"]["healthcheck"]
    assert int(check["test"][check["test"].index("--max-time") + 1]) < int(check["timeout"].rstrip("s"))


def test_bench_waits_for_an_answer_and_sends_real_text(services: dict[str, Any]) -> None:
    bench = services["bench"]
    assert bench["depends_on"]["front"]["condition"] == "service_healthy"
    rows = json.loads((ROOT / "deploy/bench/texts.json").read_text(encoding="utf-8"))["data"]
    texts = [text for row in rows for text in row["text"]]
    assert len(rows) == len(texts) == len(set(texts)) >= 10
    assert all(row.keys() == {"text"} for row in rows)
    assert all(text.strip() and len(text.encode()) < MAX_TEXT_BYTES for text in texts)
