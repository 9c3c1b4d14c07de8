"""The StableMax loss as transformers' models call it: `model.loss_function = StableMaxLoss()`.

A model calls its loss function with logits and *unshifted* labels; the shift by one token, the ignored labels and the
mean over all micro-batches of a step are this function's business, as in transformers' own ForCausalLMLoss.
"""

from __future__ import annotations

from typing import Any

from grpo_numerics import collapse_free_cross_entropy, stablemax_cross_entropy
from torch import Tensor, nn
from torch.nn.functional import pad


class StableMaxLoss:
    """Next-token cross-entropy under StableMax.

    collapse_free: compute it from LogStableMax in the form that does not round to zero. `calls` counts how often a model
    has used it: a model whose forward has a loss of its own never does.
    """

    def __init__(self, *, collapse_free: bool = False, label_smoothing: float = 0.0) -> None:
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        self.collapse_free = collapse_free
        self.label_smoothing = label_smoothing
        self.calls = 0

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Scalar fp32. logits: (B, T, V) of any float dtype; labels: (B, T), position t holding token t itself.

        num_items_in_batch: targets in the whole step; the sum is divided by it, else the mean is over these targets.
        shift_labels: (B, T) labels that have been shifted already (sequence parallelism), used in place of `labels`.
        """
        self.calls += 1
        if shift_labels is None:
            shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
        # The logits' own width, not vocab_size, which a model takes from its config: the two may differ by padding.
        rows = logits.reshape(-1, logits.shape[-1])
        targets = shift_labels.reshape(-1).to(rows.device)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = self._cross_entropy(rows, targets, ignore_index, reduction)
        if num_items_in_batch is None:
            return loss
        items = num_items_in_batch.to(loss.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
        return loss / items

    def _cross_entropy(self, rows: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": self.label_smoothing}
        if self.collapse_free:
            return collapse_free_cross_entropy(rows, targets, normalizer="stablemax", **options)
        return stablemax_cross_entropy(rows, targets, **options)


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model, inside a PEFT model or as it is: the one whose forward reads `loss_function`."""
    unwrap = getattr(model, "get_base_model", None)
    base = unwrap() if callable(unwrap) else model
    assert isinstance(base, nn.Module)
    return base
