"""A row's scores are the same bits alone, in any batch, at any place, on one thread and on two.

In processes of their own: MKL chooses its reproducible kernels before its first product.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import hashlib, sys, torch
from grpo_numerics import score_rows

torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
rows, dim, vocab = 150, 96, 2500
hidden = torch.randn(rows, dim, generator=generator)
weight = torch.randn(vocab, dim, generator=generator)
targets = torch.randint(vocab, (rows,), generator=generator)
ids = torch.randint(vocab, (rows, 3), generator=generator)
temperature = torch.linspace(0.5, 1.5, rows)
temperature[::3] = 1.0

def figures(order, normalizer):
    scores = score_rows(hidden[order], weight, targets[order], temperature=temperature[order], normalizer=normalizer,
                        want={"entropy", "logsumexp", "rank"}, top_k=4, token_ids=ids[order], tile=(64, 512))
    return torch.cat([scores.logprobs[:, None], scores.entropy[:, None], scores.logsumexp[:, None],
                      scores.rank[:, None].float(), scores.top_ids.float(), scores.top_logprobs,
                      scores.token_logprobs], 1)

for normalizer in ("softmax", "stablemax"):
    together = figures(torch.arange(rows), normalizer)
    orders = [torch.tensor([row]) for row in (0, 1, 2, 17, 63, 64, 65, 149)]
    orders += [torch.arange(row, row + count) for row, count in ((5, 2), (9, 3), (40, 4), (60, 7), (100, 33))]
    orders += [torch.randperm(rows, generator=generator)[:count] for count in (2, 15, 16, 17, 64, 65, 100, 150)]
    orders += [torch.full((20,), 7)]
    for order in orders:
        assert torch.equal(figures(order, normalizer), together[order]), (normalizer, order)
    print(hashlib.sha256(together.numpy().tobytes()).hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MKL_CBWR is for MKL on Linux and Windows")
def test_same_bits_whatever_shares_the_batch() -> None:
    environment = {**os.environ, "MKL_CBWR": "AVX2,STRICT"}
    digests = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, threads], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for threads in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].split()) == 2
