"""What is whole is served, however it was saved: every tensor is the one on disk, and two loads are one reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import VOCAB, also, llama, prefixed, saved, with_config, with_tensors, without
from grpo_server.engine import EngineConfig
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.fingerprint import fingerprint
from grpo_server.engine.loading import load
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)


def loaded(path: Path, **settings: Any) -> PreTrainedModel:
    """Loaded twice, from two states of torch's generator: the same fingerprint, and nothing was drawn from it."""
    models: list[PreTrainedModel] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        models.append(load(EngineConfig(model=str(path), device="cpu", **settings)).model)
        assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(models[0], None) == fingerprint(models[1], None)
    return models[0]


def same(model: PreTrainedModel, other: PreTrainedModel) -> None:
    theirs = other.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name


def test_tied_weights_without_the_head_and_untied_ones_with_it(tmp_path: Path) -> None:
    for tied in (True, False):
        path = saved(tmp_path / str(tied), tie_word_embeddings=tied)
        assert ("lm_head.weight" in load_file(path / "model.safetensors")) is not tied
        same(loaded(path), llama(tie_word_embeddings=tied))


def test_a_head_saved_with_the_body_s_prefix_left_out(tmp_path: Path) -> None:
    path = with_tensors(saved(tmp_path), lambda t: {n.removeprefix("model."): v for n, v in t.items()})
    same(loaded(path), llama())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_half_precision_files(dtype: torch.dtype, mode: str, tmp_path: Path) -> None:
    llama().to(dtype).save_pretrained(tmp_path)
    model = loaded(tmp_path, mode=mode)
    same(model, llama().to(dtype))
    if mode == "exact":
        assert model.dtype == torch.float32


def test_shards_and_pickled_tensors(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    same(loaded(tmp_path / "shards"), llama())
    path = saved(tmp_path / "bin")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    same(loaded(path), llama())


def test_buffers_of_old_checkpoints_and_parts_beside_the_language_model(tmp_path: Path) -> None:
    path = with_tensors(
        saved(tmp_path),
        also(
            model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4),
            v_head__summary__weight=torch.ones(1, 32),
            score__weight=torch.ones(1, 32),
            vision_tower__encoder__layers__0__weight=torch.ones(3),
        ),
    )
    same(loaded(path), llama())


@pytest.mark.parametrize(
    ("config", "buffers"),
    [
        (GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4), {"h.0.attn.bias"}),
        (
            GPTNeoXConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
            ),
            {"gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias"},
        ),
    ],
)
def test_masks_that_were_once_saved(config: Any, buffers: set[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with_tensors(tmp_path, lambda t: {**t, **{name: torch.ones(1, 1, 4, 4) for name in buffers}})
    same(loaded(tmp_path), model)


def gemma3(**overrides: Any) -> Gemma3TextConfig:
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    more = dict(vocab_size=VOCAB, head_dim=8, max_position_embeddings=128, sliding_window=16)
    return Gemma3TextConfig(**{**sizes, **more, **overrides})


def test_gemma3_of_text_alone_and_with_eyes(tmp_path: Path) -> None:
    eyes = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    configs = {"text": gemma3(), "whole": Gemma3Config(text_config=gemma3().to_dict(), vision_config=eyes.to_dict())}
    for name, config in configs.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path / name)
        same(loaded(tmp_path / name), model)


def test_the_text_model_of_a_checkpoint_with_eyes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(gemma3())
    model.save_pretrained(tmp_path)
    with_tensors(
        tmp_path,
        also(
            vision_tower__vision_model__encoder__layers__0__self_attn__q_proj__weight=torch.ones(2),
            multi_modal_projector__mm_input_projection_weight=torch.ones(2),
        ),
    )
    same(loaded(tmp_path), model)


def test_weights_of_a_format_without_a_package_that_are_plain_all_the_same(tmp_path: Path) -> None:
    same(loaded(with_config(saved(tmp_path), quantization_config={"quant_method": "fp8"})), llama())


def test_a_made_up_weight_would_be_seen_although_a_class_says_that_it_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that comes with a model may say so of anything: transformers then reports nothing."""
    path = with_tensors(saved(tmp_path), without("lm_head"))
    monkeypatch.setattr(type(llama()), "_keys_to_ignore_on_load_missing", [r"lm_head\.weight"])
    monkeypatch.setattr(type(llama()), "__module__", "transformers_modules.somebody")
    with pytest.raises(ValueError, match=r"it lacks lm_head\.weight"):
        load(EngineConfig(model=str(path), device="cpu"))


def test_both_names_of_a_tied_head(tmp_path: Path) -> None:
    path = saved(tmp_path, tie_word_embeddings=True)
    with_tensors(path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    same(loaded(path), llama(tie_word_embeddings=True))


def test_what_is_whole_is_served(tmp_path: Path) -> None:
    engine = TorchEngine(
        EngineConfig(model="whole", device="cpu"), load(EngineConfig(model=str(saved(tmp_path / "a"))))
    )
    first = engine.info.fingerprint
    assert engine.swap(str(with_tensors(saved(tmp_path / "b"), prefixed("model.")))).fingerprint == first
    assert engine.swap(str(saved(tmp_path / "c", seed=1))).fingerprint != first
