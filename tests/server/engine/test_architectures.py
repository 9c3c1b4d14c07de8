"""Every architecture is served right or not served by that path: tiny random models against their own forward.

The expected tier is part of the table: a model that silently falls to a slower tier is a regression, too.
"""

import numpy as np
import pytest
import torch
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SMALL = dict(
    vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
MOE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
GPT = dict(vocab_size=257, n_embd=64, n_layer=3, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2)

# architecture -> (config beyond SMALL or instead of it, tier it must reach)
CASES = {
    "llama": (SMALL, "packed"),
    "mistral": (SMALL | dict(sliding_window=13), "packed"),
    "qwen2": (SMALL | dict(use_sliding_window=True, sliding_window=11, max_window_layers=1), "packed"),
    "qwen3": (SMALL, "packed"),
    "qwen3_moe": (SMALL | MOE, "packed"),
    "gemma2": (SMALL | dict(sliding_window=10, query_pre_attn_scalar=16), "packed"),
    "gemma3_text": (SMALL | dict(sliding_window=10, query_pre_attn_scalar=16), "packed"),
    "gemma4_text": (  # a head size for each kind of layer, keys shared between layers, embeddings for each layer
        SMALL | dict(
            layer_types=["sliding_attention", "full_attention"] * 2, num_hidden_layers=4, sliding_window=10, global_head_dim=32,
            vocab_size_per_layer_input=257, hidden_size_per_layer_input=8, num_kv_shared_layers=2, final_logit_softcapping=30.0,
        ),
        "packed",
    ),
    "phi3": (SMALL, "packed"),
    "gpt2": (GPT, "packed"),
    "gpt_neox": (SMALL | dict(rotary_pct=0.25), "packed"),
    "opt": (SMALL | dict(ffn_dim=96, word_embed_proj_dim=64), "packed"),
    "olmo2": (SMALL, "packed"),
    "granite": (SMALL | dict(logits_scaling=3.0, residual_multiplier=0.5), "packed"),
    "hyperclovax": (SMALL | dict(logits_scaling=3.0), "packed"),  # multiplies by what Granite divides by
    "smollm3": (SMALL | dict(no_rope_layer_interval=2), "packed"),
    "cohere2": (SMALL | dict(sliding_window=9, logit_scale=0.25), "packed"),
    "gpt_oss": (SMALL | MOE | dict(sliding_window=12), "packed"),
    "deepseek_v3": (
        SMALL | dict(
            q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1, n_group=2, topk_group=1,
            num_key_value_heads=4, head_dim=8,
        ),
        "packed",
    ),
    "bloom": (dict(vocab_size=257, hidden_size=64, n_layer=3, n_head=4), "fallback"),
    "falcon": (
        dict(vocab_size=257, hidden_size=64, num_hidden_layers=3, num_attention_heads=4) |
        dict(new_decoder_architecture=False, multi_query=True, alibi=False),
        "fallback",
    ),
    "gptj": (GPT | dict(rotary_dim=8), "fallback"),
    "mpt": (dict(vocab_size=257, d_model=64, n_layers=3, n_heads=4, max_seq_len=256), "fallback"),
    "falcon_h1": (
        SMALL | dict(lm_head_multiplier=0.3, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8),
        "plain",
    ),
    "mamba": (dict(vocab_size=257, hidden_size=64, num_hidden_layers=3, state_size=8), "plain"),
    "llama4_text": (
        SMALL | MOE | dict(intermediate_size_mlp=96, attention_chunk_size=16, num_local_experts=2, num_experts_per_tok=1),
        "fallback",
    ),
}  # fmt: skip


def tiny(kind, **overrides):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**CASES[kind][0], **overrides})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # random initial weights are so small that every mistake would be, too
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0 if "embed" not in name else 2.0)
    return model.eval().requires_grad_(False)


def engine_of(model, **config):
    return TorchEngine(EngineConfig(model="tiny", **config), Loaded(model, None, None))


@torch.no_grad()
def own_logprobs(model, prompt, completion):
    model.set_attn_implementation("eager")
    ids = torch.tensor(np.concatenate([prompt, completion]))[None].long()
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion).long()[:, None])[:, 0].numpy()


def some_pieces(vocab, seed, longest=60):
    rng = np.random.default_rng(seed)

    def tokens(n):
        return rng.integers(3, vocab, n, dtype=np.int32)

    stem = tokens(longest)
    return [
        Piece(stem, tuple(tokens(n) for n in (7, 1, 0, 23, 7)), 1.0),
        Piece(stem[:20], (tokens(31),), 1.0),
        Piece(np.concatenate([stem[:33], tokens(5)]), (tokens(3), tokens(12)), 1.0),
        Piece(tokens(1), (tokens(15), tokens(2)), 1.0),
    ]


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.filterwarnings("ignore")  # of the architectures' own making
def test_scores_are_those_of_the_model_itself(kind):
    model = tiny(kind)
    engine = engine_of(model, mode="fast", dtype="float32")
    expected_tier = CASES[kind][1]
    assert engine.info.tier == expected_tier or (expected_tier == "fallback" and engine.info.tier in ("cache", "plain"))
    pieces = some_pieces(257, seed=3)
    for piece, scores in zip(pieces, engine.compute(engine.prepare(pieces)).pieces, strict=True):
        ends = np.cumsum([len(c) for c in piece.completions])
        for completion, end in zip(piece.completions, ends, strict=True):
            if len(completion):
                want = own_logprobs(model, piece.prompt, completion)
                # two fp32 forwards that sum in different order; the logits of these models reach a few tens
                np.testing.assert_allclose(scores.logprobs[end - len(completion) : end], want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["bloom", "llama", "gpt2", "falcon", "gptj"])
@pytest.mark.filterwarnings("ignore")
def test_lower_tiers_are_right_too(kind):
    pieces = some_pieces(257, seed=5)
    answers = []
    for tier in ("cache", "plain"):
        engine = engine_of(tiny(kind), mode="fast", dtype="float32", tier=tier)
        assert engine.info.tier == tier
        answers.append([s.logprobs for s in engine.compute(engine.prepare(pieces)).pieces])
    for cached, plain in zip(*answers, strict=True):
        np.testing.assert_allclose(cached, plain, rtol=0, atol=2e-4)


def test_a_head_that_cannot_be_reproduced_is_refused():
    model = tiny("llama")
    head = model.lm_head.forward
    model.lm_head.forward = lambda hidden: head(hidden).sin()
    with pytest.raises(ValueError, match="cannot be served"):
        engine_of(model)


def test_length_dependent_rotary_is_scored_one_by_one():
    model = tiny("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    assert engine_of(model).info.tier == "plain"
