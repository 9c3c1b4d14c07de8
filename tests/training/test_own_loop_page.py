"""docs/own-loop.md: its step runs as it stands there, and its loss is that of the formula."""

from __future__ import annotations

import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpo_client
import numpy as np
import pytest
import torch
from grpo_client import ReferenceInfo, ScoreResult, Status
from grpo_training.losses import group_advantages

PAGE = (Path(__file__).parents[2] / "docs/own-loop.md").read_text(encoding="utf-8")
SNIPPET = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
INFO = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=50
)
PROMPTS, COMPLETIONS = [[1, 2], [3]], [[[4, 5, 6], [7]], [[8, 9], [10, 11, 12]]]
LENGTHS = np.array([3, 1, 2, 3], dtype=np.int32)
SCORES = -np.linspace(0.1, 2.0, 9, dtype=np.float32)


class Reference:
    def __init__(self, url: str, fingerprint: str) -> None:
        assert fingerprint == "first"

    def submit(self, prompts: Any, completions: Any, temperature: float) -> Future[ScoreResult]:
        assert (prompts, completions, temperature) == (PROMPTS, COMPLETIONS, 1.0)
        sizes, warmth = np.array([2, 2], dtype=np.int32), np.ones(2, dtype=np.float32)
        status = np.full(4, Status.OK, dtype=np.uint8)
        future: Future[ScoreResult] = Future()
        future.set_result(ScoreResult(INFO, "softmax", warmth, sizes, LENGTHS, SCORES, status))
        return future


def test_the_loss_of_the_page_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_client, "ReferenceClient", Reference)
    page: dict[str, Any] = {}
    exec(compile(SNIPPET, "docs/own-loop.md", "exec"), page)
    random = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(4, 3, generator=random, dtype=torch.float64) * 2
    old = logprobs + 0.3 * torch.randn(4, 3, generator=random, dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.25, 0.75])
    loss = page["step"](PROMPTS, COMPLETIONS, rewards, lambda: logprobs, old)

    mask = torch.arange(3)[None] < torch.from_numpy(LENGTHS)[:, None]
    reference = torch.zeros(4, 3, dtype=torch.float64).masked_scatter(mask, torch.from_numpy(SCORES).double())
    total = torch.tensor(0.0, dtype=torch.float64)
    for row, advantage in enumerate(group_advantages(rewards.double(), 2)):
        terms = []
        for t in range(int(LENGTHS[row])):
            ratio = (logprobs[row, t] - old[row, t]).exp()
            d = reference[row, t] - logprobs[row, t]
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            terms.append(-surrogate + 0.04 * (d.exp() - d - 1))
        total = total + torch.stack(terms).mean() / 4
    torch.testing.assert_close(loss.double(), total, rtol=1e-6, atol=1e-7)  # rewards, and so advantages, are float32
