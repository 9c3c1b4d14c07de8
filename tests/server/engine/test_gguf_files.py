"""A GGUF file is read whole, or refused: what transformers leaves out of it would change the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from checkpoints import VOCAB, llama
from grpo_server.engine import EngineConfig
from grpo_server.engine.loading import load


def written(
    path: Path,
    *,
    without: Sequence[str] = (),
    also: Mapping[str, np.ndarray] | None = None,
    blocks: int = 2,
    scaling: tuple[gguf.RopeScalingType, float] | None = None,
) -> str:
    """`llama()` as a GGUF file (its queries and keys not in llama.cpp's order, which no name or size depends on)."""
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_name("tiny")
    file.add_block_count(blocks)
    file.add_context_length(128)
    file.add_embedding_length(32)
    file.add_feed_forward_length(48)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(8)
    file.add_vocab_size(VOCAB)
    if scaling:
        file.add_rope_scaling_type(scaling[0])
        file.add_rope_scaling_factor(scaling[1])
    file.add_tokenizer_model("llama")
    file.add_token_list([f"t{i}" for i in range(VOCAB)])
    file.add_token_scores([0.0] * VOCAB)
    file.add_token_types([1] * VOCAB)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tensors = {names.get_name(n, try_suffixes=(".weight",)): t.numpy() for n, t in llama().state_dict().items()}
    for name, tensor in {**tensors, **(also or {})}.items():
        if not any(part in name for part in without):
            file.add_tensor(name, tensor)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return str(path)


def refused(path: str) -> str:
    with pytest.raises(ValueError) as caught:
        load(EngineConfig(model=path, device="cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    for scaling in (None, (gguf.RopeScalingType.NONE, 4.0), (gguf.RopeScalingType.LINEAR, 1.0)):
        model = load(EngineConfig(model=written(tmp_path / "a.gguf", scaling=scaling), device="cpu")).model
        assert torch.equal(model.lm_head.weight, llama().lm_head.weight)
        assert torch.equal(model.model.layers[1].mlp.up_proj.weight, llama().model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("part", "name"), [("output_norm", "model.norm.weight"), ("blk.1.", "model.layers.1.input_layernorm")]
)
def test_a_tensor_that_is_not_there(part: str, name: str, tmp_path: Path) -> None:
    assert f"it lacks {name}" in refused(written(tmp_path / "a.gguf", without=[part]))


def test_more_layers_than_it_says_and_fewer(tmp_path: Path) -> None:
    told = refused(written(tmp_path / "a.gguf", blocks=1))
    assert told.startswith(
        "the GGUF file says 1 layers (block_count), and the model has no place for blk.1.attn_k.weight"
    )
    assert "it lacks model.layers.2." in refused(written(tmp_path / "b.gguf", blocks=3))


def test_rotary_frequencies_that_transformers_does_not_read(tmp_path: Path) -> None:
    table = {"rope_freqs.weight": np.ones(4, np.float32)}
    assert "rotary frequencies of a GGUF file (rope_freqs.weight)" in refused(written(tmp_path / "a.gguf", also=table))
    for kind in (gguf.RopeScalingType.YARN, gguf.RopeScalingType.LINEAR):
        told = refused(written(tmp_path / "b.gguf", scaling=(kind, 4.0)))
        assert f"rotary scaling of a GGUF file ({kind.value}); use the model's safetensors checkpoint" in told


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    whole = Path(path).read_bytes()
    for size in (3000, len(whole) - 2000):
        Path(path).write_bytes(whole[:size])
        assert refused(path) == "a.gguf is cut off or broken; copy it again"
