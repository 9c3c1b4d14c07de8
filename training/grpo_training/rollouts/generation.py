"""Sample groups of completions from the policy: each prompt is computed once, finished rows leave the batch.

A row's tokens depend on its own logits, the seed and its place in the batch, and not on which other rows have ended:
every row draws one uniform number per position whether it is still alive or not, and the token is the inverse of the
cumulative distribution at that number. So dropping finished rows saves work without changing what is sampled.

Not a serving engine: one batch, no paging, no top-p or top-k. GRPO needs samples from the very distribution whose
log-probs it then uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from grpo_client.protocol import Normalizer
from grpo_numerics.stable import log_softmax
from grpo_numerics.stablemax import log_stablemax
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from grpo_training.models.stopping import StopStrings
from grpo_training.rollouts.rollout import Rollout, pad_left


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    eos_ids: frozenset[int],
    seed: int,
    normalizer: Normalizer = "softmax",
    vocab_size: int | None = None,
    places: tuple[Tensor, int] | None = None,
    stops: StopStrings | None = None,
    limits: Sequence[int] | None = None,
    top_k: int = 0,
) -> Rollout:
    """Sample `group_size` completions of each prompt, from logits / temperature, in fp32.

    temperature: 0 takes the likeliest token each time, and tells log-probs and entropy at 1. seed: of this call; the
    same seed, model and prompts give the same rollout. An end-of-sequence id is part of its completion and the last
    token of it. vocab_size: ids from it on are left out of the distribution. places: these rows' (S,) places in a batch
    of so many rows, of which other processes sample the rest; each row then gets the tokens that it would get if one
    process sampled them all. stops: a completion also ends with the token that completes one of these strings. limits: of
    each row's tokens, where some have less room than `max_new_tokens`. top_k: how many of the likeliest ids to keep of each
    position.
    """
    device = model.device
    rows = len(prompts) * group_size
    mine, total = (slice(None), rows) if places is None else places
    uniforms = torch.rand(max_new_tokens, total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniforms = uniforms[:, mine].to(device)
    eos = torch.tensor(sorted(eos_ids), device=device)
    ids = torch.zeros(rows, max_new_tokens, dtype=torch.int64, device=device)
    mask = torch.zeros(rows, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    entropy = torch.zeros(rows, max_new_tokens, device=device)
    likeliest: list[Tensor] = []
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    room = torch.tensor([max_new_tokens] * rows if limits is None else list(limits), device=device)

    prompt_ids, attention, positions = pad_left(prompts, device)
    cache = DynamicCache()
    logits = model(
        input_ids=prompt_ids,
        attention_mask=attention,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.batch_repeat_interleave(group_size)
    logits = logits.repeat_interleave(group_size, 0)
    attention = attention.repeat_interleave(group_size, 0)
    position = positions[:, -1:].repeat_interleave(group_size, 0)
    alive = torch.arange(rows, device=device)  # which row of the rollout each row of the batch is

    for t in range(max_new_tokens):
        logits = logits[:, :vocab_size]
        logp = _distribution(logits, temperature or 1.0, normalizer)  # (alive, V)
        probs = logp.exp()
        token = _inverse_cdf(probs, uniforms[t, alive]) if temperature else logits.argmax(-1)
        ids[alive, t] = token
        mask[alive, t] = True
        logprobs[alive, t] = logp.gather(-1, token[:, None])[:, 0]
        # p * log p is 0 where p is 0, and not 0 * -inf.
        entropy[alive, t] = -(probs * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
        if top_k:
            best = torch.full((rows, min(top_k, logp.shape[1])), -1, dtype=torch.int32, device=device)
            best[alive] = logp.topk(best.shape[1]).indices.int()
            likeliest.append(best)
        over = torch.isin(token, eos)
        if stops is not None:
            recent = ids[alive, max(0, t + 1 - stops.window) : t + 1].tolist()
            over |= torch.tensor(stops(recent), device=device)
        ended[alive[over]] = True
        over |= room[alive] <= t + 1
        if bool(over.all()):
            break
        if bool(over.any()):
            keep = (~over).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            token, alive, attention, position = token[keep], alive[keep], attention[keep], position[keep]
        attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
        position = position + 1
        logits = model(
            input_ids=token[:, None],
            attention_mask=attention,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]

    width = int(mask.sum(-1).max())
    return Rollout(
        [list(p) for p in prompts],
        group_size,
        ids[:, :width],
        mask[:, :width],
        logprobs[:, :width],
        entropy[:, :width],
        ended,
        top_ids=torch.stack(likeliest, dim=1) if top_k else None,
    )


def _distribution(logits: Tensor, temperature: float, normalizer: Normalizer) -> Tensor:
    """(B, V) fp32 log-probs of logits / temperature."""
    scaled = logits.float() / temperature
    return log_stablemax(scaled, dim=-1) if normalizer == "stablemax" else log_softmax(scaled, dim=-1)


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """(B,) the token at which the cumulative distribution passes each uniform number.

    Summed in fp64: in fp32 the rounding of a sum over 50,000 tokens is as large as the probability of many of them.
    Scaling by the total keeps the last token of positive probability the last one that can come out.
    """
    cumulative = probs.double().cumsum(-1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).clamp(max=probs.shape[-1] - 1)[:, 0]
