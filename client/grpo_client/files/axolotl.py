"""A completion as axolotl's KD collator reads it, of L tokens, prompt and completion together, and k targets for each.

Row t of the targets predicts token t + 1. There `axolotl.integrations.kd` (0.19) looks: it compares row t with the logits of
position t. Its loader for chats puts each row one position later, and has no place for that of the first token; columns
named as its collator has them go past the loader, and no text is tokenized again. What has no target is masked.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.protocol import CompletionScores, IntArray, Status

_NO_LABEL: Final = -100  # torch's ignore_index
NESTED: Final = ("target_logprobs", "target_token_ids", "target_mask")

Array = npt.NDArray[Any]


def axolotl_columns(prompt: IntArray, completion: IntArray, scores: CompletionScores) -> dict[str, Array]:
    """input_ids, attention_mask, labels (L,), -100 for the prompt and what was not scored; the columns of `NESTED` (L, k)."""
    ids = np.concatenate([prompt, completion]).astype(np.int32)
    behind = slice(len(prompt) - 1, len(ids) - 1)  # the positions that predict the completion
    scored = np.isfinite(scores.logprobs) & (scores.status == Status.OK)
    best_ids, best = (np.asarray(scores.extras[name]) for name in ("top_ids", "top_logprobs"))
    there = np.isfinite(best) & scored[:, None]
    labels = np.full(len(ids), _NO_LABEL, np.int32)
    labels[len(prompt) :][scored] = completion[scored]
    targets = [
        np.where(there, best, 0).astype(best.dtype),
        np.where(there, best_ids, 0).astype(np.int32),
        there.astype(np.int8),
    ]
    columns: dict[str, Array] = {"input_ids": ids, "attention_mask": np.ones(len(ids), np.int8), "labels": labels}
    for name, values in zip(NESTED, targets, strict=True):
        columns[name] = np.zeros((len(ids), values.shape[1]), values.dtype)
        columns[name][behind] = values
    return columns
