"""The dashboard is what its script writes, alerts fire, and every metric that either names is one that a server has."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import yaml
from server_fakes import PATIENCE, FakeEngine, real_server

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docker" / "monitoring"
RULES = MONITORING / "rules" / "alerts.yml"
KEYS = """keys:
  - {name: trainer, key: score-key}
  - {name: prometheus, key: metrics-key, scopes: [metrics]}
  - {name: operator, key: admin-key, scopes: [admin]}
"""


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", MONITORING / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    return module


def queries() -> dict[str, str]:
    """title of the panel and legend -> PromQL, of the whole dashboard."""
    rows = script().PANELS.values()
    return {f"{p.title}: {legend}": q for panels in rows for p in panels for legend, q in p.queries.items()}


def alerts() -> dict[str, str]:
    [group] = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def load(http: httpx.Client, turn: int = 0) -> None:
    """A little of everything: scored twice, so that the cache has it, refused, unknown, swapped. turn: makes it new."""
    body = {"groups": [{"prompt": [1 + turn % 90, 1 + turn // 90], "completions": [[3, 4], [5]]}]}
    key = {"Authorization": "Bearer score-key"}
    for asked in (body, body, {**body, "temperature": 0}):
        http.post("/v1/logprobs", json=asked, headers=key)
    http.get("/no/such/route", headers=key)
    http.post("/admin/reference", json={"model": f"fake-{turn}"}, headers={"Authorization": "Bearer admin-key"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[httpx.Client]:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    engine = FakeEngine()
    engine.peak_flops = 1e12
    with (
        real_server(engine, keys_file=keys, cache_bytes=2**20) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as http,
    ):
        load(http)
        yield http


def test_the_committed_dashboard_is_what_the_script_writes() -> None:
    module = script()
    assert module.TARGET.read_text() == module.built(), "run: python docker/monitoring/dashboard.py"
    board = json.loads(module.built())
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))
    assert {p["datasource"]["uid"] for p in board["panels"] if p["type"] != "row"} == {"${source}"}


def test_every_metric_that_a_panel_or_an_alert_names_is_there(server: httpx.Client) -> None:
    text = server.get("/metrics", headers={"Authorization": "Bearer metrics-key"}).text
    there = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    named = {
        name
        for expression in (*queries().values(), *alerts().values())
        for name in re.findall(r"\b(?:grpo_server|process)_[a-z_]+", expression)
    }
    assert len(named) > 20
    assert named <= there, named - there


def test_every_alert_is_made_to_fire() -> None:
    tested = yaml.safe_load((Path(__file__).parent / "alerts.test.yml").read_text())["tests"]
    fired = {a["alertname"] for t in tested for a in t["alert_rule_test"] if a.get("exp_alerts")}
    silent = {a["alertname"] for t in tested for a in t["alert_rule_test"] if not a.get("exp_alerts")}
    assert fired == silent == set(alerts())


@needs("promtool")
@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", str(RULES)],
        ["check", "config", str(MONITORING / "prometheus.yml")],
        ["test", "rules", str(Path(__file__).parent / "alerts.test.yml")],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_finds_no_fault(command: list[str]) -> None:
    ran = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=PATIENCE * 2)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@needs("prometheus")
def test_every_panel_has_data_once_a_real_prometheus_has_scraped(server: httpx.Client, tmp_path: Path) -> None:
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "grpo-server",
                "authorization": {"credentials": "metrics-key"},
                "static_configs": [{"targets": [server.base_url.netloc.decode()]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "ready to receive web requests" in line:
                break
        missing = queries()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as prometheus:
            for turn in range(1, 2000):
                load(server, turn)
                for name, query in list(missing.items()):
                    asked = {"query": query.replace("$__rate_interval", "30s")}
                    answer = prometheus.get("/api/v1/query", params=asked).json()
                    assert answer["status"] == "success", (name, answer)
                    values = [series["value"][1] for series in answer["data"]["result"]]
                    if values and not all(value == "NaN" for value in values):
                        del missing[name]
                if not missing:
                    break
            assert not missing, "no data for these"
            rules = prometheus.get("/api/v1/rules").json()["data"]["groups"]
            assert {rule["name"] for group in rules for rule in group["rules"]} == set(alerts())
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stderr.close()


def test_compose_starts_monitoring_when_asked_and_only_then() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        for mount in services[name]["volumes"]:
            source = mount.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source
            assert not source.startswith(".") or mount.endswith(":ro")
