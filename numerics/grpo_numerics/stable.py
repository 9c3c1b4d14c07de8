"""Softmax and its kin from whole logits, in fp32 or better whatever the input's dtype, with gradient.

Everything subtracts the row's maximum before it exponentiates, so that no finite logits overflow. One policy for rows
without a distribution (all -inf, or any NaN or +inf): their softmax, log-probs and entropy are NaN, and no other
row's are touched; nor is a weight through them, once they are masked out of the loss: their gradient is 0 then. A single
-inf is a masked token: probability 0, log-prob -inf.

For hidden states instead of logits, where a (tokens, vocabulary) matrix would not fit, see `head`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .elementwise import log_add_exp, softplus
from .transforms import Normalizer, check_targets, normalized_logits, upcast


def logsumexp(x: Tensor, dim: int = -1) -> Tensor:
    """log sum e^x over `dim`, which is dropped; fp32, or fp64 for fp64 input. -inf where all of x is."""
    x = upcast(x)
    if not _differentiated(x):
        return torch.logsumexp(x, dim)
    top = x.detach().amax(dim, keepdim=True)
    void = ~top.isfinite()
    return torch.where(void, top, torch.logsumexp(x.masked_fill(void, 0.0), dim, keepdim=True)).squeeze(dim)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """x - max - log sum e^(x - max) over `dim`; fp32, or fp64 for fp64 input."""
    return _slice_by_slice(torch.log_softmax, upcast(x), dim)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """e^(x - max) / sum e^(x - max) over `dim`; fp32, or fp64 for fp64 input."""
    return _slice_by_slice(torch.softmax, upcast(x), dim)


def _slice_by_slice(of: Callable[[Tensor, int], Tensor], x: Tensor, dim: int) -> Tensor:
    """of(x, dim), differentiated around the slices that have no distribution: autograd makes NaN of 0 times theirs."""
    if not _differentiated(x):
        return of(x, dim)
    void = ~x.detach().amax(dim, keepdim=True).isfinite()
    return of(x.masked_fill(void, 0.0), dim).masked_fill(void, math.nan)


def _differentiated(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled() and x.numel() > 0


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    normalizer: Normalizer = "softmax",
) -> Tensor:
    """Log-prob of one token a row.

    logits: (..., V). targets: (...,) integer ids. temperature: divides the logits; a number > 0 or a tensor that
    broadcasts to (...,). Returns (...,), nats, fp32 or fp64.

    Written as -log1p(e^(L - z_t)) with L the log-sum-exp of all *other* tokens, and not as z_t - logsumexp(z): the
    sum over all tokens rounds to 1 once the target leads by 17 nats, and value and gradient are then exactly 0. This
    form keeps their relative precision down to the smallest float.

    Raises ValueError when shapes do not match or a target is outside the vocabulary.
    """
    check_targets(targets, logits.shape[-1], logits.shape[:-1])
    z = normalized_logits(logits, temperature, normalizer)
    index = targets.long().unsqueeze(-1)
    target = z.gather(-1, index).squeeze(-1)
    others = z.scatter(-1, index, -math.inf)
    # Also for a target that is the only token not masked: the others' log-sum-exp is -inf, and its derivative NaN.
    return logprob_from_odds(target, logsumexp(others))


def logprob_from_odds(target: Tensor, rest: Tensor) -> Tensor:
    """log p = -log1p(e^(rest - target)), elementwise; NaN where the two together have no distribution.

    target: the token's logit. rest: log-sum-exp of all other logits. Same shape.
    """
    sound = log_add_exp(target, rest).isfinite()
    logprob = -softplus(torch.where(sound, rest - target, 0.0))
    return torch.where(sound, logprob, math.nan)


def entropy_from_odds(target: Tensor, rest: Tensor, rest_entropy: Tensor) -> Tensor:
    """Entropy of a distribution cut in two, elementwise: one token, and all others with their own entropy.

    H = -p log p - q log q + q H_rest, q = 1 - p. Arguments as in `logprob_from_odds`.
    """
    log_p, log_q = logprob_from_odds(target, rest), -softplus(target - rest)
    p, q = log_p.exp(), log_q.exp()
    of_target = p * log_p.masked_fill(p == 0, 0.0)
    of_rest = q * torch.where(q == 0, 0.0, log_q - rest_entropy)
    return -(of_target + of_rest)


def entropy(logits: Tensor, *, temperature: float | Tensor = 1.0, normalizer: Normalizer = "softmax") -> Tensor:
    """Entropy -sum p log p of each row, nats: (..., V) -> (...,), fp32 or fp64. Arguments as in `token_logprobs`."""
    log_p = log_softmax(normalized_logits(logits, temperature, normalizer))
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)
