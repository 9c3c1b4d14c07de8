"""What a server tells of its arithmetic: of a real model, and of whatever is hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from grpo_server.app import create_app
from grpo_server.engine import load_engine
from prometheus_client.parser import text_string_to_metric_families
from server_fakes import FLOPS_A_TOKEN, FakeEngine, make_config, running, serving
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.anyio

HIDDEN, INNER, LAYERS, VOCAB = 16, 24, 2, 64
BODY = {"groups": [{"prompt": [1, 2, 3], "completions": [[3, 4], [5]]}]}
ADMIN = {"Authorization": "Bearer secret"}


async def told(client: httpx.AsyncClient) -> dict[str, float]:
    """name -> value of what is told of arithmetic; by reference as name:reference."""
    text = (await client.get("/metrics")).text
    return {
        ":".join([sample.name.removeprefix("grpo_server_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "flops" in sample.name and not sample.name.endswith("_created")
    }


@pytest.mark.parametrize(("given", "peak"), [(None, None), (0.25, 0.25e12)])
async def test_a_real_model_counts_what_it_computed(tmp_path: Path, given: float | None, peak: float | None) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, vocab_size=VOCAB
    )
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(tmp_path)
    config = make_config(model=f"ref={tmp_path}", device="cpu", peak_tflops=given)
    async with running(create_app(config, lambda: load_engine(config.engine()))) as client:
        assert await told(client) == {"model_flops_total": 0, "hosted_model_flops_total:ref": 0} | (
            {} if peak is None else {"peak_flops": peak}
        )
        answer = (await client.post("/v1/logprobs", json=BODY)).json()
        found = await told(client)
    # queries and outputs as wide as the model, keys and values half of it; gate, up and down
    layer = (2 + 2 / 2) * HIDDEN * HIDDEN + 3 * HIDDEN * INNER
    pairs = 1 + 2 + 3 + 4  # that see each other, over queries and values as wide as the model
    assert answer["usage"]["computed_tokens"] == 4
    expected = 2 * (4 * LAYERS * layer + pairs * LAYERS * 2 * HIDDEN + 3 * HIDDEN * VOCAB)
    assert found["model_flops_total"] == found["hosted_model_flops_total:ref"] == expected
    assert found.get("peak_flops") == peak


async def test_an_unknown_card_has_no_series(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        assert "peak_flops" not in (await client.get("/metrics")).text


async def test_the_peak_is_of_whoever_is_hosted(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "secret")
    engine.peak_flops = 3e12
    whole = type(engine).beside

    def slower(self: FakeEngine, *asked: object) -> FakeEngine:
        new = whole(self, *asked)  # pyright: ignore[reportArgumentType]
        new.peak_flops = 1e12
        return new

    monkeypatch.setattr(FakeEngine, "beside", slower)
    async with serving(engine) as client:
        assert (await told(client))["peak_flops"] == 3e12
        assert (await client.post("/admin/reference", json={"model": "next"}, headers=ADMIN)).status_code == 200
        assert (await told(client))["peak_flops"] == 1e12


async def test_references_that_differ_in_it_have_none(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "secret")
    engine.peak_flops = 3e12
    async with serving(engine) as client:
        added = await client.post("/v1/references", json={"name": "other", "source": "other"}, headers=ADMIN)
        assert added.status_code < 300, added.text
        await client.post("/v1/logprobs", json={**BODY, "model": "other"})
        found = await told(client)
        assert "peak_flops" not in found  # the other has none
        assert found["hosted_model_flops_total:other"] == found["model_flops_total"] == 6 * FLOPS_A_TOKEN
        gone = await client.delete("/v1/references/other", headers=ADMIN)
        assert gone.status_code < 300, gone.text
        found = await told(client)
    assert found["peak_flops"] == 3e12
    assert found["model_flops_total"] == 6 * FLOPS_A_TOKEN
