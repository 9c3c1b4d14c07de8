"""The elementwise part of a layer, replaced on the instance: by what computes the same, and only while the scores stay right.

Liger's kernels need a GPU; formulas in torch stand in for them here, so that what is tested is which modules are recognised,
what they are called with, and that a way that changes the scores leaves no trace.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from grpo_server.engine import EngineConfig, Piece, tiers
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.fused_layers import Casting, Patches, by_compiler, by_kernels, keep_if_right, ways_on
from grpo_server.engine.loading import Loaded
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SMALL = dict(
    vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
# per layer: norms, SwiGLU, attention with rotary embedding; and the last norm
RECOGNISED = {
    "llama": 2 * (2 + 1 + 1) + 1,
    "qwen2": 2 * (2 + 1 + 1) + 1,
    "qwen3": 2 * (4 + 1 + 1) + 1,
    "mistral": 2 * (2 + 1 + 1) + 1,
    "gemma3_text": 2 * (6 + 0 + 1) + 1,  # its gate is a GELU
    "gpt_neox": 2,  # norms with a mean, and a gate of none: the rotary embedding alone
}


class Formulas:
    """In the place of Liger's kernels, counting."""

    def __init__(self, wrong: bool = False) -> None:
        self.calls = {"norm": 0, "silu": 0, "rope": 0}
        self.wrong = wrong

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float, casting: Casting) -> Tensor:
        self.calls["norm"] += 1
        exact = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        return weight * exact.to(x.dtype) if casting == "llama" else (exact * (offset + weight.float())).to(x.dtype)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        self.calls["silu"] += 1
        return gate * up if self.wrong else torch.nn.functional.silu(gate) * up

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        self.calls["rope"] += 1

        def turned(x: Tensor) -> Tensor:
            part, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
            a, b = part.chunk(2, -1)
            return torch.cat([part * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None], rest], -1)

        return turned(q), turned(k)


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                torch.randn_like(parameter) * (1.0 if "embed" in name else 0.2) + 0.3 * (parameter.dim() == 1)
            )
    return model.eval().requires_grad_(False)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(30)[None], use_cache=False).logits


def body_of(model: Any) -> nn.Module:
    return model.base_model


def untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", RECOGNISED)
def test_what_a_kernel_computes_is_recognised_and_replaced_on_the_instance_alone(kind: str) -> None:
    model, other, kernels = tiny(kind), tiny(kind), Formulas()
    before = logits(model)
    patches = by_kernels(body_of(model), kernels)
    assert len(patches.modules) == RECOGNISED[kind]
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert sum(kernels.calls.values()) >= RECOGNISED[kind]
    assert untouched(other)
    seen = dict(kernels.calls)
    logits(other)
    assert kernels.calls == seen
    patches.undo()
    assert untouched(model)
    assert torch.equal(logits(model), before)


def test_a_norm_with_a_weight_that_is_one_is_recognised_in_bf16() -> None:
    model = tiny("llama").to(torch.bfloat16)
    assert len(by_kernels(body_of(model), Formulas()).modules) == RECOGNISED["llama"]


def test_a_way_that_changes_the_scores_is_undone_and_the_next_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    before = logits(model)

    def right() -> bool:
        return bool(torch.allclose(logits(model), before, atol=1e-4))

    def fails(_: nn.Module) -> Patches:
        raise RuntimeError("no compiler here")

    wrong = {"wrong": lambda body: by_kernels(body, Formulas(wrong=True)), "failing": fails}
    assert keep_if_right(body_of(model), wrong, right) == ""
    assert untouched(model)
    assert torch.equal(logits(model), before)
    assert "fused by wrong change the scores" in caplog.text
    assert "no compiler here" in caplog.text
    both = {**wrong, "formulas": lambda body: by_kernels(body, Formulas())}
    assert keep_if_right(body_of(model), both, right) == "formulas"
    assert not untouched(model)


def test_scores_that_cannot_be_computed_any_more_undo_a_way() -> None:
    model = tiny("llama")

    def right() -> bool:
        raise ValueError("shapes")

    assert keep_if_right(body_of(model), {"formulas": lambda body: by_kernels(body, Formulas())}, right) == ""
    assert untouched(model)


def test_a_compiled_layer_scores_alike_with_attention_left_alone() -> None:
    model = tiny("qwen2")
    plain = TorchEngine(EngineConfig(model="tiny"), Loaded(model, None, None))  # pyright: ignore[reportArgumentType]
    rng = np.random.default_rng(0)
    piece = Piece(rng.integers(0, 257, 20, dtype=np.int32), tuple(rng.integers(0, 257, (2, 7), dtype=np.int32)), 1.0)
    before = plain.compute(plain.prepare([piece])).pieces[0].logprobs
    patches = by_compiler(body_of(model), backend="eager")
    assert len(patches.modules) == 2
    after = plain.compute(plain.prepare([piece])).pieces[0].logprobs
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    patches.undo()
    assert untouched(model)


def test_liger_has_what_is_called() -> None:
    pytest.importorskip("liger_kernel", reason="optional: pip install 'grpo-refserver[gpu]'")
    from grpo_server.engine.liger import LigerKernels
    from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction

    assert list(inspect.signature(LigerRMSNormFunction.forward).parameters)[1:] == [
        "X", "W", "eps", "offset", "casting_mode", "in_place", "row_mode",
    ]  # fmt: skip
    assert list(inspect.signature(LigerSiLUMulFunction.forward).parameters)[1:3] == ["a", "b"]
    assert LigerKernels()


def test_a_cpu_has_nothing_to_fuse() -> None:
    assert ways_on("cpu") == {}


@pytest.mark.parametrize("wrong", [False, True])
def test_the_engine_keeps_what_leaves_its_scores_right(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Formulas(wrong=wrong)
    monkeypatch.setattr(tiers, "ways_on", lambda _: {"formulas": lambda body: by_kernels(body, kernels)})
    model = tiny("qwen2")
    TorchEngine(EngineConfig(model="tiny"), Loaded(model, None, None))  # pyright: ignore[reportArgumentType]
    assert untouched(model) == wrong
    other = tiny("qwen2")
    config = EngineConfig(model="tiny", fused_layers=False)
    TorchEngine(config, Loaded(other, None, None))  # pyright: ignore[reportArgumentType]
    assert untouched(other)
