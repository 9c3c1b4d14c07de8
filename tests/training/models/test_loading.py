"""Loading a policy: what ends its completions, and that a GGUF file becomes a model like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from grpo_training.config import ConfigError, ModelConfig
from grpo_training.models.loading import eos_ids, load_model, stop_ids
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..conftest import EOS


def test_load(tiny: LlamaForCausalLM, tiny_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_model(ModelConfig(name=str(tiny_path), device="cpu"), stop=["."])
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.eos_ids == {EOS, tokenizer.convert_tokens_to_ids(".")}
    for ours, theirs in zip(loaded.model.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_end_of_sequence_id_counts(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "generation_config", GenerationConfig(eos_token_id=[7, 8]))
    assert eos_ids(tiny, tokenizer) == {7, 8, EOS}


def test_a_stop_string_is_every_token_that_holds_it(tokenizer: PreTrainedTokenizerFast) -> None:
    digits = {tokenizer.convert_tokens_to_ids(c) for c in "12"}
    assert stop_ids(tokenizer, ["1", "2"]) == digits
    assert stop_ids(tokenizer, []) == frozenset()
    assert stop_ids(tokenizer, ["1", "12"]) == stop_ids(tokenizer, ["1"])  # two tokens spell the other
    with pytest.raises(ConfigError, match="no token of this model contains '§'"):
        stop_ids(tokenizer, ["1", "§"])


@pytest.mark.demo_model
def test_the_demo_model_saves_like_any_other(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(name="demo", device="cpu"), stop=["\n"])
    assert len(loaded.eos_ids) > 2  # a newline hides in several tokens
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(ModelConfig(name=str(tmp_path), device="cpu"), stop=["\n"])
    assert again.eos_ids == loaded.eos_ids
    assert torch.equal(again.model.get_output_embeddings().weight, loaded.model.get_output_embeddings().weight)
