"""What is asked: groups of one prompt and its completions, and how they are to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo_client import shown
from grpo_client.arguments import readers
from grpo_client.arguments.id_lists import check_counts, group_completions, id_vector, read_wanted_ids
from grpo_client.arguments.masks import read_completion_mask
from grpo_client.arguments.types import CompletionMask, Completions, Prompts, WantedIds
from grpo_client.masking import Mask
from grpo_client.protocol.names import Extra, IntArray, Normalizer, TopDtype


@dataclass(frozen=True, slots=True, repr=False)
class Group:
    """One prompt and its completions.

    prompt: (P,) int32, P >= 1. completions: each (C,) int32, C >= 0; an empty one is legal and scores to nothing.
    token_ids: None, or per completion (C, k) int32: the ids to score at each position beside the one that is there; -1 is none,
    and is answered with minus infinity; an id may stand there twice.
    completion_mask: None, or per completion (C,) bool: False where nothing is asked, as of what a tool said. Such tokens are
    context for those behind them and are not scored.
    """

    prompt: IntArray
    completions: tuple[IntArray, ...]
    temperature: float = 1.0
    token_ids: tuple[IntArray, ...] | None = None
    completion_mask: tuple[Mask, ...] | None = None

    def __repr__(self) -> str:
        return shown.group(self)


@dataclass(frozen=True, slots=True, repr=False)
class ScoreRequest:
    """What is asked of the reference, whatever dialect it came in.

    groups: K of them, each with its own temperature (logits are divided by it before normalising).
    normalizer: what turns logits into probabilities. extras: which further figures to return for every completion token.
    top_k: how many best tokens to return a position. fingerprint: answer only if this is the reference. top_dtype: in which
    log-probs of best and asked tokens come back. model: name of the reference that is asked; None: the default one.
    """

    groups: tuple[Group, ...]
    normalizer: Normalizer = "softmax"
    extras: frozenset[Extra] = frozenset()
    top_k: int = 0
    fingerprint: str | None = None
    top_dtype: TopDtype = "float32"
    model: str | None = None

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        completions: Completions,
        *,
        temperature: float | Sequence[float] = 1.0,
        normalizer: Normalizer = "softmax",
        extras: Sequence[Extra] = (),
        top_k: int = 0,
        token_ids: WantedIds | None = None,
        completion_mask: CompletionMask | None = None,
        fingerprint: str | None = None,
        top_dtype: TopDtype = "float32",
        model: str | None = None,
    ) -> ScoreRequest:
        """Build a request from lists, tuples, arrays or tensors: `prompts[k]` with `completions[k][g]`.

        One completion a prompt may come without a list around it: `prompts[k]` with `completions[k]`; `token_ids[k]` and
        `completion_mask[k]` then too. temperature: one, or one per group. completion_mask: 1 where a token is asked. Raises
        ProtocolError, which names the entry, for what is no list of ids.
        """
        asked = readers.rows(prompts, "prompts", "prompts, each a list of token ids")
        answers, flat = group_completions(completions)
        check_counts(len(asked), len(answers), flat=flat)
        temperatures = readers.read_temperatures(temperature, len(asked))
        vectors = [
            [id_vector(c, f"completions[{k}]" + ("" if flat else f"[{g}]")) for g, c in enumerate(group)]
            for k, group in enumerate(answers)
        ]
        wanted = [None] * len(asked) if token_ids is None else read_wanted_ids(token_ids, vectors, flat=flat)
        masks = [None] * len(asked)
        if completion_mask is not None:
            masks = read_completion_mask(completion_mask, [list(map(len, group)) for group in vectors], flat=flat)
        groups = tuple(
            Group(id_vector(prompt, f"prompts[{k}]"), tuple(vectors[k]), temperatures[k], wanted[k], masks[k])
            for k, prompt in enumerate(asked)
        )
        return cls(
            groups,
            normalizer,
            readers.read_names(extras, "extras"),
            readers.read_count(top_k, "top_k"),
            fingerprint,
            top_dtype,
            model,
        )

    @property
    def group_sizes(self) -> IntArray:
        """(K,) completions per group."""
        return np.array([len(g.completions) for g in self.groups], dtype=np.int32)

    @property
    def completion_lengths(self) -> IntArray:
        """(S,) tokens per completion."""
        return np.array([len(c) for g in self.groups for c in g.completions], dtype=np.int32)

    @property
    def asked_ids(self) -> int | None:
        """How many token_ids a position; 0 where there is no position, None where none are asked."""
        if all(g.token_ids is None for g in self.groups):
            return None
        return next((ids.shape[1] for g in self.groups for ids in g.token_ids or () if len(ids)), 0)

    @property
    def completion_mask(self) -> Mask | None:
        """(N,) bool over all completion tokens: where something is asked; None: everywhere."""
        if all(g.completion_mask is None for g in self.groups):
            return None
        parts = [
            mask
            for g in self.groups
            for mask in g.completion_mask or (np.ones(len(c), dtype=np.bool_) for c in g.completions)
        ]
        return np.concatenate([np.zeros(0, dtype=np.bool_), *parts])

    def __repr__(self) -> str:
        return shown.request(self)
