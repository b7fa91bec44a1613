"""Every query of the dashboard, by a real Prometheus that scrapes a real server: each has an answer."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from onetrunk.client import Client
from onetrunk.serving import Server
from tests.fixtures.manifests import DEPLOY, debian
from tests.fixtures.ports import free_port
from tests.fixtures.tasks import mood_rows

TIMEOUT_S = 120.0


@pytest.fixture
def served(mood_repository: Path) -> Iterator[Server]:
    """A server whose head has a reference, without which there is no drift."""
    with Server(mood_repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture
def prometheus(served: Server, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the server every second, by the project's own configuration otherwise."""
    program = debian("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [urllib.parse.urlsplit(served.metrics_url).netloc]}]
    (tmp_path / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    url = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={url}"], stdout=log, stderr=log)
    try:
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait(60)


def queries() -> dict[str, str]:
    """The dashboard's queries, with every variable at what Grafana puts in: panel -> query."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    found |= {f"annotation {one['name']}": one["expr"] for one in dashboard["annotations"]["list"]}
    for variable in dashboard["templating"]["list"]:
        if values := re.fullmatch(r"label_values\((\w+), (\w+)\)", query_of(variable)):
            found[f"variable {variable['name']}"] = f"count by ({values[2]}) ({values[1]})"
    resolved = {panel: resolve(query) for panel, query in found.items()}
    assert not [query for query in resolved.values() if "$" in query]
    return resolved


def query_of(variable: dict[str, Any]) -> str:
    query = variable["query"]
    return str(query["query"] if isinstance(query, dict) else query)


def resolve(query: str) -> str:
    return query.replace("$__rate_interval", "10s").replace("$instance", ".*").replace("$task", ".*")


def answers(prometheus: str, query: str) -> bool:
    """Whether a query has a series with a number."""
    parameters = urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{parameters}", timeout=60) as response:
            found = json.load(response)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it starts, and listens already
            return False
        raise AssertionError(f"{query}: {error.read().decode()}") from None
    except urllib.error.URLError:  # it starts
        return False
    return any(not math.isnan(float(one["value"][1])) for one in found)


def ask(served: Server) -> None:
    """Requests through both doors, one of them with nothing to read."""
    with Client(served.grpc_url) as client:
        client.predict([row["sentence"] for row in mood_rows(100, seed=3)])
    for text, status in (("some text", 200), (" ", 400)):
        body = json.dumps({"texts": [text]}).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://{served.http_url}/v1/predict", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                found = response.status
        except urllib.error.HTTPError as error:
            found = error.code
        assert found == status


@pytest.mark.slow
def test_every_query_of_the_dashboard_has_an_answer(prometheus: str, served: Server) -> None:
    missing = queries()
    assert len(missing) > 20
    ends = time.monotonic() + TIMEOUT_S
    while missing and time.monotonic() < ends:
        ask(served)
        missing = {panel: query for panel, query in missing.items() if not answers(prometheus, query)}
        time.sleep(0.5)
    assert missing == {}
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=60) as response:
        groups = json.load(response)["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
