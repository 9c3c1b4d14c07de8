"""Experts in whole blocks of rows: the module's own numbers, and what stands in the way where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grpo_server.engine.experts import fixed_experts, settle_experts
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SMALL: dict[str, Any] = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
)  # fmt: skip


def experts_of(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL)).eval().requires_grad_(False)
    [module] = [m for m in model.modules() if hasattr(m, "_apply_gate")]
    for parameter in module.parameters():  # some are left as memory was found
        parameter.normal_()
    return module


def routed(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    parts, index = torch.rand(rows, 4).softmax(1).topk(3)
    return torch.randn(rows, 64), index, parts


# gates side by side and one after another, transposed, with bias and without
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_they_compute_what_the_module_does(kind: str) -> None:
    module = experts_of(kind)
    x, index, parts = routed(50)
    module.config._experts_implementation = "eager"  # the one that takes float64
    theirs = module.double()(x.double(), index, parts.double())
    ours = fixed_experts(module.float(), True, x, index, parts)
    # two products of up to 64 terms and a gate, each within some roundings of float32
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


def test_what_was_settled_computes_in_whole_blocks() -> None:
    module = experts_of("qwen3_moe")
    settled, problem = settle_experts([module], trusted=False)
    assert (settled, problem) == ({module}, None)
    x, index, parts = routed(80)
    together = module(x, index, parts)
    for rows in (slice(0, 1), slice(5, 40), slice(41, 80)):
        assert torch.equal(module(x[rows], index[rows], parts[rows]), together[rows])


def test_experts_that_compute_something_else_are_left_alone() -> None:
    module = experts_of("qwen3_moe")
    own = type(module).forward
    module.forward = lambda *given: own(module, *given) * 1.01
    settled, problem = settle_experts([module], trusted=False)
    assert not settled
    assert problem == f"experts in whole blocks do not give the numbers of {type(module).__name__}"
