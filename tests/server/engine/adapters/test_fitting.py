"""Which adapters are held beside a base: those whose every tensor has its place and meaning; the others are refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import VOCAB, Tensors, saved, with_config, with_tensors, without
from grpo_server.engine.contract import Addition, Change
from grpo_server.engine.engine import TorchEngine
from tuned import CONFIG, FILE, PREFIX, engine_of, pieces_of, put_on, scores, written


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return engine_of(saved(tmp_path_factory.mktemp("base")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "adapter")


def refused(engine: TorchEngine, path: Path) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        engine.adapt(Addition(str(path), "tuned"), lambda _: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [3]}, "aLoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"r": "four"}, "cannot be read"),
        ({"r": -1}, "rank below 1"),
        ({"rank_pattern": {"(": 4}}, "cannot be read"),
    ],
)
def test_settings(setting: dict[str, Any], reason: str, engine: TorchEngine, path: Path) -> None:
    told = refused(engine, with_config(path, CONFIG, **setting))
    assert reason in told
    assert "--model name=path" in told or "adapter_config.json" in told


def test_one_that_took_its_start_out_of_the_base(engine: TorchEngine, path: Path) -> None:
    assert "path_initial_model_for_weight_conversion" in refused(
        engine, with_config(path, CONFIG, init_lora_weights="pissa")
    )


def also(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("layers.1.self_attn.q_proj.lora_B"), "it lacks model.layers.1.self_attn.q_proj.lora_B"),
        (without("layers.1"), "it lacks model.layers.1.self_attn.q_proj.lora_A"),
        (also(f"{PREFIX}.1.self_attn.q_proj.lora_A.weight", torch.ones(4, 31)), "q_proj.lora_A 4x31, not 4x32"),
        (also(f"{PREFIX}.0.self_attn.q_proj.lora_A.weight", torch.ones(8, 32)), "q_proj.lora_A 8x32, not 4x32"),
        (
            also(f"{PREFIX}.1.self_attn.q_proj.lora_A.weight", torch.full((4, 32), torch.nan)),
            "NaN or infinity, in model",
        ),
        (also(f"{PREFIX}.7.self_attn.q_proj.lora_A.weight", torch.ones(4, 32)), "no place for model.layers.7"),
        (
            also("base_model.model.lm_head.weight", torch.ones(VOCAB + 1, 32)),
            f"lm_head.weight {VOCAB + 1}x32, not {VOCAB}x32",
        ),
        (also("base_model.model.model.norm.weight", torch.ones(32)), "model.norm.weight whole (modules_to_save)"),
        (also(f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector", torch.ones(32)), "DoRA's magnitudes"),
        (also(f"{PREFIX}.0.self_attn.q_proj.lora_B.bias", torch.ones(32)), "biases of its products"),
        (
            also("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(1, 32)),
            "single tokens",
        ),
    ],
)
def test_tensors(change: Callable[[Tensors], Tensors], reason: str, engine: TorchEngine, path: Path) -> None:
    assert reason in refused(engine, with_tensors(path, change, FILE))


def test_files(engine: TorchEngine, path: Path, tmp_path: Path) -> None:
    os.truncate(path / FILE, 500)
    assert f"{FILE} is cut off" in refused(engine, path)
    (path / FILE).rename(path / "adapter_model.bin")
    assert "a pickle (adapter_model.bin), which could run code" in refused(engine, path)
    (path / "adapter_model.bin").unlink()
    assert f"it holds no weights of the adapter ({FILE})" in refused(engine, path)
    (path / CONFIG).write_text("{")
    assert f"{CONFIG} is not JSON" in refused(engine, path)
    assert "it is no adapter" in refused(engine, saved(tmp_path / "whole"))
    assert "there is no directory" in refused(engine, tmp_path / "nowhere")


def test_what_is_the_bases_own_is_not_held_twice(engine: TorchEngine, path: Path) -> None:
    held = put_on(engine, path).nbytes
    assert held == 2 * 2 * 4 * 32 * 4
    copies = {
        "lm_head.base_layer": engine._model.lm_head.weight,
        "model.embed_tokens": engine._model.model.embed_tokens.weight,
    }
    for name, weight in copies.items():
        with_tensors(path, also(f"base_model.model.{name}.weight", weight.clone()), FILE)
    assert put_on(engine, path).nbytes == held


def test_who_answers_follows_from_base_matrices_and_scale(engine: TorchEngine, path: Path, tmp_path: Path) -> None:
    first = put_on(engine, path).info
    assert first.fingerprint != engine.info.fingerprint
    assert put_on(engine, path, "another name").info.fingerprint == first.fingerprint
    assert put_on(engine_of(saved(tmp_path / "b", seed=1)), path).info.fingerprint != first.fingerprint
    with_config(path, CONFIG, lora_alpha=16)
    assert put_on(engine, path).info.fingerprint != first.fingerprint


def test_another_adapter_under_its_name(engine: TorchEngine, path: Path, tmp_path: Path) -> None:
    first = put_on(engine, path, "tuned")
    second = first.beside(Change(str(written(tmp_path / "next", rank=2))), lambda _: None)
    assert (second.info.model, second.info.version) == ("tuned", first.info.version + 1)
    assert first.beside(Change(str(path), version=7), lambda _: None).info.version == 7
    with pytest.raises(ValueError, match="average of two adapters"):
        first.beside(Change(str(path), decay=0.5), lambda _: None)


def test_the_base_may_leave_first(path: Path, tmp_path: Path) -> None:
    base, pieces = engine_of(saved(tmp_path / "base")), pieces_of()
    first, second = put_on(base, path, "first"), put_on(base, path, "second")
    expected = scores(first, pieces)
    model = base._model
    base.close()
    first.close()
    assert (scores(second, pieces) == expected).all()
    assert list(model.parameters())
    second.close()
    assert not list(model.parameters())


def test_one_without_room(engine: TorchEngine, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._device, "free_bytes", lambda: 1000)
    assert "would be needed beside the hosted reference" in refused(engine, path)


def test_its_products_are_in_the_price(engine: TorchEngine, path: Path) -> None:
    [piece] = pieces_of(groups=1)
    assert put_on(engine, path).bytes_of(piece) >= engine.bytes_of(piece)
