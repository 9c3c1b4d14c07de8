"""Two replicas on a Ray cluster of this machine, with a real model: as one server, whatever happens to one of them.

Skipped where Ray is not installed; `make test-ray` has an environment for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from grpo_client import FingerprintMismatch, GrpoClientError, ReferenceClient, Retry, RetryPolicy
from grpo_server.config import ServerConfig
from ray_models import model

ray = pytest.importorskip("ray", reason="Ray is not installed; make test-ray has an environment for it")

pytestmark = pytest.mark.timeout(900)  # seconds; a busy machine takes minutes to bring Ray and two engines up

PORT = 8741
URL = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [model(tmp_path_factory.mktemp("models") / str(seed), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def replicas(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    from grpo_server.ray.application import application
    from grpo_server.ray.proxy import CALLBACK, VARIABLE
    from ray import serve

    os.environ |= {VARIABLE: CALLBACK, "GRPO_SERVER_ADMIN_KEY": "root", "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    state = tmp_path_factory.mktemp("state")
    config = ServerConfig(model=str(models[0]), ray=True, replicas=2, state_dir=state, threads=1, cache_bytes=0)
    serve.run(application(config), name="test", route_prefix="/")
    yield config
    serve.shutdown()
    ray.shutdown()


def pids() -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if "ServeReplica:test:server" in (path / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def asked(n: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    rng = np.random.default_rng(n)
    return [rng.integers(0, 128, 12).tolist()], rng.integers(0, 128, (1, 4, 24)).tolist()


@pytest.mark.usefixtures("replicas")
def test_they_answer_as_one_server_that_is_moved_as_a_whole(models: list[Path]) -> None:
    with ReferenceClient(URL, api_key="root", timeout=600, max_wait=300) as client:
        before = [client.score(*asked(n)) for n in range(8)]
        assert {r.reference.version for r in before} == {1}
        moved = client.move(str(models[1]))
        after = [client.score(*asked(n)) for n in range(8)]
        assert {(r.reference.version, r.reference.fingerprint) for r in after} == {(2, moved.fingerprint)}
        mixed = client.move(str(models[0]), decay=0.25)
        assert mixed.version == 3
        with pytest.raises(ValueError, match="hold"):
            raise ValueError(httpx.post(f"{URL}/admin/reference", json={"model": "x", "hold": True}, headers=_KEY).text)
        last = [client.score(*asked(n)) for n in range(8)]
        assert {r.reference.fingerprint for r in last} == {mixed.fingerprint}
    with ReferenceClient(URL, fingerprint=moved.fingerprint, max_wait=0) as pinned, pytest.raises(FingerprintMismatch):
        pinned.score(*asked(0))


_KEY = {"Authorization": "Bearer root"}


@contextmanager
def load() -> Iterator[list[Retry]]:
    """Four clients that ask all the while. Each answer is that of the replicas as they were at the beginning, to the bit, under
    the version that they had."""
    stop, wrong, retries = threading.Event(), list[str](), list[Retry]()
    with ReferenceClient(URL, max_wait=300) as one:
        expected = {n: one.score(*asked(n)).logprobs.tobytes() for n in range(16)}
        version = one.info().version

    def ask(n: int) -> None:
        try:
            with ReferenceClient(URL, retry=RetryPolicy(max_wait=300, on_retry=retries.append)) as client:
                while not stop.is_set():
                    n = (n + 1) % 16
                    answer = client.score(*asked(n))
                    if answer.logprobs.tobytes() != expected[n] or answer.reference.version != version:
                        wrong.append(f"question {n}: {answer.reference}")
        except GrpoClientError as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=ask, args=(4 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield retries
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.usefixtures("replicas")
def test_a_replica_that_is_killed_loses_nothing_and_comes_back_as_the_others_are() -> None:
    before = pids()
    with load() as retries, ReferenceClient(URL, max_wait=300) as client:
        os.kill(before[0], signal.SIGKILL)
        while len(set(pids()) - set(before)) < 1:
            client.score(*asked(0))
        for _ in range(50):
            client.score(*asked(1))
    assert all("503" in str(retry.error) or "HTTP" not in str(retry.error) for retry in retries)


def test_a_rolling_update_loses_nothing_and_keeps_the_reference(replicas: ServerConfig) -> None:
    from grpo_server.ray.application import application
    from ray import serve

    before = pids()
    with load():
        changed = replicas.model_copy(update={"max_queue_tokens": 2 * replicas.max_queue_tokens})
        serve.run(application(changed), name="test", route_prefix="/")
    assert not set(pids()) & set(before)
