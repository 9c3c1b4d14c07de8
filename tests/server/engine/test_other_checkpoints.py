"""Checkpoints that are not a plain causal language model: models that see, and weights in a quantised format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from grpo_client.models.files import UnusableModel
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine import quantised as quantised_module
from grpo_server.engine.anatomy import media_tokens
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import load
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

IMAGE = 250
TEXT = dict(
    vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EYE = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
QWEN_EYE = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=64, patch_size=14)
THREE_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}

# architecture -> config
SEEING: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": dict(
        text_config=TEXT | dict(rope_parameters=THREE_AXES), vision_config=QWEN_EYE, image_token_id=IMAGE
    ),
    "mistral3": dict(
        text_config=TEXT | dict(model_type="mistral"),
        vision_config=EYE | dict(model_type="pixtral", head_dim=16),
        image_token_index=IMAGE,
    ),
    "llava": dict(
        text_config=TEXT | dict(model_type="llama"),
        vision_config=EYE | dict(model_type="clip_vision_model"),
        image_token_index=IMAGE,
    ),
    "gemma3": dict(
        text_config=TEXT | dict(sliding_window=10, query_pre_attn_scalar=16),
        vision_config=EYE | dict(model_type="siglip_vision_model"),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    ),
}


def seeing(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[kind](**SEEING[kind]))
    with torch.no_grad():  # random initial weights are so small that every mistake would be, too
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0 if "embed" in name else 4.0)
    return model.eval().requires_grad_(False)


def own_logprobs(model: Any, piece: Piece) -> np.ndarray:
    rows: list[np.ndarray] = []
    for completion in piece.completions:
        ids = torch.tensor(np.concatenate([piece.prompt, completion]))[None].long()
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(piece.prompt) - 1 : -1].double()
        rows.append(logits.log_softmax(-1).gather(1, ids[0, len(piece.prompt) :, None])[:, 0].numpy())
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", SEEING)
def test_a_model_that_sees_is_a_reference_for_text(kind: str, tmp_path: Path) -> None:
    model = seeing(kind)
    model.save_pretrained(tmp_path)
    loaded = load(EngineConfig(model=str(tmp_path), device="cpu"))
    engine = TorchEngine(EngineConfig(model=kind, mode="exact"), loaded)
    assert engine.info.tier == "packed"
    assert engine.info.bitwise  # whatever the products of its towers, which no text runs through, do to their rows
    rng = np.random.default_rng(3)
    prompt, *completions = (rng.integers(3, IMAGE, n, dtype=np.int32) for n in (21, 7, 1, 13))
    piece = Piece(prompt, tuple(completions), 1.0)
    scores = engine.compute(engine.prepare([piece]))
    found = scores.pieces[0].logprobs
    np.testing.assert_allclose(found, own_logprobs(model, piece), rtol=0, atol=5e-5)
    assert engine.hosted.media[IMAGE] == "image"


def test_ids_that_stand_for_media() -> None:
    config: Any = CONFIG_MAPPING["qwen2_5_vl"](**SEEING["qwen2_5_vl"], video_token_id=251)
    assert media_tokens(config) == {IMAGE: "image", 251: "video"}
    assert media_tokens(CONFIG_MAPPING["llama"](**TEXT)) == {}


BLOCK = 16


def in_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """DeepSeek's format: e4m3 and a scale for each block of 16 x 16."""
    n, k = weight.shape
    blocks = weight.view(n // BLOCK, BLOCK, k // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    return (blocks / scale[:, None, :, None]).view(n, k).to(torch.float8_e4m3fn), scale


def test_fp8_weights_are_scored_as_what_they_stand_for(tmp_path: Path) -> None:
    plain = checkpoints.llama()
    stored, meant = {}, {}
    for name, tensor in plain.state_dict().items():
        stored[name] = meant[name] = tensor
        if "proj" in name:
            stored[name], scale = in_fp8(tensor)
            stored[f"{name}_scale_inv"] = scale
            wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            meant[name] = stored[name].float() * wide
    checkpoints.with_tensors(checkpoints.saved(tmp_path), lambda _: stored)
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    checkpoints.with_config(tmp_path, quantization_config=said)
    plain.load_state_dict(meant)
    engine = TorchEngine(EngineConfig(model="fp8"), load(EngineConfig(model=str(tmp_path), device="cpu")))
    rng = np.random.default_rng(3)
    piece = Piece(rng.integers(0, 150, 9, dtype=np.int32), (rng.integers(0, 150, 12, dtype=np.int32),), 1.0)
    found = engine.compute(engine.prepare([piece])).pieces[0].logprobs
    np.testing.assert_allclose(found, own_logprobs(plain, piece), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("said", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "pip install optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "pip install gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "pip install bitsandbytes"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "pip install compressed-tensors"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "pip install torchao"),
        ({"quant_method": "quanto", "weights": "int8"}, "pip install optimum-quanto"),
        ({"quant_method": "auto-round", "bits": 4}, "pip install auto-round"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "transformers cannot read"),
        ({"bits": 4}, "names no quant_method"),
    ],
)
def test_a_quantised_format_that_nobody_here_reads_is_refused_by_name(
    said: dict[str, Any], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised_module, "find_spec", lambda _: None)
    checkpoints.with_config(checkpoints.saved(tmp_path), quantization_config=said)
    with pytest.raises(UnusableModel, match="quanti") as refused:
        load(EngineConfig(model=str(tmp_path), device="cpu"))
    assert package in str(refused.value)
    assert "the checkpoint that it was made from" in str(refused.value)
    assert "\n" not in str(refused.value)
