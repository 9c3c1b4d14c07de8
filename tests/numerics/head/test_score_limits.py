"""What the fused head refuses, and the memory that it stays within."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from grpo_numerics import HeadSpec, default_tile, score_rows, scratch_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": torch.zeros(2, 4)}, r"hidden must be \(R, D\)"),
        ({"weight": torch.zeros(0, 3)}, r"weight \(V, D\)"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.int64)}, "must be floating point"),
        ({"targets": torch.tensor([0, 5])}, r"targets must lie in \[0, 5\)"),
        ({"targets": torch.tensor([0])}, "targets must have shape"),
        ({"spec": HeadSpec(torch.zeros(4))}, "bias must have shape"),
        ({"temperature": torch.ones(3)}, "temperature must be a number or"),
        ({"temperature": -1.0}, "temperature must be finite and > 0"),
        ({"normalizer": "sigmoid"}, "normalizer must be"),
        ({"top_k": 6}, r"top_k must lie in \[0, 5\]"),
        ({"want": {"logits"}}, "want knows entropy, logsumexp, rank, tail"),
        ({"token_ids": torch.tensor([[0], [9]])}, r"token_ids must lie in \[-1, 5\)"),
        ({"token_ids": torch.tensor([0, 1])}, r"token_ids must be \(R, j\)"),
        ({"tile": (0, 16)}, "tile must hold"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    good = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "targets": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        score_rows(**{**good, **arguments})
    with pytest.raises(ValueError, match="softcap must be > 0"):
        HeadSpec(softcap=0.0)


_PEAK = """
import resource, torch
from grpo_numerics import score_rows
rows, dim, vocab = 4096, 32, 32768
hidden, weight = torch.zeros(rows, dim), torch.zeros(vocab, dim, dtype=torch.bfloat16)
targets = torch.zeros(rows, dtype=torch.int64)
score_rows(hidden[:1], weight, targets[:1])  # libraries loaded, threads started
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score_rows(hidden, weight, targets, want={"entropy", "logsumexp", "rank"})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_is_that_of_a_few_tiles() -> None:
    """The whole logits would take 512 MiB; the promise is scratch_bytes and the rows' own figures."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    figures = 4096 * 4 * 32  # some dozens of fp32 numbers a row
    assert int(done.stdout) < scratch_bytes(32) + figures


@pytest.mark.parametrize("dim", [1, 64, 576, 4096, 8192, 16384])
def test_default_tile_keeps_scratch_small(dim: int) -> None:
    tile = default_tile(dim)
    assert tile.vocab % 16 == 0
    assert 4 * 2 * tile.rows * tile.vocab <= 16 << 20
    assert 4 * tile.vocab * dim <= 16 << 20
