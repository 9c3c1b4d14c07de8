"""Whatever is wrong with a checkpoint, it is refused by one sentence that says what: at start, at a swap, at a mix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, also, changed, llama, prefixed, saved, with_config, with_tensors, without
from grpo_server.engine import EngineConfig
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded, load

Break = Callable[[Path], object]


def weights(change: Callable[[Tensors], Tensors]) -> Break:
    return lambda d: with_tensors(d, change)


def config(**values: Any) -> Break:
    return lambda d: with_config(d, **values)


def contents(file: str, data: bytes) -> Break:
    return lambda d: (d / file).write_bytes(data)


def halved(d: Path) -> None:
    file = d / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def as_bin(data: bytes | None = None) -> Break:
    def change(d: Path) -> None:
        (d / "model.safetensors").unlink()
        if data is None:
            torch.save({"lm_head.weight": print}, d / "pytorch_model.bin")
        else:
            (d / "pytorch_model.bin").write_bytes(data)

    return change


def quantized(**how: object) -> Break:
    return config(quantization_config=how)


NAN = torch.tensor(float("nan"))
SCRIPT = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}

WEIGHTS: dict[str, tuple[Break, str]] = {
    "no head": (weights(without("lm_head")), r"it lacks lm_head\.weight; .*tie_word_embeddings"),
    "no embedding": (weights(without("embed_tokens")), r"it lacks model\.embed_tokens\.weight$"),
    "compiled": (weights(prefixed("_orig_mod.")), r"strip '_orig_mod\.' from the names, which torch\.compile"),
    "wrapped": (weights(prefixed("module.")), r"strip 'module\.' from the names, which DataParallel"),
    "sharded wrapper": (weights(prefixed("_fsdp_wrapped_module.")), r"_fsdp_wrapped_module"),
    "part of a larger model": (weights(prefixed("language_model.")), r"strip 'language_model\.'"),
    "saved by peft": (weights(prefixed("base_model.model.")), r"merge_and_unload"),
    "a layer is gone": (
        weights(without("layers.1.")),
        r"and 6 more; config\.json says 2 of model\.layers\.\*.* has 1$",
    ),
    "more layers said": (
        config(num_hidden_layers=3),
        r"config\.json says 3 of model\.layers\.\*, and the checkpoint has 2",
    ),
    "fewer layers said": (config(num_hidden_layers=1), r"no place for model\.layers\.1\..*says 1 of .* has 2"),
    "another shape": (weights(changed("layers.0.mlp.up", lambda t: t[:-1])), r"up_proj\.weight 47x32, not 48x32"),
    "another vocabulary": (config(vocab_size=160), r"lm_head\.weight 151x32, not 160x32, model\.embed_tokens\.weight"),
    "a second head": (weights(also(output__weight=torch.ones(151, 32))), r"no place for output\.weight"),
    "a bias": (weights(also(model__layers__0__self_attn__q_proj__bias=torch.ones(32))), r"q_proj\.bias"),
    "NaN": (
        weights(changed("layers.1.mlp.up", lambda t: t * NAN)),
        r"NaN or infinity, in model\.layers\.1\.mlp\.up_proj",
    ),
    "infinity": (
        weights(changed("norm.weight", lambda t: t / 0)),
        r"NaN or infinity, in model\.layers\.0\.input_layernorm",
    ),
    "packed weights": (
        weights(lambda t: {n.replace("up_proj.weight", "up_proj.qweight"): v for n, v in t.items()}),
        r"restore its quantization_config",
    ),
}
FILES: dict[str, tuple[Break, str]] = {
    "cut off": (halved, r"model\.safetensors is cut off .*; copy it again"),
    "empty": (contents("model.safetensors", b""), r"model\.safetensors is empty"),
    "a web page": (contents("model.safetensors", b"<!DOCTYPE html>" * 99), r"no safetensors file"),
    "a pointer": (contents("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), r"git lfs pull"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"it holds no weights \(model\.safetensors\)"),
    "no config": (lambda d: (d / "config.json").unlink(), r"it holds no config\.json"),
    "config is no JSON": (contents("config.json", b"{model_type: llama"), r"config\.json is not JSON"),
    "config is a list": (contents("config.json", b"[]"), r"config\.json holds no JSON object"),
    "config is empty": (contents("config.json", b"{}"), r"names no model_type"),
    "unknown kind": (config(model_type="nonesuch"), r"model type `nonesuch`"),
    "no language model": (config(model_type="vit"), r"no causal language model"),
    "a size is a word": (config(hidden_size="wide"), r"'hidden_size' expected int, got str"),
    "no heads": (config(num_attention_heads=0), r"failed with ZeroDivisionError"),
    "unknown activation": (config(hidden_act="nonesuch"), r"transformers looked for 'nonesuch'"),
    "negative vocabulary": (config(vocab_size=-3), r"-3"),
    "code of its own": (config(model_type="mine", auto_map=SCRIPT), r"trust_remote_code"),
    "pickled code": (as_bin(), r"could run code, and is not loaded; save it as safetensors"),
    "no pickle": (as_bin(b"garbage"), r"\.bin"),
    "GPTQ": (quantized(quant_method="gptq", bits=4), r"not installed; type: pip install .*(optimum|gptqmodel)"),
    "AWQ": (quantized(quant_method="awq", bits=4), r"not installed; type: pip install .*gptqmodel"),
    "bitsandbytes": (
        quantized(quant_method="bitsandbytes", load_in_4bit=True),
        r"not installed; type: pip install .*bitsandbytes",
    ),
    "compressed": (
        quantized(quant_method="compressed-tensors"),
        r"not installed; type: pip install .*compressed-tensors",
    ),
    "torchao": (quantized(quant_method="torchao"), r"not installed; type: pip install .*torchao"),
}
ALL = {**WEIGHTS, **FILES}


def refused(name: str, **settings: Any) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        load(EngineConfig(model=name, device="cpu", **settings))
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 700
    return told


@pytest.mark.parametrize("case", ALL)
def test_a_broken_checkpoint_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    change, reason = ALL[case]
    path = saved(tmp_path / "model")
    change(path)
    with pytest.raises((OSError, ValueError), match=reason):
        load(EngineConfig(model=str(path), device="cpu"))
    refused(str(path))


@pytest.mark.parametrize("mode", ["swap", "mix"])
def test_the_old_reference_serves_on_whatever_was_wrong(mode: str, tmp_path: Path) -> None:
    engine = TorchEngine(EngineConfig(model="old", device="cpu"), Loaded(llama(), None, None))
    before = engine.info
    for number, (change, reason) in enumerate(ALL.values()):
        path = saved(tmp_path / str(number), seed=1)
        change(path)
        with pytest.raises((OSError, ValueError), match=reason):
            engine.swap(str(path)) if mode == "swap" else engine.mix(str(path), 0.5)
        assert engine.info == before
    good = str(saved(tmp_path / "good", seed=1))
    assert (engine.swap(good) if mode == "swap" else engine.mix(good, 0.5)).version == 2


def test_a_mix_names_the_tensors_that_do_not_fit(tmp_path: Path) -> None:
    engine = TorchEngine(EngineConfig(model="old", device="cpu"), Loaded(llama(), None, None))
    with pytest.raises(ValueError, match=r"\(lm_head\.weight 151x64, not 151x32, .* more\); swap instead of mixing"):
        engine.mix(str(saved(tmp_path / "wide", hidden_size=64)), 0.5)


def test_a_mix_of_equal_shapes_under_another_config_is_refused(tmp_path: Path) -> None:
    """The tensors fit and mean something else: other rotary frequencies, another epsilon."""
    engine = TorchEngine(EngineConfig(model="old", device="cpu"), Loaded(llama(), None, None))
    before = engine.hosted
    for setting in ({"rms_norm_eps": 1e-3}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}):
        name = next(iter(setting))
        with pytest.raises(ValueError, match=rf"config of .* differs from that of the hosted reference \({name}"):
            engine.mix(str(saved(tmp_path / name, **setting)), 0.5)
    assert engine.hosted is before
    same = saved(tmp_path / "same", use_cache=False, attention_dropout=0.1, pad_token_id=0)
    assert engine.mix(str(same), 0.5).version == 2


def test_shards(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first, second, *_ = sorted(set(whole["weight_map"].values()))
    load(EngineConfig(model=str(tmp_path), device="cpu"))
    index.write_text(json.dumps({**whole, "weight_map": {n: f for n, f in whole["weight_map"].items() if f != second}}))
    assert "it lacks model.layers.0" in refused(str(tmp_path))
    for text, reason in [("{", "is not JSON"), ("{}", "names no files"), ('{"weight_map": {}}', "names no files")]:
        index.write_text(text)
        assert f"model.safetensors.index.json {reason}" in refused(str(tmp_path))
    index.unlink()
    assert "no model.safetensors.index.json" in refused(str(tmp_path))
    index.write_text(json.dumps(whole))
    (tmp_path / first).unlink()
    assert f"{first} is not there, which model.safetensors.index.json names" in refused(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./nope", "there is no directory ./nope"),
        ("../nope", "there is no directory ../nope"),
        ("~/nope", "there is no directory ~/nope"),
        ("a/b/c", "there is no directory a/b/c"),
        ("nope.gguf", "there is no file nope.gguf"),
    ],
)
def test_a_path_that_is_not_there(name: str, reason: str) -> None:
    assert refused(name) == reason


@pytest.mark.parametrize("name", ["nope", "nobody/nothing"])
def test_a_word_may_be_a_hub_id_and_the_hub_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = refused(name)
    assert told.startswith(f"there is no directory {name}, and the hub")


def test_a_path_that_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert refused(str(file)) == f"{file} is a file; give the directory that holds it, or a .gguf file"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a link to what is not there" in refused(str(tmp_path / "link"))
    saved(tmp_path / "runs" / "checkpoint-10")
    assert refused(str(tmp_path / "runs")) == "it holds no config.json; give one of those in it: checkpoint-10"


def test_a_path_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(saved(tmp_path / "model"))
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # a superuser may read everything
    assert refused(path) == f"there is no permission to read {path}"


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty"), (b"nope" * 99, "is not a GGUF file"), (b"GGUF" + bytes(10), "is cut off or broken")],
)
def test_a_gguf_file_that_is_none(data: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    assert f"model.gguf {reason}" in refused(str(file))
