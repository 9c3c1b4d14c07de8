"""One attention call: queries over keys, giving the output and the log-sum-exp that merging needs. Forward and backward.

`Flash` is torch's blocked CPU kernel, which keeps no score matrix. `Plain` holds one block of scores at a time in fp32 and
takes what Flash cannot: soft-capped scores, and devices whose kernels do not hand out their log-sum-exp.

The backward of one call needs nothing of the other calls but the merged output and log-sum-exp: with P = exp(S - lse) the
weights over *all* keys and delta = sum(dO * O) over the merged output, dS = P * (dO V^T - delta + dlse) holds call by call
(FlashAttention-2, appendix B).

Shapes: q (n, H, L, D), k and v (n, H_kv, S, D), out (n, H, L, D_v), lse (n, H, L) fp32; mask (L, S), True where a key is seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..torch_ops import flash_backward, flash_forward, flash_on_cpu

# fp32 scores held at a time by Plain
_PLAIN_SCORES = 8 << 20


class Kernel(Protocol):
    """What a call is computed with."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def backward(
        self, d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flash:
    """torch's CPU flash attention. scale multiplies q.k."""

    scale: float

    @staticmethod
    def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Whether the kernel has these: on the CPU, one head size for keys and values, a floating type it knows, and a torch in
        which it is what it was."""
        known = q.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        alike = known and q.shape[-1] == v.shape[-1] and q.dtype == k.dtype == v.dtype
        return q.device.type == "cpu" and alike and flash_on_cpu()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = _additive(mask, q.dtype)
        repeats = q.shape[1] // k.shape[1]
        if repeats == 1:
            out, lse = flash_forward(q, k, v, causal and mask is None, bias, self.scale)
        elif q.shape[0] == 1:
            # query heads that read one key head become the batch; the keys are viewed, not copied
            folded = q[0].unflatten(0, (k.shape[1], repeats)).transpose(0, 1)
            shared = (repeats, *k.shape[1:])
            values = v.expand(repeats, *v.shape[1:])
            out, lse = flash_forward(folded, k.expand(shared), values, causal and mask is None, bias, self.scale)
            out = out.transpose(0, 1).flatten(0, 1)[None]
            lse = lse.transpose(0, 1).flatten(0, 1)[None]
        else:
            # one call for all heads: copies of the keys cost less than a call for each query head that shares them
            keys, values = _for_each(k, repeats), _for_each(v, repeats)
            out, lse = flash_forward(q, keys, values, causal and mask is None, bias, self.scale)
        if mask is not None:
            # a row that sees no key of this call: weight zero, and no NaN that would survive the zero
            blind = ~mask.any(-1)
            out = out.masked_fill(blind[:, None], 0)
            lse = lse.masked_fill(blind, -torch.inf)
        return out, lse

    def backward(
        self, d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert d_lse is None, "the kernel has no gradient through its log-sum-exp"
        bias = _additive(mask, q.dtype)
        heads = k.shape[1]
        repeats = q.shape[1] // heads
        per_head = [t.unflatten(1, (heads, repeats)) for t in (d_out, q, out, lse)]
        dq = torch.empty_like(per_head[1])
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for r in range(repeats):
            d_o, q_r, o_r, lse_r = (t[:, :, r] for t in per_head)
            dq[:, :, r], dk_r, dv_r = flash_backward(
                d_o, q_r, k, v, o_r, lse_r.contiguous(), causal and mask is None, bias, self.scale
            )
            dk += dk_r
            dv += dv_r
        return dq.flatten(1, 2), dk, dv


@dataclass(frozen=True, slots=True)
class Plain:
    """Matrix products and a softmax in fp32, a block of queries at a time. softcap: s -> softcap * tanh(s / softcap).

    block: with it, a row's bits do not depend on what else is in the call: segments and products one by one in the forward (the
    bits of a batched product depend on how many are in it, in MKL's reproducible mode too), queries in multiples of `block`.
    """

    scale: float
    softcap: float | None = None
    block: int | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.block is not None and len(q) > 1:
            parts = [self.forward(*part, causal, mask) for part in zip(q.split(1), k.split(1), v.split(1), strict=True)]
            return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])
        # how the heads of a call lie in memory depends on the batch, and a BLAS has other kernels for each way
        k, v = k.float().contiguous(), v.float().contiguous()
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
        for rows in self._blocks(q, k):
            scores, _ = self._scores(q[:, :, rows].float(), k, rows, causal, mask)
            lse[:, :, rows] = torch.logsumexp(scores, -1)
            weights = torch.softmax(scores, -1).nan_to_num_(0.0)  # a row that sees nothing gives nothing
            out[:, :, rows] = self._products(weights, v).to(q.dtype)
        return out, lse

    def backward(
        self, d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        causal: bool, mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        heads, repeats = k.shape[1], q.shape[1] // k.shape[1]
        keys, values = k.repeat_interleave(repeats, 1).float(), v.repeat_interleave(repeats, 1).float()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(keys), torch.zeros_like(values)
        delta = (d_out.float() * out.float()).sum(-1)
        if d_lse is not None:
            delta = delta - d_lse
        for rows in self._blocks(q, keys):
            queries = q[:, :, rows].float()
            scores, slope = self._scores(queries, keys, rows, causal, mask)
            weights = torch.exp(scores - lse[:, :, rows, None])
            d_o = d_out[:, :, rows].float()
            dv += weights.transpose(-1, -2) @ d_o
            d_scores = weights * (d_o @ values.transpose(-1, -2) - delta[:, :, rows, None]) * self.scale
            if slope is not None:
                d_scores = d_scores * slope
            dq[:, :, rows] = (d_scores @ keys).to(q.dtype)
            dk += d_scores.transpose(-1, -2) @ queries
        fold = (heads, repeats)
        return dq, dk.unflatten(1, fold).sum(2).to(k.dtype), dv.unflatten(1, fold).sum(2).to(v.dtype)

    def _blocks(self, q: Tensor, k: Tensor) -> list[slice]:
        rows = max(16, _PLAIN_SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
        if self.block is not None:
            rows = max(1, rows // self.block) * self.block
        return [slice(i, min(i + rows, q.shape[2])) for i in range(0, q.shape[2], rows)]

    def _scores(
        self, q: Tensor, k: Tensor, rows: slice, causal: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Scores (n, H, l, S) of the queries in `rows`, and the soft-cap's slope d(capped)/d(raw)."""
        scores, slope = self._products(q * self.scale, k.transpose(-1, -2)), None
        if self.softcap is not None:
            bent = torch.tanh(scores / self.softcap)
            scores, slope = bent * self.softcap, 1 - bent * bent
        if mask is not None:
            scores = scores.masked_fill(~mask[rows], -torch.inf)
        elif causal:
            row = torch.arange(rows.start, rows.stop, device=q.device)
            scores = scores.masked_fill(row[:, None] < torch.arange(k.shape[2], device=q.device), -torch.inf)
        return scores, slope

    def _products(self, a: Tensor, b: Tensor) -> Tensor:
        """a (n, H, l, K) times b (n, H_kv, K, S), each head of b with the heads of a that read it: (n, H, l, S)."""
        n, heads, rows, _ = a.shape
        readers = a.contiguous().view(n, b.shape[1], heads // b.shape[1] * rows, -1)
        if self.block is None:
            return (readers @ b).view(n, heads, rows, -1)
        out = a.new_empty(*readers.shape[:3], b.shape[-1])
        for i, h in itertools.product(range(n), range(b.shape[1])):
            torch.mm(readers[i, h], b[i, h], out=out[i, h])
        return out.view(n, heads, rows, -1)


def _for_each(t: Tensor, repeats: int) -> Tensor:
    """(n, H_kv, S, D) -> (n, H_kv * repeats, S, D), each head `repeats` times in a row."""
    return t[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A (L, S) mask as the kernel wants it: 0 where seen, -inf elsewhere, broadcast over batch and heads."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)[None, None]
