"""TRL's DPOTrainer with reference log-probs precomputed by the service, in the columns that TRL reads.

TRL tokenizes, truncates and batches; only the pass over the reference goes elsewhere, once per data set. The columns
(`ref_chosen_logps`, `ref_rejected_logps`) are kept in the data set's cache under the reference's fingerprint, so another
reference never reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_client import ReferenceClient
from torch import Tensor
from trl import DPOConfig  # pyright: ignore[reportAttributeAccessIssue]

from grpo_training.trl.private import DPOSeams
from grpo_training.trl.served import ServedReference


class RemoteReferenceDPOTrainer(DPOSeams):
    """DPOTrainer(model, args=DPOConfig(precompute_ref_log_probs=True, ...), ..., reference=url).

    reference: URL, URLs of servers that host the same model, or a ReferenceClient of your own (then you close it).
    reference_model: its name, where the server hosts several.
    Raises ValueError unless args.precompute_ref_log_probs is set, or with a `ref_model`.
    """

    def __init__(
        self,
        model: Any,
        ref_model: None = None,
        args: DPOConfig | None = None,
        *rest: Any,
        reference: str | Sequence[str] | ReferenceClient,
        reference_model: str | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None or not args.precompute_ref_log_probs:
            raise ValueError(
                "args.precompute_ref_log_probs must be True: without it TRL would ask its own copy of the model"
            )
        if ref_model is not None:
            raise ValueError("ref_model and reference are two references: leave ref_model out")
        self._served = ServedReference.at(reference, reference_model)
        super().__init__(model, None, args, *rest, **kwargs)

    def reference_key(self) -> str:
        # TRL's own is a hash of the model that it takes for the reference: the policy, which the service's is not.
        return self._served.info.fingerprint

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B,) sums of the chosen and of the rejected completions' log-probs; `model` is not used."""
        return super().compute_ref_log_probs(self._served, inputs)
