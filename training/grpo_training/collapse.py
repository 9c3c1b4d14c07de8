"""See softmax collapse coming: four figures from a training run, and a warning when it begins.

    zero_share    share of the loss terms that are exactly 0: they, and their gradients, have been rounded away
    max_logit     the largest logit; collapse in fp32 begins when the target leads by about 17
    cosine        of gradient and weights, all trained weights as one vector; towards -1 a step only scales weights up
    norm_growth   ln(|w after the step| / |w before it|)

After Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697. `CollapseMonitor` measures
and belongs to no trainer; `CollapseCallback` puts it into the Hugging Face Trainer and TRL's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from grpo_client.protocol import Normalizer
from grpo_numerics import stablemax_cross_entropy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from grpo_training.hf.loss import base_of

logger = logging.getLogger(__name__)

IGNORED = -100
ROWS_AT_ONCE = 1024


class CollapseMonitor:
    """Collects the figures; call it around a step, then take them with `figures()`.

    normalizer: the loss's own. What is exactly zero under softmax need not be under StableMax.
    """

    def __init__(self, *, normalizer: Normalizer = "softmax") -> None:
        self.normalizer: Normalizer = normalizer
        self._terms = self._zeros = 0
        self._max_logit = -math.inf
        self._figures: dict[str, float] = {}
        self._norm = 0.0

    @torch.no_grad()
    def saw_logits(self, logits: Tensor, targets: Tensor) -> None:
        """logits: (N, V) as the loss gets them; targets: (N,), -100 where there is no loss term."""
        kept = targets != IGNORED
        for rows, wanted in zip(logits[kept].split(ROWS_AT_ONCE), targets[kept].split(ROWS_AT_ONCE), strict=True):
            cross_entropy = stablemax_cross_entropy if self.normalizer == "stablemax" else F.cross_entropy
            self.saw_terms(cross_entropy(rows.float(), wanted, reduction="none"))
            self.saw_max_logit(float(rows.max()))

    @torch.no_grad()
    def saw_terms(self, terms: Tensor) -> None:
        """Loss terms, or log-probs, of any shape, where no logits are to be had (a fused head never forms them)."""
        self._terms += terms.numel()
        self._zeros += int((terms == 0).sum())

    def pool_terms(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Count the terms of all processes; summed adds a (2,) vector up over them."""
        self._terms, self._zeros = (int(n) for n in summed(torch.tensor([self._terms, self._zeros])))

    def saw_max_logit(self, value: float) -> None:
        """A largest logit that somebody else has found."""
        self._max_logit = value if math.isnan(value) else max(self._max_logit, value)

    @torch.no_grad()
    def before_step(self, parameters: Iterable[Tensor]) -> None:
        """Call with the gradients of the step in place. Raises ValueError for sharded parameters."""
        self._parameters = [p for p in parameters if p.grad is not None]
        if any(isinstance(p, DTensor) for p in self._parameters):
            raise ValueError("CollapseMonitor sees one shard of each weight (DTensor): observe an unsharded run")
        ww, gg, wg = (
            self._dot(lambda p: (p, p)),
            self._dot(lambda p: (p.grad, p.grad)),
            self._dot(lambda p: (p, p.grad)),
        )
        self._norm = math.sqrt(ww)
        if ww > 0 and gg > 0:
            self._figures["cosine"] = wg / math.sqrt(ww * gg)

    @torch.no_grad()
    def after_step(self) -> None:
        """Call once the optimizer has stepped."""
        norm = math.sqrt(self._dot(lambda p: (p, p)))
        if self._norm > 0 and norm > 0:
            self._figures["norm_growth"] = math.log(norm / self._norm)

    def figures(self) -> dict[str, float]:
        """Everything seen since the last call, by the names above; what was not seen is not there."""
        figures, self._figures = self._figures, {}
        if self._terms:
            figures["zero_share"] = self._zeros / self._terms
        if self._max_logit != -math.inf:
            figures["max_logit"] = self._max_logit
        self._terms = self._zeros = 0
        self._max_logit = -math.inf
        return figures

    def _dot(self, pair: Any) -> float:
        products = [(a.double() * b.double()).sum() for a, b in map(pair, self._parameters)]
        return float(torch.stack(products).sum()) if products else 0.0


class CollapseCallback(TrainerCallback):
    """Log `collapse/...` with the Trainer's own figures and warn, once, when softmax collapse begins.

        trainer = Trainer(...)
        CollapseCallback.install(trainer)

    Only the step that is logged is measured (`logging_steps`). warn_at: the share of zero terms that counts as collapse.
    Under TRL, whose head never forms logits, zero_share is of the policy's log-probs, and there is no max_logit.
    """

    def __init__(self, *, normalizer: Normalizer = "softmax", warn_at: float = 0.05) -> None:
        if not 0.0 < warn_at <= 1.0:
            raise ValueError(f"warn_at is a share of the loss terms, in (0, 1], got {warn_at}")
        self.monitor = CollapseMonitor(normalizer=normalizer)
        self.warn_at = warn_at
        self.warned = False
        self._handle: RemovableHandle | None = None
        self._watching = False

    @classmethod
    def install(cls, trainer: Any, **options: Any) -> CollapseCallback:
        """Add one to a trainer, ahead of the callbacks that report: they see a log only as it is when they get it."""
        callback = cls(**options)
        trainer.callback_handler.callbacks.insert(0, callback)
        return callback

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        if model is not None:
            self._handle = base_of(model).register_forward_hook(self._saw_forward, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._handle is not None:
            self._handle.remove()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number = state.global_step + 1
        self._watching = number % max(state.logging_steps, 1) == 0 or (number == 1 and args.logging_first_step)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any
    ) -> None:
        if self._watching and model is not None:
            self.monitor.before_step(model.parameters())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._watching:
            self.monitor.after_step()
        self._watching = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        figures = self.monitor.figures()
        named = {f"collapse/{name}": value for name, value in figures.items()}
        if logs is not None:
            logs.update(named)
        if state.log_history:
            state.log_history[-1].update(named)
        if figures.get("zero_share", 0.0) >= self.warn_at and not self.warned:
            self.warned = True
            logger.warning(
                "softmax collapse at step %d: %.1f %% of the loss terms are exactly 0 and have no gradient any more. Use "
                "StableMax (use_stable_max), the collapse-free loss, or the orthogonal gradient (use_orthogonal_optimizer)",
                state.global_step,
                100 * figures["zero_share"],
            )

    def _saw_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not (self._watching and module.training and torch.is_grad_enabled()):
            return
        labels = kwargs.get("labels")
        if (log_probs := getattr(output, "log_probs", None)) is not None and labels is not None:
            self.monitor.saw_terms(log_probs[labels[:, 1:] != IGNORED])
        elif (logits := getattr(output, "logits", None)) is not None and labels is not None:
            self.monitor.saw_logits(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device))
