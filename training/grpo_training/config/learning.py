"""What is minimised, how, and what is watched meanwhile."""

from __future__ import annotations

from typing import Literal, Self

from grpo_client.protocol import Normalizer
from pydantic import Field, model_validator

from .section import Section

LossKind = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"]
KlKind = Literal["k1", "k2", "k3", "k3+", "abs"]
Granularity = Literal["tensor", "row", "global"]
Correction = Literal["auto", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class LossConfig(Section):
    """The objective; the names are those of TRL's GRPOTrainer."""

    kind: LossKind = "grpo"
    """How the policy term is formed and averaged: see grpo_training.losses."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference. 0 asks nothing of the server."""
    kl: KlKind = "k3"
    """Estimator of that KL."""
    kl_in: Literal["loss", "reward"] = "loss"
    """`loss`: beta times the estimate is added to each token's term. `reward`: beta times its sum over a completion is
    taken off that completion's reward, before advantages are formed."""
    bias_corrected_kl: bool = False
    """Multiply the estimate by the importance ratio."""
    epsilon_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below 1 - epsilon_low."""
    epsilon_high: float = Field(default=0.2, ge=0)
    """The ratio is clipped above 1 + epsilon_high (for cispo: above epsilon_high itself)."""
    delta: float | None = Field(default=None, gt=1)
    """Upper bound of the unclipped ratio (two-sided clipping); None: none."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or of the sequence (GSPO: exp of the mean log-ratio)."""
    scale_advantages: Literal["group", "batch", "none"] = "group"
    """Divide the advantage by the standard deviation of its group, of the batch, or not at all (Dr. GRPO)."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus: the mean entropy of a token, in nats, times this is taken off the loss."""
    top_entropy_quantile: float = Field(default=1.0, gt=0, le=1)
    """Share of the tokens that the policy term and the bonus act on: those whose distribution has the largest entropy.
    The KL acts on all. 1 is no mask."""
    rollout_correction: Correction = "auto"
    """Weight for what another engine sampled, (policy / sampler) of the token or of the sequence, where above the cap cut
    down to it (truncate) or left out (mask). `auto`: sequence_mask with another engine, none with the policy itself."""
    rollout_correction_cap: float = Field(default=3.0, gt=0)
    """The largest such weight."""
    sapo_temperature_pos: float = Field(default=1.0, gt=0)
    """sapo: softness of the gate where the advantage is positive."""
    sapo_temperature_neg: float = Field(default=1.05, gt=0)
    """sapo: softness of the gate elsewhere."""
    mask_truncated: bool = False
    """Train on no token of a completion that was cut; its reward still counts in its group (DAPO's overlong filtering)."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before rollout.max_new_tokens over which the penalty of a long completion rises from 0 to the whole of it (DAPO's
    soft punishment). 0: none."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """What a completion of the full length loses of its reward."""
    normalizer: Normalizer = "softmax"
    """What turns logits into probabilities, in sampling, policy and reference alike."""

    @model_validator(mode="after")
    def _no_ratio_in_a_reward(self) -> Self:
        if self.kl_in == "reward" and self.bias_corrected_kl:
            raise ValueError(
                "bias_corrected_kl multiplies the loss's KL by the importance ratio, and kl_in=reward takes the KL out of "
                "the loss: set bias_corrected_kl=false, or kl_in=loss"
            )
        return self


class OrthoGradConfig(Section):
    """Removal of the part of each gradient that lies along its weights."""

    enabled: bool = False
    """Project gradients before every step of the optimizer."""
    granularity: Granularity = "tensor"
    """What is orthogonal to what: each tensor, each of its rows, or all weights as one vector."""
    skip_names: tuple[str, ...] = ()
    """Parameters whose name contains one of these are left alone."""
    skip_types: tuple[str, ...] = ()
    """Parameters of modules of these classes (`LayerNorm`, `Embedding`) are left alone."""


class OptimizerConfig(Section):
    """AdamW and what surrounds it."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; None leaves them."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; linear and cosine end at 0 with the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0."""
    orthograd: OrthoGradConfig = OrthoGradConfig()
    """See OrthoGradConfig."""


class CollapseConfig(Section):
    """Watching for softmax collapse: see grpo_training.collapse."""

    every: int = Field(default=0, ge=0)
    """Steps between measurements, each of which costs a forward and two passes over the weights; 0 measures nothing."""
    warn_at: float = Field(default=0.05, gt=0, le=1)
    """Share of loss terms that are exactly 0 from which on a warning says so, once."""
