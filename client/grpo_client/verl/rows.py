"""A batch of verl's as a request: its rows without padding, grouped by prompt, so that each prompt is sent once.

Rows are grouped by their ids and not by `uid`: rows of one uid that are turns of a conversation have other prompts, and rows
that only fill a batch up share one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from grpo_client.client import ReferenceClient
from grpo_client.protocol import ScoreResult, Status

Tensor = torch.Tensor


@dataclass(slots=True)
class Waiting:
    """Scores under way. prompts: that were sent. waited_s: seconds that `collect` took, 0 until then."""

    prompts: int
    rows: Sequence[int]
    answer: Callable[[], ScoreResult]
    waited_s: float = field(default=0.0)

    def collect(self) -> list[Tensor]:
        """(R,) fp32 of each row, in the batch's order. Raises ValueError for a row without a finite score of every token."""
        started = time.perf_counter()
        result = self.answer()
        self.waited_s = time.perf_counter() - started
        scores: dict[int, Tensor] = {}
        for row, completion in zip(self.rows, result, strict=True):
            if completion.status is not Status.OK:
                raise ValueError(f"row {row}: the reference has no finite score for every token")
            scores[row] = torch.tensor(completion.logprobs)
        return [scores[row] for row in range(len(scores))]


def submit(
    client: ReferenceClient,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float | Sequence[float],
) -> Waiting:
    """Send one request off. temperature: of all rows, or one for each."""
    rowwise = [float(temperature)] * len(prompts) if isinstance(temperature, int | float) else list(temperature)
    groups: dict[tuple[tuple[int, ...], float], list[int]] = {}
    for row, (prompt, warmth) in enumerate(zip(prompts, rowwise, strict=True)):
        groups.setdefault((tuple(prompt), warmth), []).append(row)
    future = client.submit(
        [list(prompt) for prompt, _ in groups],
        [[list(responses[row]) for row in rows] for rows in groups.values()],
        temperature=[warmth for _, warmth in groups],
    )
    return Waiting(len(groups), [row for rows in groups.values() for row in rows], future.result)


def rows_of(data: Mapping[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses, as ids. data: `prompts` and `responses`, nested; or padded, prompts on the left and responses on
    the right, with `attention_mask` (B, P + R). Raises ValueError for a batch with images."""
    refuse_media(data)
    prompts, responses = data["prompts"], data["responses"]
    if prompts.is_nested:
        return [row.tolist() for row in prompts.unbind()], [row.tolist() for row in responses.unbind()]
    real, width = data["attention_mask"].bool(), prompts.shape[1]
    return (
        [row[mask].tolist() for row, mask in zip(prompts, real[:, :width], strict=True)],
        [row[mask].tolist() for row, mask in zip(responses, real[:, width:], strict=True)],
    )


def refuse_media(data: Mapping[str, Any]) -> None:
    """ValueError for a batch that has more than text: the service would score its placeholders."""
    if "multi_modal_inputs" not in data.keys():  # noqa: SIM118  # a TensorDict looks its values through for `in`
        return
    media = data["multi_modal_inputs"]
    media = getattr(media, "data", media)
    if any(len(one) for one in (media.tolist() if hasattr(media, "tolist") else media) if one is not None):
        raise ValueError("the batch has images (multi_modal_inputs), and the reference service scores text alone")


def refuse_adapter(model: Any) -> None:
    """ValueError where verl takes the actor without its adapter for the reference, and would ask nobody else.

    model: verl's actor_rollout_ref.model, as configuration or as the dataclass made of it.
    """
    ranks = (_of(model, "lora_rank"), _of(_of(model, "lora"), "rank"))
    if any(rank for rank in ranks if isinstance(rank, int)) or _of(model, "lora_adapter_path"):
        raise ValueError(
            "with LoRA (lora_rank, lora.rank, lora_adapter_path) verl's reference is the actor without its adapter, and a "
            "served one is never asked: leave the URL out, or train all weights"
        )


def refuse_vocabulary(served: int, policy: int) -> None:
    """ValueError where an id of one model is another token of the other."""
    if served != policy:
        raise ValueError(f"the reference has a vocabulary of {served}, the policy one of {policy}")


def _of(settings: Any, name: str) -> Any:
    get: Any = getattr(settings, "get", None)  # a dictionary's, OmegaConf's, or that of a dataclass of verl's
    return get(name) if callable(get) else getattr(settings, name, None)
