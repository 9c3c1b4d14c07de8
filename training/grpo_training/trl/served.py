"""The service as TRL sees a reference model: called with a padded batch and labels, answering per-token log-probs.

TRL 1.16 calls a reference as `model(input_ids=..., attention_mask=..., labels=..., fused_lm_head=True).log_probs`, for GRPO
and DPO alike. `ServedReference` takes that call. Only the tokens travel: padding is stripped, and a prompt that several
rows share is sent once with all of their completions.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from grpo_client import ReferenceClient, ReferenceInfo, ScoreResult, Status
from torch import Tensor

IGNORED = -100


class ReferenceUnusable(ValueError):
    """The service answers, but not as this trainer's reference: another vocabulary, or a NaN where a score should be."""


@dataclass(frozen=True, slots=True)
class ServedOutput:
    """What TRL reads of a model's output. log_probs: (B, T-1) fp32, 0 where the next token is not a label."""

    log_probs: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A padded batch, cut into what the service is asked.

    prompts, completions: ids, group by group. places: for every completion, in that order, the row it came from and the
    column of its first score in the (B, T-1) answer.
    """

    prompts: list[list[int]]
    completions: list[list[list[int]]]
    places: list[tuple[int, int]]

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Rows:
        """(B, T) each. In a row the labels that are not -100 follow on one another and end it; padding is anywhere else.

        A label in the very first place has nothing before it: it is context, as in TRL. A row without labels asks
        nothing. Raises ValueError for labels with a gap, which a prompt and its completion do not have.
        """
        groups: dict[tuple[int, ...], list[tuple[int, int, list[int]]]] = {}
        real = attention_mask.bool()
        scored = (labels != IGNORED) & real
        for row in range(len(input_ids)):
            columns = real[row].nonzero().flatten()
            wanted = scored[row, columns]
            if not wanted.any():
                continue
            start = max(int(wanted.int().argmax()), 1)
            if not wanted[start:].all():
                raise ValueError(f"row {row}: labels must be the end of the sequence, without a gap")
            ids = input_ids[row, columns].tolist()
            if len(ids) > start:
                groups.setdefault(tuple(ids[:start]), []).append((row, int(columns[start]) - 1, ids[start:]))
        return cls(
            [list(prompt) for prompt in groups],
            [[ids for _, _, ids in members] for members in groups.values()],
            [(row, column) for members in groups.values() for row, column, _ in members],
        )

    def spread(self, scores: Sequence[Tensor], out: Tensor) -> Tensor:
        """Write each completion's scores to its place in `out` (B, T-1)."""
        for (row, column), values in zip(self.places, scores, strict=True):
            out[row, column : column + len(values)] = values.to(out)
        return out


class ServedReference:
    """A reference model that is elsewhere. Not an nn.Module: it has no weights to move, wrap or save."""

    def __init__(self, client: ReferenceClient, *, temperature: float = 1.0, vocab_size: int | None = None) -> None:
        """temperature: what logits are divided by. vocab_size: of the policy; ReferenceUnusable when the service's
        differs, for then its ids mean other tokens.
        """
        self.client = client
        self.temperature = temperature
        self.info: ReferenceInfo = client.wait_ready()
        if vocab_size is not None and self.info.vocab_size != vocab_size:
            raise ReferenceUnusable(
                f"the service scores {self.info.model} with a vocabulary of {self.info.vocab_size}, the policy has "
                f"{vocab_size}: serve the model that the policy starts from"
            )

    @classmethod
    def at(
        cls,
        reference: str | Sequence[str] | ReferenceClient,
        model: str | None = None,
        *,
        temperature: float = 1.0,
        vocab_size: int | None = None,
    ) -> ServedReference:
        """reference: a client, which stays its owner's; or URLs, for which one is opened that closes when this object goes.
        model: name of the reference there; None: the default one. Raises NotFound, with the names that are, for another, and
        ValueError for one beside a client."""
        if isinstance(reference, ReferenceClient):
            if model is not None:
                raise ValueError(
                    "reference_model: the client says which reference it asks: ReferenceClient(url, model=...); leave one out"
                )
            return cls(reference, temperature=temperature, vocab_size=vocab_size)
        with ExitStack() as undo:
            client = undo.enter_context(ReferenceClient(reference, fingerprint="first", model=model))
            served = cls(client, temperature=temperature, vocab_size=vocab_size)
            weakref.finalize(served, undo.pop_all().close)
        return served

    def move(self, model: str, decay: float | None, admin_key: str | None) -> None:
        """See `ReferenceClient.move`; `info` says who answers from now on."""
        self.info = self.client.move(model, decay=decay, admin_key=admin_key)

    def follow(self) -> None:
        """Another process has had the reference moved: take the one that answers now."""
        self.info = self.client.accept()

    def submit(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        """Send the batch off; the function that comes back waits for its (B, T-1) log-probs."""
        rows = Rows.of(input_ids, attention_mask, labels)
        out = torch.zeros(input_ids.shape[0], input_ids.shape[1] - 1, device=input_ids.device)
        if not rows.places:
            return lambda: out
        future = self.client.submit(rows.prompts, rows.completions, temperature=self.temperature)
        return lambda: rows.spread(_usable(future), out)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> ServedOutput:
        return ServedOutput(self.submit(input_ids, attention_mask, labels)())

    def close(self) -> None:
        self.client.close()


def _usable(future: Future[ScoreResult]) -> list[Tensor]:
    result = future.result()
    if (bad := int((result.status != Status.OK).sum())) > 0:
        raise ReferenceUnusable(f"the reference has no finite log-prob for {bad} of {len(result)} completions")
    return [torch.from_numpy(scores.copy()) for scores in result.ragged()]
