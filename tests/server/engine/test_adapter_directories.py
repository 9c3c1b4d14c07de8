"""An adapter's directory as the model: served with its base as peft itself computes it, or refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import VOCAB, Tensors, changed, saved, with_config, with_tensors, without
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import load
from grpo_server.engine.start import load_engine
from transformers import AutoModelForCausalLM

peft = pytest.importorskip("peft")
pytestmark = [
    # peft's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def adapted(directory: Path, base: Path, **settings: Any) -> Path:
    """A LoRA of `base`, far from nothing, as peft saves it."""
    torch.manual_seed(3)
    asked = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**{**asked, **settings}))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return adapted(tmp_path / "adapter", base)


def served(path: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    prompt, completion = (rng.integers(0, VOCAB, n, dtype=np.int32) for n in (5, 6))
    engine = load_engine(EngineConfig(model=str(path), device="cpu"))
    assert isinstance(engine, TorchEngine)
    return engine.compute(engine.prepare([Piece(prompt, (completion,), 1.0)])).pieces[0].logprobs


def by_peft(base: Path, path: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    prompt, completion = (rng.integers(0, VOCAB, n, dtype=np.int32) for n in (5, 6))
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(path)).eval()
    ids = torch.from_numpy(np.concatenate([prompt, completion])).long()
    with torch.no_grad():
        rows = torch.log_softmax(model(ids[None]).logits[0, 4:-1].double(), -1)
    return rows.gather(1, ids[5:, None])[:, 0].numpy()


def refused(path: Path) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        load(EngineConfig(model=str(path), device="cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
        {"modules_to_save": ["embed_tokens"]},
        {"use_rslora": True},
    ],
)
def test_it_is_served_as_peft_computes_it(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    path = adapted(tmp_path / "adapter", base, **settings)
    scores = served(path)
    np.testing.assert_allclose(scores, by_peft(base, path), rtol=0, atol=2e-5)
    assert np.abs(scores - served(base)).max() > 1e-2


def test_a_config_beside_the_adapter_does_not_hide_its_base(adapter: Path, base: Path) -> None:
    shutil.copy(base / "config.json", adapter)
    np.testing.assert_allclose(served(adapter), by_peft(base, adapter), rtol=0, atol=2e-5)


def test_a_whole_model_with_an_adapter_beside_it_is_served_with_both_and_checked_whole(
    adapter: Path, base: Path
) -> None:
    want = by_peft(base, adapter)
    for file in (FILE, CONFIG):
        shutil.copy(adapter / file, base)
    np.testing.assert_allclose(served(base), want, rtol=0, atol=2e-5)
    with_tensors(base, without("layers.1.mlp.up"))
    assert "it lacks model.layers.1.mlp.up_proj.weight" in refused(base)


def test_the_scale_is_part_of_who_answers(adapter: Path) -> None:
    def fingerprint() -> str:
        return load_engine(EngineConfig(model=str(adapter), device="cpu")).hosted.info.fingerprint

    first = fingerprint()
    assert fingerprint() == first
    with_config(adapter, CONFIG, lora_alpha=64)
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("layers.1.self_attn.v_proj.lora_B"), "it lacks model.layers.1.self_attn.v_proj.lora_B"),
        (changed("layers.1.self_attn.v_proj.lora_A", lambda t: t[:, :-1]), "lora_A.default.weight 4x31, not 4x32"),
        (
            changed("layers.1.self_attn.v_proj.lora_A", lambda t: t * torch.nan),
            "NaN or infinity, in model.layers.1.self_attn.v_proj",
        ),
        (
            lambda t: {**t, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)},
            "no place for model.layers.7.self_attn.q_proj.lora_A",
        ),
        (
            lambda t: {n.replace("base_model.model.", "base_model.model._orig_mod."): v for n, v in t.items()},
            "strip '_orig_mod.' from the names",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: Callable[[Tensors], Tensors], reason: str, adapter: Path) -> None:
    assert reason in refused(with_tensors(adapter, change, FILE))


def test_the_output_layer_is_to_be_merged_first(base: Path, tmp_path: Path) -> None:
    for number, settings in enumerate([{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}]):
        told = refused(adapted(tmp_path / str(number), base, **settings))
        assert "the adapter changes the output layer" in told
        assert "merge_and_unload" in told


def test_what_transformers_does_not_read_of_an_adapter_is_to_be_merged_first(base: Path, tmp_path: Path) -> None:
    told = refused(adapted(tmp_path / "dora", base, use_dora=True))
    assert "lora_magnitude_vector" in told
    assert "where peft itself loads it, merge it there" in told


def test_the_base_model_is_named_when_it_is_the_one_at_fault(adapter: Path, base: Path) -> None:
    with_config(adapter, CONFIG, base_model_name_or_path="/nope/base")
    assert refused(adapter).endswith("(base_model_name_or_path): there is no directory /nope/base")
    with_config(adapter, CONFIG, base_model_name_or_path=None)
    assert "names no base model" in refused(adapter)
    with_config(adapter, CONFIG, base_model_name_or_path=str(base))
    with_tensors(base, without("lm_head"))
    assert f"its base model ({base}) cannot be used: the checkpoint does not fit" in refused(adapter)


def test_another_base(adapter: Path, tmp_path: Path) -> None:
    with_config(adapter, CONFIG, base_model_name_or_path=str(saved(tmp_path / "wide", hidden_size=64)))
    assert "the adapter does not fit its base model: of another shape are" in refused(adapter)


def test_files_of_an_adapter(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(adapter / FILE, 500)
    assert f"{FILE} is cut off" in refused(adapter)
    (adapter / FILE).unlink()
    assert f"it holds no weights of the adapter ({FILE})" in refused(adapter)
    (adapter / CONFIG).write_text("{")
    assert f"{CONFIG} is not JSON" in refused(adapter)
    (adapter / CONFIG).write_text(json.dumps({}))
    monkeypatch.setattr(
        "grpo_server.engine.reading.find_spec", lambda name: None if name == "peft" else find_spec(name)
    )
    assert "pip install 'grpo-refserver[lora]'" in refused(adapter)
