"""Where Triton is not: torch's own flash attention over gathered keys, one call for all segments of the stream.

Each segment's keys are its ancestors', whole, and its own, copied side by side; causal masks align to the lower right corner,
so that nothing need be merged, and a window is the plain window. fp16 and bf16, heads of one size up to 256, no soft-cap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...torch_ops import flash_of_segments
from ...transfer import Parcel
from .segments import Tree


@dataclass(frozen=True)
class Gathered:
    """rows (T',) int64: the stream rows of all segments' keys. cu_q, cu_k (S + 1,) int32: where each segment's begin."""

    parcel: Parcel[str]
    max_q: int
    max_k: int

    @classmethod
    def of(cls, tree: Tree) -> Gathered:
        used = [i for i in range(len(tree)) if tree.end[i] > tree.start[i]]
        keys = [np.concatenate([np.arange(tree.start[s], tree.end[s]) for s in (*tree.chains[i], i)]) for i in used]
        lengths, contexts = (tree.end - tree.start)[used], np.array([len(rows) for rows in keys], np.int64)
        # queries must lie as the segments do: sorted, they are the stream
        order = np.argsort(tree.start[used], kind="stable")
        none = np.zeros(0, np.int64)
        parcel = Parcel(
            {
                "rows": np.concatenate([none, *(keys[i] for i in order)]),
                "cu_q": np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int32),
                "cu_k": np.concatenate([[0], np.cumsum(contexts[order])]).astype(np.int32),
            }
        )
        return cls(parcel, int(lengths.max(initial=0)), int(contexts.max(initial=0)))


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, gathered: Gathered, *, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """q (H, T, D), k and v (H_kv, T, D) -> out (T, H, D), log-sum-exp (T, H) fp32 without gradient."""
    there = gathered.parcel.on(q.device)
    k, v = (t.transpose(0, 1).index_select(0, there["rows"]) for t in (k, v))
    out, logsumexp = flash_of_segments(
        q.transpose(0, 1), k, v, there["cu_q"], there["cu_k"], gathered.max_q, gathered.max_k, scale, window
    )
    return out, logsumexp.transpose(0, 1)
