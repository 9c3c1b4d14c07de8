"""One big request as several that servers like, and their answers as one.

Cut between groups, and inside a group between completions when the group alone is too big (its prompt is then sent with
each part). A single completion is never cut: whether it fits is the server's to say. Order is kept throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_client.errors import FingerprintMismatch
from grpo_client.protocol import Group, IntArray, ScoreRequest, ScoreResult, Usage
from grpo_client.text import AnyRequest, ChatMessage, TextGroup

_CHARACTERS_PER_TOKEN = 3  # of text not yet tokenized: low for English, so that parts come out smaller, not larger


def split(request: AnyRequest, max_tokens: int) -> list[AnyRequest]:
    """Parts of at most `max_tokens` (prompts counted once a part), in order; the request itself when it is small."""
    parts: list[list[Any]] = []
    room = 0
    for group in request.groups:
        prompt = _tokens(group.prompt)
        costs = [_tokens(c) for c in group.completions]
        if prompt + sum(costs) > room:  # a group stays whole if it can
            parts.append([])
            room = max_tokens
        begun = 0
        room -= prompt
        for g, cost in enumerate(costs):
            if cost > room and g > begun:
                parts[-1].append(_part_of(group, slice(begun, g)))
                parts.append([])
                room, begun = max_tokens - prompt, g
            room -= cost
        parts[-1].append(_part_of(group, slice(begun, None)))
    return [replace(request, groups=tuple(groups)) for groups in parts] if len(parts) > 1 else [request]


def _tokens(piece: IntArray | str | tuple[ChatMessage, ...]) -> int:
    if isinstance(piece, np.ndarray):
        return len(piece)
    text = piece if isinstance(piece, str) else "".join(str(message) for message in piece)
    return 1 + len(text) // _CHARACTERS_PER_TOKEN


def _part_of(group: Group | TextGroup, part: slice) -> Group | TextGroup:
    if isinstance(group, TextGroup):
        return replace(group, completions=group.completions[part])
    token_ids = None if group.token_ids is None else group.token_ids[part]
    mask = None if group.completion_mask is None else group.completion_mask[part]
    return replace(group, completions=group.completions[part], token_ids=token_ids, completion_mask=mask)


def merge(request: AnyRequest, results: Sequence[ScoreResult]) -> ScoreResult:
    """The answers to `split`'s parts, in its order, as the answer to the whole.

    `reference` is the first answer's; `usage` is summed, times included (parts in flight at once overlap).
    Raises FingerprintMismatch when two parts were answered by different references.
    """
    first = results[0]
    if len(results) == 1:
        return first
    for other in results[1:]:
        if other.reference.fingerprint != first.reference.fingerprint:
            raise FingerprintMismatch(
                f"parts of one request were answered by references {first.reference.fingerprint} and "
                f"{other.reference.fingerprint}; all servers of a client must host the same one"
            )
    sizes = np.array([len(g.completions) for g in request.groups], dtype=np.int32)
    # A group that was cut shows up in several parts; its first part speaks for it.
    heads = _heads(sizes.tolist(), [r.group_sizes.tolist() for r in results])
    temperature = np.concatenate([r.temperature for r in results])
    prompts = [ids for r in results for ids in r.prompt_ids or ()]
    completions = [ids for r in results for ids in r.completion_ids or ()]
    return ScoreResult(
        reference=first.reference,
        normalizer=first.normalizer,
        temperature=temperature[heads],
        group_sizes=sizes,
        completion_lengths=np.concatenate([r.completion_lengths for r in results]),
        logprobs=np.concatenate([r.logprobs for r in results]),
        status=np.concatenate([r.status for r in results]),
        extras={name: _joined(r.extras[name] for r in results) for name in first.extras},
        usage=_sum([r.usage for r in results]),
        prompt_ids=tuple(prompts[k] for k in heads) if prompts else None,
        completion_ids=tuple(completions) if completions else None,
        completion_mask=request.completion_mask if isinstance(request, ScoreRequest) else None,
    )


def _heads(sizes: Sequence[int], parts: Sequence[Sequence[int]]) -> list[int]:
    """Where, among all parts' groups in a row, each whole group begins."""
    heads: list[int] = []
    missing = 0
    for at, size in enumerate(size for part in parts for size in part):
        if missing == 0:
            missing = sizes[len(heads)]
            heads.append(at)
        missing -= size
    return heads


def _joined(arrays: Iterable[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    """Rows one after another; a part without rows may not know its width and does not count."""
    given = list(arrays)
    return np.concatenate([a for a in given if len(a)] or given[:1])


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage.model_validate({name: sum(getattr(u, name) for u in usages) for name in Usage.model_fields})
