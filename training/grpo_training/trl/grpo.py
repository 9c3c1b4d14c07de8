"""TRL's GRPOTrainer with its reference over HTTP: the KL term as ever, without a second model in memory.

TRL builds its reference in `__init__` when beta is not 0. Here beta is 0 while it does that, and the service takes the
reference's place afterwards. The request goes out where TRL would have run the reference, and is waited for only after the
rewards are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from grpo_client import ReferenceClient
from torch import Tensor
from trl import GRPOConfig  # pyright: ignore[reportAttributeAccessIssue]

from grpo_training.trl.private import GRPOSeams
from grpo_training.trl.served import IGNORED, ServedReference


class RemoteReferenceGRPOTrainer(GRPOSeams):
    """GRPOTrainer(model, reward_funcs, args, ..., reference=url).

    reference: URL, URLs of servers that host the same model, or a ReferenceClient of your own (then you close it). With
    a URL the first fingerprint that answers is pinned: a swapped reference ends the run. args.beta 0 asks nothing.
    Raises ValueError for `sync_ref_model` (the reference is not this process's to move) and without args, and TrlChanged
    under a TRL whose private members have moved.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *rest: Any,
        reference: str | Sequence[str] | ReferenceClient,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise ValueError("args: give a GRPOConfig; its default beta is 0, which needs no reference at all")
        if args.sync_ref_model:
            raise ValueError("sync_ref_model moves a reference that this process does not hold: set it to False")
        beta, args.beta = args.beta, 0.0
        try:
            super().__init__(model, reward_funcs, args, *rest, **kwargs)
        finally:
            args.beta = beta
        self.beta = beta
        self._awaited: Callable[[], Tensor] | None = None
        if beta == 0.0:
            return
        if self.sees_images:
            raise ValueError("the reference service scores text alone: no images")
        vocab = self.model.config.get_text_config().vocab_size
        # TRL asks `self.ref_model` for log-probs whenever it is there, with LoRA as well.
        self.ref_model = ServedReference.at(reference, temperature=self.temperature, vocab_size=vocab)

    def is_served(self, model: Any) -> bool:
        return isinstance(model, ServedReference)

    def reference_logprobs(self, model: Any, input_ids: Tensor, attention_mask: Tensor, width: int) -> Tensor:
        """Sends the request off; zeros stand for the answer until `batch_made` puts it in."""
        labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
        labels[:, :-width] = IGNORED
        # All rows in one request, whatever the batch size of the forward passes: the service packs them itself.
        self._awaited = model.submit(input_ids, attention_mask, labels)
        return torch.zeros(input_ids.shape[0], width, device=input_ids.device)

    def batch_made(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._awaited is not None:
            width = batch["ref_per_token_logps"].shape[1]
            batch["ref_per_token_logps"], self._awaited = self._awaited()[:, -width:], None
        return batch
