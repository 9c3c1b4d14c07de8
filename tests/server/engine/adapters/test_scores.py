"""A base with an adapter on it answers as peft computes it, whatever the adapter is made of; the base stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import VOCAB, saved
from grpo_server.engine.engine import TorchEngine
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM
from tuned import ALL, adapted, by_peft, engine_of, pieces_of, put_on, scores

pytest.importorskip("peft")

UNTIED: dict[str, dict[str, Any]] = {
    "ranks and scales by pattern": {
        "target_modules": ALL, "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 9},
        "alpha_pattern": {"down_proj": 31, "layers.0.self_attn.k_proj": 5}},
    "by a regular expression": {"target_modules": r".*\.layers\.1\..*(q|down)_proj"},
    "rank stabilised, some layers": {"use_rslora": True, "r": 6, "layers_to_transform": [1]},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "r": 3, "lora_alpha": 7},
    "both of its own": {"modules_to_save": ["embed_tokens", "lm_head"]},
}  # fmt: skip
TIED: dict[str, dict[str, Any]] = {
    "every linear": {"target_modules": "all-linear"},
    "the embedding": {"target_modules": ["embed_tokens"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "an embedding of its own": {"modules_to_save": ["embed_tokens"]},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "one matrix of its own": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "one pair on both ends": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}


def agree(found: np.ndarray, truth: np.ndarray) -> None:
    """Within some float32 roundings of the largest logits, which are about as large as the largest score."""
    np.testing.assert_allclose(found, truth, rtol=0, atol=2.0**-20 * max(1.0, float(np.abs(truth).max())))


def is_what_peft_computes(engine: TorchEngine, settings: dict[str, Any], path: Path) -> None:
    base, pieces = Path(engine.info.model), pieces_of()
    adapted(path, base, **settings)
    before = {name: tensor.clone() for name, tensor in engine._model.state_dict().items()}
    alone = scores(engine, pieces)
    on_it = put_on(engine, path)
    found = scores(on_it, pieces)
    agree(found, by_peft(base, path, pieces))
    assert np.abs(found - alone).max() > 1e-2
    assert on_it.info.bitwise
    assert np.array_equal(scores(engine, pieces), alone)
    assert all(torch.equal(before[name], tensor) for name, tensor in engine._model.state_dict().items())


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return engine_of(saved(tmp_path_factory.mktemp("untied")))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return engine_of(saved(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True))


@pytest.mark.parametrize("settings", UNTIED.values(), ids=list(UNTIED))
def test_an_adapter(settings: dict[str, Any], untied: TorchEngine, tmp_path: Path) -> None:
    is_what_peft_computes(untied, settings, tmp_path)


@pytest.mark.parametrize("settings", TIED.values(), ids=list(TIED))
def test_an_adapter_where_embedding_and_head_are_one_matrix(
    settings: dict[str, Any], tied: TorchEngine, tmp_path: Path
) -> None:
    is_what_peft_computes(tied, settings, tmp_path)


def test_layers_that_hold_their_matrix_the_other_way_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    is_what_peft_computes(engine_of(tmp_path / "base"), settings, tmp_path / "adapter")


def test_queries_keys_and_values_in_one_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Phi3Config(vocab_size=VOCAB, max_position_embeddings=128, pad_token_id=0, **sizes)
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["qkv_proj", "gate_up_proj"]}
    is_what_peft_computes(engine_of(tmp_path / "base"), settings, tmp_path / "adapter")


def test_in_bfloat16_it_is_no_further_off_than_peft(tmp_path: Path) -> None:
    base, pieces = saved(tmp_path / "base", hidden_size=64), pieces_of()
    path = adapted(tmp_path / "adapter", base, target_modules=ALL)
    truth = by_peft(base, path, pieces)
    theirs = np.abs(by_peft(base, path, pieces, torch.bfloat16) - truth).mean()
    ours = np.abs(scores(put_on(engine_of(base, mode="fast", dtype="bfloat16"), path), pieces) - truth).mean()
    assert ours <= 1.5 * theirs


@pytest.mark.parametrize("tier", ["cache", "plain"])
def test_where_sequences_are_not_packed(tier: Any, tmp_path: Path) -> None:
    base, pieces = saved(tmp_path / "base"), pieces_of()
    path = adapted(tmp_path / "adapter", base, target_modules=[*ALL, "lm_head"])
    engine = engine_of(base, tier=tier)
    on_it = put_on(engine, path)
    agree(scores(on_it, pieces), by_peft(base, path, pieces))
    assert (on_it.info.tier, on_it.info.bitwise) == (tier, engine.info.bitwise)
    assert not on_it.shares_batches_with(engine)
