"""A swap or a mix that cannot be done, over HTTP with a real engine: 422 with the reason, and the old reference answers on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_server.app import create_app
from grpo_server.engine import EngineConfig, load_engine
from server_fakes import make_config, running
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.anyio

BODY = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}
ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=99)
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).save_pretrained(tmp_path / "good")
    return tmp_path / "good"


@pytest.mark.parametrize(
    ("route", "body"), [("/admin/reference", {}), ("/admin/reference/ema", {"decay": 0.5})], ids=["swap", "mix"]
)
async def test_a_broken_checkpoint_is_a_422(
    route: str, body: dict[str, Any], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_SERVER_ADMIN_KEY", "root")

    def copied(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    cut = copied("cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    empty, pickled, packed, unknown, few = (copied(n) for n in ("empty", "pickled", "packed", "unknown", "few"))
    (empty / "model.safetensors").unlink()
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    config = (good / "config.json").read_text()
    quantized = '"quantization_config": {"quant_method": "gptq", "bits": 4}, '
    (packed / "config.json").write_text(config.replace("{", "{" + quantized, 1))
    (unknown / "config.json").write_text(config.replace('"hidden_act": "silu"', '"hidden_act": "nonesuch"'))
    (few / "config.json").write_text(config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    cases = [
        (str(cut.parent), "model.safetensors is cut off"),
        (str(empty), "it holds no weights"),
        (str(pickled), "save it as safetensors"),
        (str(packed), "optimum"),
        (str(unknown), "'nonesuch'"),
        (str(few), "it lacks model.layers.1.input_layernorm.weight"),
        ("./nope", "there is no directory ./nope"),
        (str(cut), "is a file"),
    ]
    app = create_app(make_config(), lambda: load_engine(EngineConfig(model=str(good), device="cpu")))
    async with running(app) as client:
        before = (await client.post("/v1/logprobs", json=BODY)).json()
        for model, reason in cases:
            response = await client.post(route, json={"model": model, **body}, headers=ADMIN)
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["param"]) == (422, "model_unavailable", "model"), (
                response.text
            )
            assert reason in error["message"]
            assert "\n" not in error["message"]
            assert "Traceback" not in error["message"]
            assert error["message"].endswith("; the old reference serves on")
        after = (await client.post("/v1/logprobs", json=BODY)).json()
        changed = await client.post(route, json={"model": str(good), **body}, headers=ADMIN)
    assert (after["reference"], after["groups"]) == (before["reference"], before["groups"])
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
