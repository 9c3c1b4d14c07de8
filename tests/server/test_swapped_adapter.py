"""An adapter of a real base that is replaced by another, at once and by two servers together: it keeps its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from grpo_server.app import create_app
from grpo_server.engine import EngineConfig, load_engine
from safetensors.torch import save_file
from server_fakes import make_config, running
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.anyio

ADMIN = {"Authorization": "Bearer root"}
BODY = {"model": "x", "groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}


def base(path: Path) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=99)
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).save_pretrained(path)
    return path


def lora(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.randn(4, 32), f"{name}.lora_B.weight": torch.randn(32, 4)}
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}'
    )
    return path


async def test_it_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")
    model, one, two = base(tmp_path / "base"), lora(tmp_path / "one", 1), lora(tmp_path / "two", 2)
    config = make_config(model=f"a={model}", adapter=(f"x={one}", f"y={two}"), device="cpu", mode="exact")
    engine = EngineConfig(model=str(model), served_name="a", device="cpu", mode="exact")
    async with running(create_app(config, lambda: load_engine(engine))) as client:

        async def post(route: str, **asked: Any) -> dict[str, Any]:
            answer: httpx.Response = await client.post(route, json={"reference": "x", **asked}, headers=ADMIN)
            assert answer.is_success, answer.text
            return answer.json()

        other = (await client.get("/v1/reference", params={"model": "y"})).json()["fingerprint"]
        swapped = await post("/admin/reference", model=str(two))
        assert (swapped["model"], swapped["version"], swapped["fingerprint"]) == ("x", 2, other)
        assert (await client.post("/v1/logprobs", json=BODY)).json()["reference"]["model"] == "x"
        held = await post("/admin/reference", model=str(one), hold=True, version=5)
        pinned = await client.post("/v1/logprobs", json=BODY | {"fingerprint": held["fingerprint"]})
        assert pinned.json()["reference"] == held
        assert (await post("/admin/reference/commit", version=5)) == held
        assert (held["model"], held["version"]) == ("x", 5)
        told = (await client.get("/v1/references")).json()["references"]
        assert [(one["model"], one["version"]) for one in told] == [("a", 1), ("x", 5), ("y", 1)]
