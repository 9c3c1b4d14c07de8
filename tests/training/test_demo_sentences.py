"""What the demo's first table shows: the right ending is the likeliest, by the model that the demo serves."""

from __future__ import annotations

import pytest
import torch
from grpo_training import demo
from grpo_training.config import ModelConfig
from grpo_training.models.loading import load_model


@pytest.mark.demo_model
def test_the_right_ending_is_the_likeliest_and_the_absurd_one_the_least() -> None:
    loaded = load_model(ModelConfig(name="demo", device="cpu"), stop=[])

    def logprob(prompt: str, ending: str) -> float:
        asked, answered = (loaded.tokenizer(text).input_ids for text in (prompt, ending))
        with torch.no_grad():
            logits = loaded.model(torch.tensor([asked + answered])).logits[0, len(asked) - 1 : -1]  # (C, V)
        return logits.double().log_softmax(-1)[range(len(answered)), answered].sum().item()

    for prompt, endings in demo._SENTENCES:
        scores = [logprob(prompt, ending) for ending in endings]
        assert scores == sorted(scores, reverse=True), prompt
        assert scores[0] - scores[1] > 1, f"{prompt}: too close to call"
