"""Strings that several tokens spell end a completion where they are complete."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grpo_training.config import RolloutConfig
from grpo_training.models.stopping import StopStrings
from grpo_training.rollouts.generation import sample
from pydantic import ValidationError
from transformers import LlamaForCausalLM

PROMPTS = [[5, 6, 7], [12, 13]]
SETTINGS: dict[str, Any] = {
    "group_size": 8,
    "max_new_tokens": 24,
    "temperature": 2.0,
    "eos_ids": frozenset(),
    "seed": 3,
}


def test_a_completion_ends_where_the_string_is_complete(tiny: LlamaForCausalLM, tokenizer: Any) -> None:
    free = sample(tiny, PROMPTS, **SETTINGS)
    rows = [ids for group in free.completions() for ids in group]
    stops = sorted({tokenizer.decode(rows[i][at : at + 2]) for i, at in ((0, 5), (1, 5), (2, 5), (4, 2))})
    ended = sample(tiny, PROMPTS, stops=StopStrings(tokenizer, stops), **SETTINGS)
    cut = [ids for group in ended.completions() for ids in group]
    for whole, mine, over in zip(rows, cut, ended.ended.tolist(), strict=True):
        ends = [n for n in range(1, len(whole) + 1) if any(stop in tokenizer.decode(whole[:n]) for stop in stops)]
        assert mine == whole[: min(ends, default=len(whole))]
        assert over is bool(ends)
    assert int(ended.ended.sum()) >= 4
    assert ended.lengths.tolist() == [len(ids) for ids in cut]
    assert torch.equal(ended.ids[0, : len(cut[0])], free.ids[0, : len(cut[0])])


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(ValidationError, match="an empty string would end every completion"):
        RolloutConfig(stop=("a", ""))
