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

from grpo_training.trl.moving import MoveReference
from grpo_training.trl.private import GRPOSeams
from grpo_training.trl.served import IGNORED, ServedReference


class RemoteReferenceGRPOTrainer(GRPOSeams):
    """GRPOTrainer(model, reward_funcs, args, ..., reference=url).

    reference: URL, URLs of servers that host the same model, or a ReferenceClient of your own (then you close it). With
    a URL the first fingerprint that answers is pinned: a reference that somebody else swaps ends the run. reference_model: its
    name, where the server hosts several; NotFound, with the names that are there, for another. args.beta 0 asks nothing.
    `sync_ref_model`, `ref_model_mixup_alpha` and `ref_model_sync_steps` move the reference as in TRL: see `moving`, which also
    says what `reference/version` in the logs counts. Raises ValueError without args, and TrlChanged under a TRL whose private
    members have moved.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *rest: Any,
        reference: str | Sequence[str] | ReferenceClient,
        reference_model: str | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            raise ValueError("args: give a GRPOConfig; its default beta is 0, which needs no reference at all")
        beta, args.beta = args.beta, 0.0
        moves, args.sync_ref_model = args.sync_ref_model, False
        try:
            super().__init__(model, reward_funcs, args, *rest, **kwargs)
        finally:
            args.beta, args.sync_ref_model = beta, moves
        self.beta = beta
        self._awaited: Callable[[], Tensor] | None = None
        if beta == 0.0:
            return
        if self.sees_images:
            raise ValueError("the reference service scores text alone: no images")
        vocab = self.model.config.get_text_config().vocab_size
        # TRL asks `self.ref_model` for log-probs whenever it is there, with LoRA as well.
        self.ref_model = ServedReference.at(reference, reference_model, temperature=self.temperature, vocab_size=vocab)
        if moves and getattr(self.model, "peft_config", None):
            raise ValueError("sync_ref_model mixes whole models, and this one has an adapter: set it to False")
        if moves:
            self.add_callback(MoveReference(self, self.ref_model))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the version of the reference that the KL is measured against."""
        if isinstance(self.ref_model, ServedReference):
            logs["reference/version"] = float(self.ref_model.info.version)
        super().log(logs, *args, **kwargs)

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
