"""Adapters of tiny bases on disk, as peft saves them, and the scores that peft's own forward gives."""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import VOCAB
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.adapters.engine import AdaptedEngine
from grpo_server.engine.contract import Addition
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import load
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

PREFIX = "base_model.model.model.layers"
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@contextmanager
def peft_quiet() -> Generator[Any]:
    """peft, without its warnings: of ties, embeddings and what transformers has renamed."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield peft


def adapted(directory: Path, base: Path, seed: int = 3, **settings: Any) -> Path:
    """A LoRA of `base`, far from nothing."""
    torch.manual_seed(seed)
    asked = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    with peft_quiet() as peft:
        bare = AutoModelForCausalLM.from_pretrained(base)
        model = peft.get_peft_model(bare, peft.LoraConfig(**{**asked, **settings}))
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(directory)
    return directory


def written(directory: Path, rank: int = 4, **config: Any) -> Path:
    """A LoRA on all q_proj, without peft."""
    torch.manual_seed(0)
    directory.mkdir()
    names = [f"{PREFIX}.{n}.self_attn.q_proj" for n in range(2)]
    tensors = {f"{name}.lora_A.weight": torch.randn(rank, 32) for name in names}
    tensors |= {f"{name}.lora_B.weight": torch.randn(32, rank) for name in names}
    save_file(tensors, directory / FILE)
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (directory / CONFIG).write_text(json.dumps(said))
    return directory


def engine_of(base: Path, **settings: Any) -> TorchEngine:
    config = EngineConfig(model=str(base), device="cpu", **settings)
    return TorchEngine(config, load(config))


def put_on(base: TorchEngine, path: Path, name: str = "tuned") -> AdaptedEngine:
    found = base.adapt(Addition(str(path), name), lambda _: None)
    assert isinstance(found, AdaptedEngine)
    return found


def pieces_of(seed: int = 0, groups: int = 2, vocab: int = VOCAB) -> list[Piece]:
    rng = np.random.default_rng(seed)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, vocab, n, dtype=np.int32)

    return [Piece(ids(5 + 7 * g), (ids(6), ids(1), ids(9 + g)), 1.0) for g in range(groups)]


def scores(engine: Any, pieces: Sequence[Piece]) -> np.ndarray:
    return np.concatenate([p.logprobs for p in engine.compute(engine.prepare(pieces)).pieces])


def by_peft(base: Path, path: Path, pieces: Sequence[Piece], dtype: torch.dtype = torch.float64) -> np.ndarray:
    """(N,) by peft's own forward, sequence by sequence."""
    with peft_quiet() as peft:
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        model = peft.PeftModel.from_pretrained(loaded, str(path), autocast_adapter_dtype=False).eval().to(dtype)
    found: list[np.ndarray] = []
    for piece in pieces:
        for completion in piece.completions:
            ids = torch.from_numpy(np.concatenate([piece.prompt, completion])).long()
            with torch.no_grad():
                logits = model(ids[None]).logits[0, len(piece.prompt) - 1 : -1].double()
            found.append(torch.log_softmax(logits, -1).gather(1, ids[len(piece.prompt) :, None])[:, 0].numpy())
    return np.concatenate(found)
