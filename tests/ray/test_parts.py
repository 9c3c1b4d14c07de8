"""What Ray is told, without a cluster: where a prompt goes, how many replicas there are, what a lost one's client hears."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed; make test-ray has an environment for it")

from grpo_client.ring import PROMPT_KEY, Ring, prompt_key, write_key
from grpo_server.ray import app
from grpo_server.ray.proxy import LostReplicas
from grpo_server.ray.router import PromptRouter
from grpo_server.ray.scaling import QueuedTokens

NAMES = ["a", "b", "c"]


def chosen(router: Any, key: int | None, loads: dict[str, int]) -> list[str]:
    replicas = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in NAMES]
    headers = [] if key is None else [(PROMPT_KEY.lower().encode(), write_key(key).encode())]
    request = SimpleNamespace(args=[SimpleNamespace(_asgi_scope={"headers": headers})])
    router.loads = loads
    ranks = asyncio.run(PromptRouter.choose_replicas(router, replicas, request))
    return ["".join(one.replica_id.unique_id for one in rank) for rank in ranks]


@pytest.fixture
def router() -> Any:
    made = SimpleNamespace(_ring=Ring(()), loads={})
    made.replica_queue_len_cache = SimpleNamespace(get=lambda one: made.loads.get(one.unique_id))
    return made


def test_a_prompt_goes_where_the_client_s_own_ring_has_it(router: Any) -> None:
    for n in range(40):
        key = prompt_key(f"prompt {n}")
        assert chosen(router, key, {}) == list(Ring(NAMES).clockwise(key))


def test_a_busy_replica_s_prompts_go_to_the_next(router: Any) -> None:
    key = prompt_key("a prompt")
    home, second, _ = Ring(NAMES).clockwise(key)
    ranks = chosen(router, key, {home: 9})
    assert ranks[0] == second
    assert sorted(ranks) == NAMES


def test_what_has_no_prompt_goes_to_one_of_two_that_are_drawn(router: Any) -> None:
    [drawn] = chosen(router, None, {})
    assert len(drawn) == 2


@pytest.mark.parametrize(("queued", "wanted"), [((), 2), ((0, 0), 2), ((150, 151), 4), ((10**6,), 8)])
def test_replicas_follow_the_queued_tokens(queued: tuple[int, ...], wanted: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"queue_tokens": dict(enumerate(queued))} if queued else None,
        capacity_adjusted_min_replicas=2,
        capacity_adjusted_max_replicas=8,
    )
    assert QueuedTokens(tokens_per_replica=100)(context) == (wanted, {})  # type: ignore[arg-type]


def through_proxy(app: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(LostReplicas(app)), base_url="http://proxy"
        ) as client:
            return await client.post("/v1/logprobs", content=b"{}")

    return asyncio.run(ask())


def test_who_asked_a_replica_that_died_may_ask_again() -> None:
    async def dead(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    answer = through_proxy(dead)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert answer.headers["retry-after-ms"] == "50"


def test_an_answer_goes_through_as_it_is() -> None:
    async def alive(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b"tea"})

    assert (through_proxy(alive).status_code, through_proxy(alive).text) == (418, "tea")


def test_ray_s_own_command_takes_the_server_s_settings_as_words() -> None:
    """As `serve run grpo_server.ray:app model=demo replicas=3 replica_cpus=2` hands them over."""
    built = app({"model": "demo", "replicas": "3", "replica_cpus": "2"})
    deployment = built._bound_deployment
    assert (deployment.num_replicas, deployment.ray_actor_options["num_cpus"]) == (3, 2.0)
    with pytest.raises(ValueError, match="replicass"):
        app({"model": "demo", "replicass": "3"})


def test_replicas_may_follow_the_load() -> None:
    scaled = app({"model": "demo", "max_replicas": 5, "tokens_per_replica": "8k"})._bound_deployment
    config = scaled._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (1, 5)
    assert config.policy.policy_kwargs == {"tokens_per_replica": 8000}
