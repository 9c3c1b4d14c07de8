"""What kubectl makes of the overlay for KubeRay, and what the files for Ray Serve tell the server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpo_server.config import ServerConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def rendered() -> dict[str, dict[str, Any]]:
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / "overlays" / "ray")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return {o["kind"]: o for o in yaml.safe_load_all(ran.stdout)}


def groups(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The head and the workers."""
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def settings_of(application: dict[str, Any]) -> ServerConfig:
    assert application["import_path"] == "grpo_server.ray:app"
    return ServerConfig(**{**application["args"], "ray": True})


@needs_kubectl
def test_policy_and_budget_select_the_pods_of_the_cluster_and_nothing_else() -> None:
    objects = rendered()
    assert set(objects) == {"RayService", "NetworkPolicy", "PodDisruptionBudget"}
    selectors = [
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    for group in groups(objects["RayService"]):
        labels = group["template"]["metadata"]["labels"].items()
        assert all(selector and selector.items() <= labels for selector in selectors)


@needs_kubectl
def test_a_pod_may_do_nothing_that_it_need_not() -> None:
    head, *workers = groups(rendered()["RayService"])
    assert all(worker["template"]["spec"]["automountServiceAccountToken"] is False for worker in workers)
    dockerfile = (DEPLOY.parent / "docker" / "Dockerfile").read_text()
    for group in (head, *workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"--uid {pod['securityContext']['runAsUser']} " in dockerfile
        assert pod["enableServiceLinks"] is False
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert {"name": "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "value": "grpo_server.ray.proxy:middlewares"} in (
            container["env"]
        )


@needs_kubectl
def test_replicas_have_the_nodes_and_the_time_that_they_need() -> None:
    service = rendered()["RayService"]
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    config = settings_of(application)
    [workers] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    [container] = pod["containers"]
    limits = container["resources"]["limits"]
    assert float(limits["nvidia.com/gpu"]) == config.replica_gpus
    assert float(limits["cpu"]) > config.replica_cpus  # Ray's own processes have the rest
    assert (workers["minReplicas"], workers["maxReplicas"]) == (config.replicas, config.max_replicas)
    assert pod["terminationGracePeriodSeconds"] > config.drain_timeout
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (config.keys_file, config.state_dir):
        assert path is not None
        assert any(path.is_relative_to(mount) for mount in mounts)
    version = service["spec"]["rayClusterConfig"]["rayVersion"]
    pinned = (DEPLOY.parent / "constraints.txt").read_text()
    assert f"ray=={version}" in pinned.splitlines()


def test_the_file_for_a_cluster_of_one_s_own_has_settings_of_the_server() -> None:
    [application] = yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text())["applications"]
    config = settings_of(application)
    assert (config.replicas, config.max_replicas, config.replica_gpus) == (2, 8, 1.0)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_replicas": 1, "replicas": 2}, "max_replicas"),
        ({"simple_grpo": True}, "simple_grpo"),
        ({"upload_dir": "/tmp"}, "upload_dir"),
        ({"tensor_parallel": True}, "tensor_parallel"),
        ({"replica_gpus": -1}, "replica_gpus"),
        ({"tokens_per_replica": 0}, "tokens_per_replica"),
    ],
)
def test_settings_that_replicas_cannot_have_are_refused_by_name(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ServerConfig(model="m", ray=True, **settings)
