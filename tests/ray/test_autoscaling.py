"""Ray starts a second replica when tokens queue, of what the first one hosts by then.

Skipped where Ray is not installed; `make test-ray` has an environment for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from grpo_client import ReferenceClient
from grpo_server.config import ServerConfig
from ray_models import model

ray = pytest.importorskip("ray", reason="Ray is not installed; make test-ray has an environment for it")

pytestmark = pytest.mark.timeout(900)  # seconds; a busy machine takes minutes to bring Ray and two engines up

PORT = 8742
URL = f"http://127.0.0.1:{PORT}"
APPLICATION = "growing"


@pytest.fixture
def second(tmp_path: Path) -> Iterator[str]:
    """One replica of one model, two at the most; the path of another model."""
    from grpo_server.ray.application import application
    from grpo_server.ray.proxy import CALLBACK, VARIABLE
    from ray import serve

    os.environ |= {VARIABLE: CALLBACK, "GRPO_SERVER_ADMIN_KEY": "root", "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    first, other = (str(model(tmp_path / str(seed), seed, hidden=256, layers=4)) for seed in range(2))
    config = ServerConfig(
        model=first, ray=True, replicas=1, max_replicas=2, tokens_per_replica=1000, threads=1, cache_bytes=0
    )
    serve.run(application(config), name=APPLICATION, route_prefix="/")
    yield other
    serve.shutdown()
    ray.shutdown()


def running() -> int:
    from ray import serve

    deployment = serve.status().applications[APPLICATION].deployments["server"]
    return deployment.replica_states.get("RUNNING", 0)


def asked(n: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, 128, 64).tolist()], rng.integers(0, 128, (1, 8, 96)).tolist()


def test_queued_tokens_bring_another_replica_of_what_is_hosted(second: str) -> None:
    assert running() == 1
    with ReferenceClient(URL, api_key="root", timeout=600, max_wait=300) as client:
        info = client.move(second)
        expected = {n: client.score(*asked(n)).logprobs.tobytes() for n in range(12)}
    stop, wrong = threading.Event(), list[str]()

    def ask(n: int) -> None:
        with ReferenceClient(URL, fingerprint=info.fingerprint, max_wait=300) as pinned:
            while not stop.is_set():
                if pinned.score(*asked(n)).logprobs.tobytes() != expected[n]:
                    wrong.append(f"question {n}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    try:
        with ReferenceClient(URL, fingerprint=info.fingerprint, max_wait=300) as pinned:
            while running() < 2:
                pinned.score(*asked(0))
            for n in range(12):
                assert pinned.score(*asked(n)).logprobs.tobytes() == expected[n]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
