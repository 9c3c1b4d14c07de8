"""Between a batch's begin and the copy of its answer the host neither reads from the device nor waits for it: counted.

On a GPU that is not there: the device `meta` runs the model's operators with shapes alone. What has to know a value there
(`item`, `nonzero`) cannot run, and every copy between devices is seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from grpo_numerics import score_rows
from grpo_numerics.packed import attention
from grpo_server.engine.anatomy import anatomy
from grpo_server.engine.contract import Piece
from grpo_server.engine.forwards import PackedForward
from grpo_server.engine.head_pass import fetched, head_passes, score_pieces
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig
from waits import Waits

VOCAB = 99
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "a window": MistralConfig(**SMALL, sliding_window=6),
    "windows and soft-caps": Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=8),
}


def asking(rng: np.random.Generator, **asked: Any) -> list[Piece]:
    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, VOCAB, n).astype(np.int32)

    stem = tokens(20)
    return [
        Piece(stem, (tokens(5), tokens(1), tokens(9)), 1.0, **asked),
        Piece(np.concatenate([stem, tokens(4)]), (tokens(7),), 0.7),
        Piece(tokens(3), (tokens(2), tokens(0)), 1.0, "stablemax", **asked),
    ]


ASKED: dict[str, dict[str, Any]] = {
    "log-probs": {},
    "extras": {"extras": frozenset({"entropy", "logsumexp", "rank"})},
    "top-k": {"top_k": 3, "extras": frozenset({"tail"})},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_on_a_gpu_waits_for_nothing(
    config: Any, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "on_triton", lambda *_: True)  # as a GPU has it: the operator knows its shapes
    model = AutoModelForCausalLM.from_config(config).eval().to("meta")
    parts = anatomy(model)
    forward = PackedForward(model, parts, heights=None)
    pieces = asking(np.random.default_rng(0), **asked)
    with torch.inference_mode():
        batch = forward.prepare(pieces)
        with Waits() as seen:
            passes = head_passes(forward.rows(batch), batch.questions, parts, score_rows)
        assert seen.reads == []
        assert set(seen.copies) == {"cpu to meta queued"}
        with Waits() as seen:
            answers = fetched(passes)
    assert seen.reads == []
    assert seen.copies == ["meta to cpu"]
    assert sum(len(scores.logprobs) for scores in answers) == len(batch.targets)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_nothing_is_read_one_by_one_on_a_cpu_either(asked: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["windows and soft-caps"]).eval()
    parts = anatomy(model)
    forward = PackedForward(model, parts, heights=None)
    with torch.inference_mode():
        batch = forward.prepare(asking(np.random.default_rng(0), **asked))
        with Waits() as seen:
            score_pieces(batch.pieces, forward.rows(batch), batch.questions, parts)
    assert seen.reads == []


def test_the_next_batch_finds_its_tables_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "on_triton", lambda *_: True)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval().to("meta")
    forward = PackedForward(model, anatomy(model), heights=None)
    with torch.inference_mode():
        forward.rows(forward.prepare(asking(np.random.default_rng(0))))
        batch = forward.prepare(asking(np.random.default_rng(1)))
        made = batch.plan.schedule.plan.asked
        forward.rows(batch)
    assert made
    assert batch.plan.schedule.plan.asked == made
