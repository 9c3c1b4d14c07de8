"""Swaps of real models behind HTTP: the public name, and who answers under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_server.app import create_app
from grpo_server.engine import EngineConfig, load_engine
from server_fakes import make_config, running
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer root"}
IDS = [3, 7, 1, 9]


def saved(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("served_name", [None, "policy"])
async def test_requests_that_use_the_name_are_answered_by_what_bears_it(
    tmp_path: Path, served_name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    paths = [saved(tmp_path / name, seed) for seed, name in enumerate("abc")]
    seen: list[tuple[str, list[float]]] = []
    app = create_app(make_config(), lambda: load_engine(EngineConfig(model=paths[0], served_name=served_name)))
    async with running(app) as client:
        for version, path in enumerate(paths, start=1):
            if version > 1:
                swapped = await client.post("/admin/reference", json={"model": path}, headers=ADMIN)
                assert swapped.json()["model"] == (served_name or path)
            name = served_name or path
            body: dict[str, Any] = {"model": name, "prompt": IDS, "max_tokens": 0, "echo": True, "logprobs": 0}
            response = await client.post("/v1/completions", json=body)
            answer, info = response.json(), (await client.get("/v1/reference")).json()
            assert (answer["model"], answer["system_fingerprint"]) == (name, info["fingerprint"])
            assert response.headers["x-reference-version"] == str(version)
            assert [m["id"] for m in (await client.get("/v1/models")).json()["data"]] == [name]
            seen.append((info["fingerprint"], answer["choices"][0]["logprobs"]["token_logprobs"][1:]))
            unknown = await client.post("/v1/completions", json={**body, "model": paths[version % 3]})
            assert unknown.status_code == 404
    assert len({print_ for print_, _ in seen}) == len({tuple(logprobs) for _, logprobs in seen}) == 3
    for path, (_, logprobs) in zip(paths, seen, strict=True):
        with torch.inference_mode():
            logits = LlamaForCausalLM.from_pretrained(path)(torch.tensor([IDS])).logits[0, :-1].double()
        expected = logits.log_softmax(-1).gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-5)
