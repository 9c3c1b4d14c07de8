"""The hosted weights are the process's own, and what is saved of them is the same reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from grpo_client.models.demo import ModelSource
from grpo_server.engine import EngineConfig, load_engine
from grpo_server.engine.contract import Change
from grpo_server.engine.room import no_room, weight_bytes
from transformers import LlamaConfig, LlamaForCausalLM


def saved(path: Path, seed: int, dtype: torch.dtype = torch.float32) -> str:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=99, max_position_embeddings=64, **sizes)  # pyright: ignore[reportArgumentType]
    LlamaForCausalLM(config).to(dtype).save_pretrained(path)
    return str(path)


def test_a_checkpoint_that_is_overwritten_does_not_change_what_is_hosted(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", 0)
    engine = load_engine(EngineConfig(model=path, device="cpu"))
    before = {name: tensor.clone() for name, tensor in engine._model.state_dict().items()}  # type: ignore[union-attr]
    file = tmp_path / "model" / "model.safetensors"
    with file.open("r+b") as raw:
        raw.seek(file.stat().st_size // 2)
        raw.write(bytes(file.stat().st_size // 2))
        raw.truncate()
    for name, tensor in engine._model.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(tensor, before[name]), name
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_what_is_saved_of_a_mix_is_the_same_reference(tmp_path: Path, mode: str) -> None:
    first, second = saved(tmp_path / "first", 0), saved(tmp_path / "second", 1)
    config = EngineConfig(model=first, device="cpu", mode=mode)  # type: ignore[arg-type]
    engine = load_engine(config)
    mixed = engine.beside(Change(second, decay=0.3), lambda _: None)
    mixed.save(tmp_path / "mixed")
    again = load_engine(
        EngineConfig(model=str(tmp_path / "mixed"), device="cpu", mode=mode, name=first, version=2)  # type: ignore[arg-type]
    )
    assert again.info == mixed.info
    assert (mixed.info.version, mixed.info.model) == (2, first)
    assert engine.info.version == 1


def test_a_model_that_changed_on_disk_is_the_next_version(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", 0)
    one = load_engine(EngineConfig(model=path, device="cpu", version=7)).info
    same = load_engine(EngineConfig(model=path, device="cpu", version=7, fingerprint=one.fingerprint)).info
    other = load_engine(EngineConfig(model=path, device="cpu", version=7, fingerprint="f" * 64)).info
    assert [info.version for info in (one, same, other)] == [7, 7, 8]


def test_room_is_what_the_headers_say_and_two_batches(tmp_path: Path) -> None:
    half = saved(tmp_path / "half", 0, torch.bfloat16)
    numbers = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(half).state_dict().values())
    assert weight_bytes(ModelSource(half), element=4) == 4 * numbers  # in what they are loaded as
    assert weight_bytes(ModelSource(str(tmp_path / "nowhere")), 4) is None
    assert no_room(needed=100, working=10, free=120) is None
    told = no_room(needed=3 << 30, working=1 << 29, free=2 << 30)
    assert told == "about 4.00 GiB would be needed beside the hosted reference, and 2.00 GiB is free"
