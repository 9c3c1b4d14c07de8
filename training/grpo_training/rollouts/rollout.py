"""Sample groups of completions from the policy: each prompt is computed once, finished rows leave the batch.

A row's tokens depend on its own logits, the seed and its place in the batch, and not on which other rows have ended:
every row draws one uniform number per position whether it is still alive or not, and the token is the inverse of the
cumulative distribution at that number. So dropping finished rows saves work without changing what is sampled.

Not a serving engine: one batch, no paging, no top-p or top-k. GRPO needs samples from the very distribution whose
log-probs it then uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from grpo_client.protocol import Normalizer
from grpo_numerics.stable import log_softmax
from grpo_numerics.stablemax import log_stablemax
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from grpo_training.models.stopping import StopStrings


@dataclass(frozen=True, slots=True)
class Rollout:
    """K prompts with G completions each, S = K*G rows in the prompts' order, padded on the right to C.

    prompts: K lists of ids. ids: (S, C) int64, 0 where mask is False. mask: (S, C) bool, the tokens that exist: True up to
    and including the first end-of-sequence id. logprobs, entropy: (S, C) fp32, what the sampler saw, 0 outside loss_mask;
    entropy is None where it does not tell. ended: (S,) bool, False for a completion that was cut at the length limit.
    by_policy: (S, C) bool, the tokens that the policy wrote, where others stand among them (a tool's answer); None: all.
    """

    prompts: list[list[int]]
    group_size: int
    ids: Tensor
    mask: Tensor
    logprobs: Tensor
    entropy: Tensor | None
    ended: Tensor
    by_policy: Tensor | None = None

    @property
    def loss_mask(self) -> Tensor:
        """(S, C) bool: the tokens that are scored and trained on, those that exist and that the policy wrote."""
        return self.mask if self.by_policy is None else self.mask & self.by_policy

    @property
    def lengths(self) -> Tensor:
        """(S,) tokens per completion, whoever wrote them, the end-of-sequence id included."""
        return self.mask.sum(-1)

    def completions(self) -> list[list[list[int]]]:
        """K x G lists of ids, without padding."""
        # Two copies from the device, and not two a row.
        rows = [row[:n] for row, n in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]
        return [rows[k : k + self.group_size] for k in range(0, len(rows), self.group_size)]

    def portions(self, count: int) -> list[Rollout]:
        """Cut into `count` rollouts of whole groups; `count` divides K."""
        prompts = len(self.prompts) // count
        return [self._part(i * prompts, (i + 1) * prompts) for i in range(count)]

    def replaced(self, groups: Sequence[int], others: Rollout) -> Rollout:
        """The same with `groups` (their places) taken from `others`, which has them in this order and nothing else."""
        width = max(self.ids.shape[1], others.ids.shape[1])
        rows = torch.tensor(groups)[:, None] * self.group_size + torch.arange(self.group_size)
        at = rows.flatten().to(self.ids.device)

        def joined(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return None
            out, new = (nn.functional.pad(t, (0, width - t.shape[1])) if t.dim() == 2 else t for t in (mine, theirs))
            return out.index_copy(0, at, new)

        prompts = list(self.prompts)
        for place, prompt in zip(groups, others.prompts, strict=True):
            prompts[place] = prompt
        mixed = self.by_policy is not None or others.by_policy is not None
        return Rollout(
            prompts,
            self.group_size,
            cast(Tensor, joined(self.ids, others.ids)),
            cast(Tensor, joined(self.mask, others.mask)),
            cast(Tensor, joined(self.logprobs, others.logprobs)),
            joined(self.entropy, others.entropy),
            cast(Tensor, joined(self.ended, others.ended)),
            joined(self.loss_mask, others.loss_mask) if mixed else None,
        )

    def chosen(self, groups: Sequence[int]) -> Rollout:
        """The groups at these places, in this order."""
        parts = [self._part(k, k + 1) for k in groups]
        rows = torch.tensor(groups)[:, None] * self.group_size + torch.arange(self.group_size)
        at = rows.flatten().to(self.ids.device)
        return Rollout(
            [part.prompts[0] for part in parts],
            self.group_size,
            self.ids[at],
            self.mask[at],
            self.logprobs[at],
            None if self.entropy is None else self.entropy[at],
            self.ended[at],
            None if self.by_policy is None else self.by_policy[at],
        )

    def _part(self, first: int, last: int) -> Rollout:
        rows = slice(first * self.group_size, last * self.group_size)
        return Rollout(
            self.prompts[first:last],
            self.group_size,
            self.ids[rows],
            self.mask[rows],
            self.logprobs[rows],
            None if self.entropy is None else self.entropy[rows],
            self.ended[rows],
            None if self.by_policy is None else self.by_policy[rows],
        )


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
) -> Rollout:
    """Sample `group_size` completions of each prompt, from logits / temperature, in fp32.

    temperature: 0 takes the likeliest token each time, and tells log-probs and entropy at 1. seed: of this call; the
    same seed, model and prompts give the same rollout. An end-of-sequence id is part of its completion and the last
    token of it. vocab_size: ids from it on are left out of the distribution. places: these rows' (S,) places in a batch
    of so many rows, of which other processes sample the rest; each row then gets the tokens that it would get if one
    process sampled them all. stops: a completion also ends with the token that completes one of these strings.
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
    ended = torch.zeros(rows, dtype=torch.bool, device=device)

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
        over = torch.isin(token, eos)
        if stops is not None:
            recent = ids[alive, max(0, t + 1 - stops.window) : t + 1].tolist()
            over |= torch.tensor(stops(recent), device=device)
        ended[alive[over]] = True
        if t + 1 == max_new_tokens or bool(over.all()):
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
    )


def pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask and position ids, each (B, P) int64, padded on the left so that every row ends together."""
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[0] * (width - len(s)) + list(s) for s in sequences], device=device)
    attention = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    return ids, attention, positions


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
