"""The Helm chart renders what Kubernetes takes, and runs the containers as docker-compose.yml does."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from onetrunk.cli.deploy_head import deploy_head
from onetrunk.releases.cli import pull_repo
from onetrunk.repository import configs
from onetrunk.serving.front.cli import check_folder, serve_front
from onetrunk.serving.shared_memory import MIB, share_bytes
from tests.fixtures.compose import flags
from tests.fixtures.manifests import CHART, CUSTOM, DEPLOY, faults, of_kind, run, template, tool

CLAIM = "repository.claim=models"
KEYS = ("adminKeySecret=admin", "apiKeysSecret=keys", "tls.secret=tls")
JOB = ("deployHead.bundle=heads/rte", "deployHead.claim=bundles")
EVERYTHING = (
    CLAIM,
    *KEYS,
    *JOB,
    "serviceMonitor.enabled=true",
    "autoscaling.enabled=true",
    "autoscaling.waiting=4",
    "front.trace.url=http://collector.monitoring:4318/v1/traces",
    "triton.gpus=1",
    "nodeSelector.pool=gpu",
    "podAnnotations.team=text",
)
STORE = ("repository.store=s3://bucket/onetrunk", "repository.storeSecret=store", "repository.verifyKey=true")
CASES = {
    "default": (CLAIM,),
    "everything": EVERYTHING,
    "image": ("repository.image=registry.example/models:7",),
    "store": (*STORE, *KEYS, "serviceAccountName=reader"),
    "store by the pod's role": ("repository.store=s3://bucket/one/two",),
    "client certificates": (CLAIM, "tls.secret=tls", "tls.clientCa=true"),
    "bare": (CLAIM, "networkPolicy.enabled=false", "podDisruptionBudget.enabled=false", "service.type=LoadBalancer"),
}


def pod(manifests: list[dict[str, Any]], kind: str = "Deployment") -> dict[str, Any]:
    (found,) = of_kind(manifests, kind)
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def container(manifests: list[dict[str, Any]], name: str) -> dict[str, Any]:
    spec = pod(manifests)
    (found,) = [one for one in (*spec["initContainers"], *spec["containers"]) if one["name"] == name]
    return dict(found)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_kubernetes_knows_every_field(values: tuple[str, ...]) -> None:
    manifests = template(*values)
    assert {"Deployment", "Service"} <= {one["kind"] for one in manifests}
    found = {one["kind"]: faults(one) for one in manifests if one["kind"] not in CUSTOM}
    assert found == {kind: [] for kind in found}


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    (deployment,) = of_kind(template(CLAIM), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    assert any("'resource' was unexpected" in fault for fault in faults(deployment))


def test_lint_has_nothing_to_say() -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in run(tool("helm"), "lint", "--strict", CHART, "--set", CLAIM)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((), "one of repository.claim, repository.image and repository.store"),
        ((CLAIM, "repository.image=a:1"), "one of repository.claim, repository.image and repository.store"),
        ((CLAIM, "repository.store=s3://bucket/one"), "one of repository.claim, repository.image and repository.store"),
        (("repository.store=https://bucket/one",), "store"),
        (("repository.store=s3://key:secret@bucket/one",), "store"),
        ((CLAIM, "repository.storeSecret=a"), "for repository.store"),
        (("repository.store=s3://bucket/one", "repository.verifyKey=true"), "repository.storeSecret"),
        ((CLAIM, "replica=3"), "replica"),
        ((CLAIM, "front.maxConnectionAge=soon"), "maxConnectionAge"),
        ((CLAIM, "tls.clientCa=true"), "tls.secret"),
        ((CLAIM, "autoscaling.enabled=true", "autoscaling.cpu=0"), "autoscaling.cpu"),
        ((CLAIM, *JOB), "adminKeySecret"),
        ((CLAIM, *JOB, "adminKeySecret=a"), "in clear"),
        ((CLAIM, *KEYS, "deployHead.claim=b", "deployHead.bundle=../etc"), "bundle"),
    ],
)
def test_a_mistake_is_refused_with_the_value_to_change(values: tuple[str, ...], reason: str) -> None:
    options = [part for value in values for part in ("--set", value)]
    done = subprocess.run([tool("helm"), "template", CHART, *options], capture_output=True, text=True)
    assert done.returncode != 0
    assert reason in done.stderr


def test_triton_is_told_what_compose_tells_it(services: dict[str, Any]) -> None:
    def told(arguments: list[str]) -> dict[str, list[str]]:
        return flags([one.replace("/run/onetrunk/sockets", "/run/onetrunk") for one in arguments])

    for values, service in (((CLAIM,), "triton"), ((CLAIM, "triton.gpus=1"), "triton-gpu")):
        triton = container(template(*values), "triton")
        assert [*triton["command"], *triton["args"]][:2] == services[service]["command"][:2]
        assert told(triton["args"]) == told(services[service]["command"])
    probe = container(template(CLAIM), "triton")["livenessProbe"]["exec"]["command"]
    assert [one.replace("/sockets", "") for one in probe] == services["triton"]["healthcheck"]["test"][1:]


def test_the_front_knows_every_option_and_gets_ports_that_services_name() -> None:
    manifests = template(*EVERYTHING)
    front = container(manifests, "front")
    known = {name for parameter in serve_front.params for name in parameter.opts}
    assert set(flags(front["args"])) <= known
    ports = {port["name"]: port["containerPort"] for port in front["ports"]}
    assert {f"--{name}-port": [str(port)] for name, port in ports.items()}.items() <= flags(front["args"]).items()
    for service in of_kind(manifests, "Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    (headless,) = [one for one in of_kind(manifests, "Service") if one["spec"].get("clusterIP") == "None"]
    (monitor,) = of_kind(manifests, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert [one for one in of_kind(manifests, "Service") if wanted.items() <= one["metadata"]["labels"].items()] == [
        headless
    ]
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in headless["spec"]["ports"]}


def test_what_selects_pods_selects_these() -> None:
    manifests = template(*EVERYTHING)
    (deployment,) = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    (policy,), (budget,), (scaler,) = (
        of_kind(manifests, kind) for kind in ("NetworkPolicy", "PodDisruptionBudget", "HorizontalPodAutoscaler")
    )
    for selector in (deployment["spec"]["selector"], policy["spec"]["podSelector"], budget["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels
    for service in of_kind(manifests, "Service"):
        assert service["spec"]["selector"].items() <= labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # it is the autoscaler's
    (job,) = of_kind(manifests, "Job")
    admitted = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"] if "podSelector" in peer]
    job_labels = job["spec"]["template"]["metadata"]["labels"].items()
    assert any(len(peer["podSelector"].get("matchLabels", {}).items() & job_labels) > 0 for peer in admitted)
    assert not policy["spec"]["podSelector"]["matchLabels"].items() <= job_labels


@pytest.mark.hostile
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_container_is_hardened(values: tuple[str, ...]) -> None:
    manifests = template(*values)
    for kind in {"Deployment", "Job"} & {one["kind"] for one in manifests}:
        spec = pod(manifests, kind)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in (*spec.get("initContainers", ()), *spec["containers"]):
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert one["resources"]["limits"]["memory"]
            assert one["resources"]["requests"]["cpu"]


@pytest.mark.hostile
def test_keys_are_files_that_triton_does_not_see() -> None:
    manifests = template(*EVERYTHING)
    mounted = {one["name"]: {mount["name"] for mount in one["volumeMounts"]} for one in pod(manifests)["containers"]}
    secrets = {volume["name"] for volume in pod(manifests)["volumes"] if "secret" in volume}
    assert len(secrets) == 3
    assert "keys" in mounted["front"]
    assert not mounted["triton"] & {"keys", *secrets}
    assert not mounted["front"] & secrets
    for kind in ("Deployment", "Job"):
        for one in (*pod(manifests, kind).get("initContainers", ()), *pod(manifests, kind)["containers"]):
            assert not [variable for variable in one.get("env", ()) if "valueFrom" in variable]


@pytest.mark.hostile
def test_what_the_init_container_prepares_is_what_the_front_accepts(tmp_path: Path) -> None:
    (script,) = container(template(*EVERYTHING), "prepare")["command"][2:]
    run_folder, keys, secrets = (tmp_path / name for name in ("run", "keys", "secrets"))
    run_folder.mkdir()
    run_folder.chmod(0o2777)  # as Kubernetes makes it
    keys.mkdir()
    (secrets / "admin" / "..data").mkdir(parents=True)
    (secrets / "admin" / "..data" / "admin.key").write_text("a-key-for-this-test")
    (secrets / "admin" / "admin.key").symlink_to("..data/admin.key")
    for old, new in (("/run/onetrunk", run_folder), ("/run/secrets", keys), ("/secrets/*", secrets / "*")):
        script = script.replace(old, str(new))
    for _ in range(2):  # a pod's init container may run again
        subprocess.run(["sh", "-euc", script], check=True)
    check_folder(run_folder / "sockets")
    assert (keys / "admin.key").read_text() == "a-key-for-this-test"
    assert stat.S_IMODE((keys / "admin.key").stat().st_mode) == 0o600


@pytest.mark.hostile
def test_the_network_policy_lets_in_who_is_named_and_nobody_out() -> None:
    (policy,) = of_kind(template(CLAIM), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []
    assert [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["ingress"]] == [
        ["http", "grpc"],
        ["metrics"],
    ]
    (shut,) = of_kind(template(CLAIM, "networkPolicy.clients=null", "networkPolicy.monitoring=null"), "NetworkPolicy")
    assert not shut["spec"]["ingress"]


def test_each_pod_fetches_the_release_of_a_store_into_what_both_containers_read(tmp_path: Path) -> None:
    manifests = template(*STORE)
    release = container(manifests, "release")
    assert release["image"] == container(manifests, "front")["image"]  # it has the store's client
    program, *arguments = [*release["command"], *release["args"]]
    assert program == "pull-repo"
    mounts = {mount["name"]: mount["mountPath"] for mount in release["volumeMounts"]}
    for name in ("triton", "front"):
        (models,) = [one for one in container(manifests, name)["volumeMounts"] if one["name"] == "models"]
        assert models == {"name": "models", "mountPath": "/models", "readOnly": True}
    (volume,) = [one for one in pod(manifests)["volumes"] if one["name"] == "models"]
    assert volume["emptyDir"] == {"sizeLimit": "2Gi"}
    context = pull_repo.make_context(program, arguments)
    assert str(context.params["store"]) == "s3://bucket/onetrunk"
    assert str(context.params["repository"]) == mounts["models"]
    for file in (context.params["verify_key"], *(Path(one["value"]) for one in release["env"] if "AWS" in one["name"])):
        assert str(file.parent) == mounts["store"]


@pytest.mark.hostile
def test_keys_of_a_store_are_seen_by_the_fetching_container_only_which_may_reach_it() -> None:
    manifests = template(*STORE)
    for one in (*pod(manifests)["initContainers"], *pod(manifests)["containers"]):
        mounted = {mount["name"] for mount in one["volumeMounts"]}
        assert ("store" in mounted) == (one["name"] == "release")
        assert not [variable for variable in one.get("env", ()) if "valueFrom" in variable]
    for values, ports in ((STORE, [53, 53, 443]), ((*STORE, "repository.storePort=9000"), [53, 53, 9000])):
        (policy,) = of_kind(template(*values), "NetworkPolicy")
        assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == ports


@pytest.mark.parametrize(("rows", "tokens"), [(1, 16), (32, 128), (64, 512), (256, 512)])
def test_shared_memory_is_as_large_as_serve_repo_asks_for(rows: int, tokens: int) -> None:
    (volume,) = [
        one
        for one in pod(template(CLAIM, f"model.maxBatchSize={rows}", f"model.longestBucket={tokens}"))["volumes"]
        if one["name"] == "shm"
    ]
    assert volume["emptyDir"]["medium"] == "Memory"
    given = int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * MIB
    config = pb.ModelConfig(max_batch_size=rows, backend="python")
    for name, kind, dims in TOKENIZER:
        config.input.add(name=name, data_type=kind, dims=dims)
    texts = 2 * 2 * rows * 128 * 1024  # both texts of two batches, as long as the front lets them be
    assert given >= share_bytes(config, tokens) + texts


TOKENIZER = [
    *((name, pb.TYPE_STRING, [1]) for name in ("text", "text_pair")),
    *((f"ids_{number}", pb.TYPE_INT64, [-1]) for number in range(6)),
    ("token_words", pb.TYPE_INT64, [-1, 3]),
    ("truncated", pb.TYPE_BOOL, [1]),
]


def test_the_defaults_are_those_of_a_built_repository() -> None:
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    assert f"maxBatchSize: {configs.MAX_BATCH_SIZE}" in values
    assert f'tag: "{release_of_compose()}"' in values


def release_of_compose() -> str:
    return (DEPLOY / "triton" / "Dockerfile").read_text(encoding="utf-8").split("TRITON_RELEASE=")[1].split()[0]


def test_the_job_deploys_to_all_replicas_at_once(tmp_path: Path) -> None:
    (one,) = pod(template(*EVERYTHING), "Job")["containers"]
    programs, log, keys = tmp_path / "bin", tmp_path / "log", tmp_path / "run"
    programs.mkdir()
    keys.mkdir()
    for name in ("admin.key", "ca.crt"):
        (tmp_path / name).write_text("content")
    (programs / "deploy-head").write_text(f'#!/bin/sh\necho "$@" >> {log}\nexit 1\n')
    (programs / "deploy-head").chmod(0o755)
    script = one["command"][2]
    for old in ("/secrets/admin", "/secrets/tls"):
        script = script.replace(old, str(tmp_path))
    script = script.replace("install -m 0600", "cp").replace("/run/onetrunk/", f"{keys}/")
    variables = {variable["name"]: variable["value"] for variable in one["env"]}
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-euc", script], env=variables | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 1, "the Job fails with its command"
    (call,) = log.read_text().splitlines()
    bundle, *options = call.split()
    assert bundle == "/bundles/heads/rte"
    headless = next(one for one in of_kind(template(*EVERYTHING), "Service") if one["spec"].get("clusterIP") == "None")
    assert f"--servers=dns:{headless['metadata']['name']}:8001" in options
    known = {name for parameter in deploy_head.params for name in parameter.opts}
    assert set(flags(options)) <= known
    assert "--tls-ca" in flags(options)
    assert "--insecure" not in options


def test_another_bundle_or_revision_is_another_job() -> None:
    cases = (EVERYTHING, (*EVERYTHING, "deployHead.bundle=heads/sst2"), (*EVERYTHING, "deployHead.revision=2"))
    names = [of_kind(template(*values), "Job")[0]["metadata"]["name"] for values in cases]
    assert len(set(names)) == 3
    assert names[0] == of_kind(template(*EVERYTHING), "Job")[0]["metadata"]["name"]
