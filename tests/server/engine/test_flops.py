"""The arithmetic of a model and of its batches, against what torch's own counter sees in the model's own forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import VOCAB, llama
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.anatomy import anatomy
from grpo_server.engine.device import Cpu
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.flops import Flops, count_flops
from grpo_server.engine.loading import Loaded
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SMALL: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, pad_token_id=0,
)  # fmt: skip
MOE = SMALL | dict(num_experts=6, num_local_experts=6, num_experts_per_tok=2, moe_intermediate_size=16)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "llama, tied": ("llama", SMALL | dict(tie_word_embeddings=True)),
    "gpt2: Conv1D": ("gpt2", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "qwen3_moe: a router, experts side by side": ("qwen3_moe", MOE),
    "gpt_oss: experts with biases, transposed": ("gpt_oss", MOE | dict(sliding_window=8)),
    "deepseek_v3: latent attention, a dense layer, a shared expert": (
        "deepseek_v3",
        MOE | dict(
            q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=6,
            n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, num_key_value_heads=4, head_dim=4,
        ),
    ),
    "gemma3_text: windows": ("gemma3_text", SMALL | dict(sliding_window=8, query_pre_attn_scalar=8)),
}  # fmt: skip


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, sizes = MODELS[name]
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes)).eval().requires_grad_(False)


def counted(model: PreTrainedModel, tokens: int) -> int:
    """By torch, of all matrices of the model."""
    return sum(seen(model, tokens).get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))


def attended(model: PreTrainedModel, tokens: int) -> int:
    """By torch, of every query with every key and every weight with every value: the batched products."""
    return seen(model, tokens)[torch.ops.aten.bmm]


def seen(model: PreTrainedModel, tokens: int) -> dict[Any, int]:
    """Operations by operator, in the model's own forward."""
    model.set_attn_implementation("eager")
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.randint(3, VOCAB, (1, tokens)), use_cache=False)
    return counter.get_flop_counts()["Global"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # of the architectures' own making
def test_what_torch_counts_in_the_models_own_forward(name: str) -> None:
    model = model_of(name)
    flops = count_flops(model, anatomy(model), ["cpu"])
    assert 23 * (flops.token + flops.row) == counted(model, 23)
    assert flops.row == 2 * VOCAB * 32
    assert flops.peak is None


def test_a_layer_that_is_run_twice_counts_twice() -> None:
    model = llama()
    expected = a_token(model)
    model.model.layers[1] = model.model.layers[0]
    assert a_token(model) == expected


def test_positions_are_not_taken_for_the_experts_of_a_token() -> None:
    sizes = SMALL | dict(num_hidden_layers=3, attention_window_size=16, lru_width=32, conv1d_width=4)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["recurrent_gemma"](**sizes)).eval()
    matrices = [m.weight for m in model.model.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    assert a_token(model) == 2 * sum(weight.numel() for weight in matrices)


class Prepending(nn.Module):
    """Puts rows of its own before those of the tokens."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(nn.functional.pad(x, (0, 0, 7, 0)))[:, 7:]


class Blocks(nn.Linear):
    """Two blocks of a block-diagonal matrix, one below the other, as DeepSeek-V4 writes its grouped projection."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        halves = input.unflatten(-1, (2, self.in_features))
        return torch.einsum("...gk,gnk->...gn", halves, self.weight.unflatten(0, (2, -1))).flatten(-2)


def test_blocks_side_by_side_count_once_each() -> None:
    model = llama()
    whole = model.model.layers[0].mlp.up_proj
    expected = a_token(model) - whole.weight.numel()  # half of its multiplications and additions
    model.model.layers[0].mlp.up_proj = Blocks(whole.in_features // 2, whole.out_features, bias=False)
    assert a_token(model) == expected


def test_rows_that_a_model_adds_once_are_not_each_tokens() -> None:
    model = llama()
    expected = a_token(model)
    model.model.layers[0].mlp.up_proj = Prepending(model.model.layers[0].mlp.up_proj)
    assert a_token(model) == expected


def a_token(model: PreTrainedModel) -> float:
    return count_flops(model, anatomy(model), []).token


def engine_of(model: PreTrainedModel, device: Cpu | None = None, **settings: Any) -> TorchEngine:
    return TorchEngine(EngineConfig("tiny", **settings), Loaded(model, None, None), device=device)  # pyright: ignore[reportArgumentType]


def ids(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB, n, dtype=np.int32)


PIECES = [
    Piece(ids(20), (ids(5, 1), ids(1, 2), ids(0), ids(9, 3)), 1.0),
    Piece(ids(20), (ids(7, 4),), 0.7, "stablemax"),  # the same prompt
    Piece(ids(6, 5), (ids(4, 6),), 1.0, completion_mask=(np.array([True, False, True, False]),)),
]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_batch_counts_a_shared_prompt_once_no_padding_and_the_rows_that_are_asked(mode: str) -> None:
    model = llama()
    engine = engine_of(model, mode=mode)
    answer = engine.compute(engine.prepare(PIECES))
    # exact mode computes a completion of which something is asked whole; its last token predicts nothing
    tokens = 20 + 4 + 0 + 8 + 6 + 6 + (3 if mode == "exact" else 2)
    assert answer.computed_tokens == tokens
    rows = 5 + 1 + 9 + 7 + 2
    token = counted(llama(), 1) - 2 * VOCAB * 32
    pairs = sum(range(1, 21))  # the prompt with itself
    pairs += sum(20 + n for length in (4, 8, 6) for n in range(1, length + 1))
    pairs += sum(range(1, tokens - 38 + 1))  # the last sequence by itself
    assert answer.flops == tokens * token + rows * 2 * VOCAB * 32 + pairs * attended(llama(), 1)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("llama", None),
        ("gemma3_text: windows", 8),
        ("gpt_oss: experts with biases, transposed", 8),
        ("deepseek_v3: latent attention, a dense layer, a shared expert", None),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the architectures' own making
def test_attention_counts_the_keys_that_each_query_sees(name: str, window: int | None) -> None:
    model = model_of(name)
    per_pair = attended(model, 1)
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * 2
    engine = engine_of(model)
    assert engine.info.tier == "packed"
    batch = engine.prepare([Piece(ids(30), (ids(1, 1), ids(4, 2)), 1.0)])
    place = np.arange(33)
    visible = place[None, :] <= place[:, None]
    near = visible & (place[:, None] - place[None, :] < (window or 0))
    pairs = sum(int((near if kind == "sliding_attention" else visible).sum()) for kind in kinds)
    matrices = engine._flops.token * 33 + engine._flops.row * 5
    assert engine.compute(batch).flops == matrices + pairs * per_pair / len(kinds)


def test_attention_of_the_models_own_is_not_counted() -> None:
    engine = engine_of(llama(), tier="plain")
    answer = engine.compute(engine.prepare(PIECES[:1]))
    assert answer.flops == answer.computed_tokens * a_token(llama()) + 15 * 2 * VOCAB * 32


def test_halves_of_a_batch_count_what_both_computed() -> None:
    engine = engine_of(llama())
    whole = engine.compute(engine.prepare(PIECES[:2]))
    rows = engine._forward.rows

    def tight(batch: Any) -> torch.Tensor:
        if len(batch.pieces) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows(batch)

    engine._forward.rows = tight  # pyright: ignore[reportAttributeAccessIssue]
    halved = engine.compute(engine.prepare(PIECES[:2]))
    assert halved.splits == 1
    assert halved.computed_tokens == whole.computed_tokens + 20  # the prompt in each
    assert halved.flops == whole.flops + 20 * a_token(llama()) + sum(range(1, 21)) * attended(llama(), 1)


def test_nothing_is_computed_where_nothing_is_asked() -> None:
    engine = engine_of(llama())
    assert engine.compute(engine.prepare([Piece(ids(3), (ids(0),), 1.0)])).flops == 0


class Strange(nn.Module):
    """Experts of which nobody knows how many a token is sent to."""

    def __init__(self) -> None:
        super().__init__()
        self.all_of_them = nn.Parameter(torch.randn(5, 32, 32) * 0.01, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.all_of_them[0]


def test_matrices_of_an_unknown_kind_are_not_counted_and_have_no_peak(caplog: pytest.LogCaptureFixture) -> None:
    model = llama()
    for layer in model.model.layers:
        layer.mlp = Strange()
    caplog.set_level("INFO")
    engine = engine_of(model, peak_tflops=1.0)
    assert engine.compute(engine.prepare(PIECES)).flops == 0
    assert engine.peak_flops is None
    assert "is not counted" in caplog.text


class Card(Cpu):
    """A host with the name of a card."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    def cards(self) -> tuple[str, ...]:
        return self._names


@pytest.mark.parametrize(
    ("cards", "settings", "expected"),
    [
        (["NVIDIA L4"], dict(mode="exact"), 30.3e12),
        (["NVIDIA L4"], dict(mode="fast", dtype="float32"), 30.3e12),
        (["NVIDIA L4"] * 2, dict(mode="exact"), 60.6e12),
        (["NVIDIA L5"], dict(mode="exact"), None),
        (["cpu"], dict(mode="exact"), None),
        (["cpu"], dict(mode="exact", peak_tflops=0.15), 0.15e12),
        (["NVIDIA L5"] * 3, dict(mode="exact", peak_tflops=7.0), 21e12),
    ],
)
def test_the_peak_of_the_cards_under_an_engine(
    cards: list[str], settings: dict[str, Any], expected: float | None
) -> None:
    peak = engine_of(llama(), Card(*cards), **settings).peak_flops
    assert peak == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, 121e12), (torch.float16, 121e12), (torch.float32, 30.3e12)]
)
def test_halves_have_the_peak_of_tensor_cores(dtype: torch.dtype, expected: float) -> None:
    model = llama().to(dtype)
    assert count_flops(model, anatomy(model), ["NVIDIA L4"]).peak == pytest.approx(expected)


def test_weights_of_eight_bits_have_no_peak_of_the_table() -> None:
    model = llama().to(torch.bfloat16)
    parts = anatomy(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert count_flops(model, parts, ["NVIDIA L4"]) == Flops(a_token(llama()), 2 * VOCAB * 32, None)
