"""What kubectl makes of the manifests: two overlays that ask for what the server needs and allow no more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpo_server.config import ENV_PREFIX, ServerConfig
from grpo_server.middleware.key_gate import OPEN_PATHS

DEPLOY = Path(__file__).parents[2] / "deploy"
OVERLAYS = pytest.mark.parametrize("overlay", ["cpu", "gpu"])
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """kind/name -> object. Strict YAML: kubectl refuses a field that is there twice."""
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / "overlays" / overlay)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return {f"{o['kind']}/{o['metadata']['name']}": o for o in yaml.safe_load_all(ran.stdout)}


def pod_of(overlay: str) -> dict[str, Any]:
    return rendered(overlay)["Deployment/grpo-server"]["spec"]["template"]["spec"]


@OVERLAYS
def test_an_overlay_holds_all_that_a_service_needs(overlay: str) -> None:
    assert set(rendered(overlay)) == {
        "Deployment/grpo-server",
        "Service/grpo-server",
        "Service/grpo-server-each",
        "PodDisruptionBudget/grpo-server",
        "HorizontalPodAutoscaler/grpo-server",
        "NetworkPolicy/grpo-server",
    }


@OVERLAYS
def test_everything_selects_the_pods_of_the_deployment(overlay: str) -> None:
    objects = rendered(overlay)
    template = objects["Deployment/grpo-server"]["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    deployment, budget, policy = (
        objects[f"{kind}/grpo-server"]["spec"] for kind in ("Deployment", "PodDisruptionBudget", "NetworkPolicy")
    )
    selectors = [
        deployment["selector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        objects["Service/grpo-server"]["spec"]["selector"],
        objects["Service/grpo-server-each"]["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector, "an empty selector means every pod of the namespace"
        assert selector.items() <= labels
    assert objects["HorizontalPodAutoscaler/grpo-server"]["spec"]["scaleTargetRef"]["name"] == "grpo-server"
    client = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert client == {"grpo-refserver/client": "true"}


@OVERLAYS
def test_a_pod_may_do_nothing_that_it_need_not(overlay: str) -> None:
    pod = pod_of(overlay)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (DEPLOY.parent / "docker" / "Dockerfile").read_text()
    assert f"--uid {pod['securityContext']['runAsUser']} " in dockerfile
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounted = {m["mountPath"]: m for m in container["volumeMounts"]}
    assert {"/models", "/tmp", "/runs"} <= set(mounted), "what is written to, beside a read-only root"
    assert {m["name"] for m in mounted.values()} == {v["name"] for v in pod["volumes"]}
    assert "memory" in container["resources"]["limits"]
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@OVERLAYS
def test_settings_are_the_servers_own_and_no_service_writes_into_them(overlay: str) -> None:
    pod = pod_of(overlay)
    assert pod["enableServiceLinks"] is False, "a Service grpo-server would set GRPO_SERVER_PORT=tcp://..."
    values = {e["name"].removeprefix(ENV_PREFIX).lower(): e["value"] for e in pod["containers"][0]["env"]}
    config = ServerConfig.model_validate(values)
    assert config.keys_file is not None
    assert str(config.keys_file.parent) in {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert pod["terminationGracePeriodSeconds"] > config.drain_timeout
    gpu = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert (gpu, config.device) == (("1", "cuda") if overlay == "gpu" else (None, "auto"))


@OVERLAYS
def test_probes_ask_what_needs_no_key(overlay: str) -> None:
    [container] = pod_of(overlay)["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= OPEN_PATHS
    assert {container[f"{name}Probe"]["httpGet"]["port"] for name in paths} == {"http"}


@OVERLAYS
def test_replicas_follow_the_queue(overlay: str) -> None:
    objects = rendered(overlay)
    scaler = objects["HorizontalPodAutoscaler/grpo-server"]["spec"]
    [metric] = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "grpo_server_queue_tokens"
    assert int(metric["pods"]["target"]["averageValue"]) < ServerConfig(model="m").max_queue_tokens
    assert scaler["minReplicas"] <= objects["Deployment/grpo-server"]["spec"]["replicas"] <= scaler["maxReplicas"]
    rolling = objects["Deployment/grpo-server"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling == (
        {"maxUnavailable": 1, "maxSurge": 0} if overlay == "gpu" else {"maxUnavailable": 0, "maxSurge": 1}
    )
