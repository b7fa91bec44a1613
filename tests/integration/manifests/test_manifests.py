"""What is in deploy/ besides the chart: kustomize, KServe, alerts, the dashboard, the collector, and Dockerfiles."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from onetrunk.protocol import __version__
from tests.fixtures.compose import flags
from tests.fixtures.manifests import (
    CHART,
    DEPLOY,
    ROOT,
    debian,
    documents,
    faults,
    kserve_faults,
    of_kind,
    run,
    template,
    tool,
)

METRIC = re.compile(r"\b(?:onetrunk|nv)_[a-z0-9_]+")


def test_the_base_is_the_chart_as_it_is_now() -> None:
    base = (DEPLOY / "kustomize" / "base" / "onetrunk.yaml").read_text(encoding="utf-8")
    assert documents(base) == template("repository.claim=onetrunk-models"), base.splitlines()[0]


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_an_overlay_is_what_kubernetes_takes(overlay: str) -> None:
    manifests = documents(run(tool("kubectl"), "kustomize", DEPLOY / "kustomize" / "overlays" / overlay))
    assert {one["kind"]: faults(one) for one in manifests} == {one["kind"]: [] for one in manifests}
    (deployment,) = of_kind(manifests, "Deployment")
    triton, _ = deployment["spec"]["template"]["spec"]["containers"]
    assert triton["name"] == "triton"
    (claim,) = of_kind(manifests, "PersistentVolumeClaim")
    models, *_ = deployment["spec"]["template"]["spec"]["volumes"]
    assert models["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    if overlay == "gpu":
        (of_chart,) = of_kind(template("repository.claim=m", "triton.gpus=1"), "Deployment")
        expected, _ = of_chart["spec"]["template"]["spec"]["containers"]
        assert flags(triton["args"]) == flags(expected["args"])
        assert triton["resources"]["limits"] == expected["resources"]["limits"]
    else:
        assert triton["resources"]["requests"] == {"cpu": "4", "memory": "1Gi"}
        assert triton["resources"]["limits"] == {"memory": "2Gi"}


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("servingruntime.yaml", "V1alpha1ServingRuntime"),
        ("inferenceservice.yaml", "V1beta1InferenceService"),
        ("canary.yaml", "V1beta1InferenceService"),
    ],
)
def test_kserve_knows_every_field(file: str, model: str) -> None:
    tool("helm")
    (manifest,) = documents((DEPLOY / "kserve" / file).read_text(encoding="utf-8"))
    assert kserve_faults(manifest, model) == []
    # The check itself finds what it should.
    broken = json.loads(json.dumps(manifest))
    broken["spec"]["predictors"] = {}
    assert kserve_faults(broken, model) == [f"/spec/predictors: {model}Spec has no such field"]


def test_kserve_runs_the_containers_as_the_chart_does() -> None:
    (runtime,) = documents((DEPLOY / "kserve" / "servingruntime.yaml").read_text(encoding="utf-8"))
    triton, front = runtime["spec"]["containers"]
    (deployment,) = of_kind(template("repository.claim=m"), "Deployment")
    of_chart = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["containers"]}
    assert triton["name"] == "kserve-container"  # where KServe puts /mnt/models
    assert [one.replace("/mnt/models", "/models") for one in triton["args"]] == of_chart["triton"]["args"]
    assert triton["image"] == of_chart["triton"]["image"]
    assert front["image"] == of_chart["front"]["image"]
    told = flags(front["args"])
    assert (told["--http-port"], told["--grpc-port"]) == (["8080"], ["9000"])
    services = [
        documents((DEPLOY / "kserve" / name).read_text(encoding="utf-8"))[0]
        for name in ("inferenceservice.yaml", "canary.yaml")
    ]
    formats = {(one["name"], one["version"]) for one in runtime["spec"]["supportedModelFormats"]}
    for service in services:
        model = service["spec"]["predictor"]["model"]
        assert model["runtime"] == runtime["metadata"]["name"]
        assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert [port["containerPort"] for port in services[0]["spec"]["predictor"]["model"]["ports"]] == [8080, 9000]


def test_sockets_of_the_runtime_are_closed_to_others(tmp_path: Path) -> None:
    (runtime,) = documents((DEPLOY / "kserve" / "servingruntime.yaml").read_text(encoding="utf-8"))
    (tmp_path / "serve-front").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "serve-front").chmod(0o755)
    front = runtime["spec"]["containers"][1]
    command = [one.replace("/run/onetrunk", str(tmp_path / "run")) for one in [*front["command"], *front["args"]]]
    (tmp_path / "run").mkdir()
    done = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(tmp_path / "run" / "sockets"), *front["args"]]
    assert (tmp_path / "run" / "sockets").stat().st_mode & 0o777 == 0o700


def test_alerts_fire_for_what_they_are_about() -> None:
    promtool = debian("promtool")
    run(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert "SUCCESS" in run(promtool, "test", "rules", DEPLOY / "prometheus" / "rules_test.yml")


def test_every_alert_has_a_test() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert alerts == {
        case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]
    }


def test_every_metric_that_is_asked_for_is_documented() -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    asked = {
        metric
        for file in ("grafana/dashboard.json", "prometheus/rules.yml")
        for metric in METRIC.findall((DEPLOY / file).read_text(encoding="utf-8"))
    }
    assert len(asked) > 15
    for metric in asked:
        name = re.sub(r"_(bucket|sum|count)$", "", metric) if metric.startswith("onetrunk_") else metric
        assert name in documented or metric.startswith("nv_inference_"), metric


def test_the_dashboard_is_provisioned(services: dict[str, Any]) -> None:
    grafana = services["grafana"]
    mounts = {volume["target"]: ROOT / volume["source"] for volume in grafana["volumes"]}
    dashboard = json.loads(mounts["/etc/grafana/dashboards/onetrunk.json"].read_text(encoding="utf-8"))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    folder = mounts["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "onetrunk.yml").read_text(encoding="utf-8"))["providers"]
    assert f"{provider['options']['path']}/onetrunk.json" in mounts
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


def test_the_collector_has_all_that_its_pipelines_name() -> None:
    collector = yaml.safe_load((DEPLOY / "otel" / "collector.yaml").read_text(encoding="utf-8"))
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*/Dockerfile")), ids=lambda file: file.parent.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    run(tool("hadolint"), file)


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("*/Dockerfile")), ids=lambda file: file.parent.name)
def test_an_image_says_what_it_is_and_its_base_can_be_pinned(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for label in ("title", "description", "licenses", "version"):
        assert f'org.opencontainers.image.{label}="' in text
    assert f'org.opencontainers.image.version="{__version__}"' in text
    # Every base is a name that --build-arg replaces, such as by one with a digest.
    for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert re.search(rf"^ARG {re.escape(base.strip('${}'))}=\S+:\S+$", text, re.MULTILINE), base


def test_an_image_has_what_its_dockerfile_copies() -> None:
    for file in (DEPLOY / "builder" / "Dockerfile", DEPLOY / "front" / "Dockerfile"):
        ignore = file.with_name("Dockerfile.dockerignore")
        listed = (ignore if ignore.exists() else ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        kept = {line.removeprefix("!") for line in listed if line.startswith("!")}
        for sources in re.findall(r"^COPY (?!--)(.+) \S+$", file.read_text(encoding="utf-8"), re.M):
            for source in sources.split():
                assert (ROOT / source).exists(), source
                assert source in kept, source
    assert (CHART / "Chart.yaml").is_file()
