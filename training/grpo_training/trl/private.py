"""The one place that names what is private to TRL: the seams at which a reference comes in, under names of our own.

TRL promises nothing about members that begin with an underscore. `require` looks at them before a trainer is made, and
refuses, with the version, a TRL in which one is gone or takes other arguments: a reference that is not asked would leave
the KL at nothing without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import Tensor
from trl import DistillationTrainer, DPOTrainer, GRPOTrainer  # pyright: ignore[reportAttributeAccessIssue]

TESTED = "1.16"
SEAMS: dict[type, dict[str, tuple[str, ...]]] = {
    GRPOTrainer: {
        "_get_per_token_logps_and_entropies": ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
        "_generate_and_score_completions": ("self", "inputs"),
    },
    DPOTrainer: {
        "_precompute_ref_logps": ("self", "dataset", "name", "batch_size"),
        "compute_ref_log_probs": ("self", "model", "inputs"),
    },
    DistillationTrainer: {
        "_compute_loss": ("self", "unwrapped_student", "inputs", "num_items_in_batch"),
        "_get_last_hidden_state": ("self", "unwrapped_model", "input_ids", "attention_mask", "logits_to_keep"),
    },
}
"""Of each trainer the methods that are overridden, with the first arguments that they must take."""


class TrlChanged(ImportError):
    """The installed TRL lacks a member that the reference comes in through."""


def require(trainer: type) -> None:
    """Raises TrlChanged, which names the member, the installed version and the one to install."""
    for name, wanted in SEAMS[trainer].items():
        method = getattr(trainer, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)
        if found[: len(wanted)] != wanted:
            is_now = "is gone" if method is None else f"takes ({', '.join(found[: len(wanted)])})"
            raise TrlChanged(
                f"trl {version('trl')}: {trainer.__name__}.{name} {is_now}, where a remote reference needs "
                f"({', '.join(wanted)}): pip install 'trl=={TESTED}.*'"
            )


class GRPOSeams(GRPOTrainer):
    """GRPOTrainer that asks `reference_logprobs` in place of a model which is not one, and shows each batch it has made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require(GRPOTrainer)
        super().__init__(*args, **kwargs)

    @property
    def sees_images(self) -> bool:
        return bool(self._is_vlm)

    def is_served(self, model: Any) -> bool:
        """Whether `reference_logprobs` answers for this model."""
        raise NotImplementedError

    def reference_logprobs(self, model: Any, input_ids: Tensor, attention_mask: Tensor, width: int) -> Tensor:
        """(B, width) log-probs of the last `width` tokens of (B, T) ids."""
        raise NotImplementedError

    def batch_made(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of completions with rewards, advantages and log-probs, as the loss will read it."""
        raise NotImplementedError

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.is_served(model):
            return self.reference_logprobs(model, input_ids, attention_mask, logits_to_keep), None, None
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.batch_made(super()._generate_and_score_completions(inputs))


class DPOSeams(DPOTrainer):
    """DPOTrainer whose precomputed reference log-probs are cached under a key of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require(DPOTrainer)
        super().__init__(*args, **kwargs)

    def reference_key(self) -> str:
        """What the columns of a data set depend on beside the data: they are computed anew where it differs."""
        raise NotImplementedError

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        self._precompute_model_hash = self.reference_key()
        precompute: Callable[..., Any] = super()._precompute_ref_logps
        return precompute(dataset, name, batch_size)


class DistillationSeams(DistillationTrainer):
    """DistillationTrainer whose loss is `loss_of`, inside the wrapper's forward as TRL's own is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require(DistillationTrainer)
        super().__init__(*args, **kwargs)

    @property
    def sees_images(self) -> bool:
        return bool(self._is_vlm)

    def loss_of(
        self, student: Any, inputs: dict[str, Any], items: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the summed entropy of the student, and how many tokens both are over. items: tokens of the whole step, over
        which the loss is averaged; None: of this batch."""
        raise NotImplementedError

    def hidden_states(self, student: Any, input_ids: Tensor, attention_mask: Tensor, width: int) -> Tensor:
        """(B, width, D): row n predicts the n-th of the last `width` tokens."""
        return self._get_last_hidden_state(student, input_ids, attention_mask, width)

    def tell(self, name: str, value: Tensor) -> None:
        """A figure for the log, the mean over this process's batches."""
        self._metrics["train" if self.model.training else "eval"][name].append(float(value.detach()))

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.loss_of(unwrapped_student, inputs, num_items_in_batch)
