"""What a teacher adds to a portion's loss: a divergence at each position, or an advantage for each sampled token.

    sampled     d = log q_old - log p of the sampled token; its advantage is -coef d, and d's mean the reverse KL
    the others  coef times the divergence of each token, averaged over the tokens of the whole update, whatever `loss.kind` is

Only tokens that are trained on count; what stands elsewhere may be anything. Shape letters: S completions of up to C tokens,
N of them in the loss mask, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from grpo_numerics.head.chosen import ChosenLogprobs
from torch import Tensor

from grpo_training.config import DistillConfig
from grpo_training.losses.distillation import Support, distillation_terms
from grpo_training.losses.grpo import Totals


class TeacherTerm(NamedTuple):
    """loss: scalar with gradient, the portion's share. sums: over the portion's trained tokens, detached."""

    loss: Tensor
    sums: Mapping[str, Tensor]


def divergence_loss(
    student: ChosenLogprobs, teacher: Support, trained: Tensor, options: DistillConfig, totals: Totals
) -> TeacherTerm:
    """student: at the N tokens' `teacher.ids`, with gradient. trained: (N,) bool. totals: of the whole update.

    Sums: `distill/loss` (the divergence, in nats), the masses of both in the support, and `distill/tail`, what the mass
    outside adds.
    """
    assert options.kind != "sampled"
    # No id is known where nothing is trained on: so nothing that stands there reaches the loss or its gradient.
    known = Support(
        teacher.ids.masked_fill(~trained[:, None], -1), teacher.logprobs, teacher.tail.masked_fill(~trained, -torch.inf)
    )
    terms = distillation_terms(student, known, options.kind, tail=options.tail, beta=options.beta, alpha=options.alpha)
    divergence = terms.divergence.double().where(trained, 0.0).sum()
    figures = {
        "loss": terms.divergence.detach(),
        "teacher_mass": terms.teacher_mass,
        "student_mass": terms.student_mass,
        "tail": terms.tail,
    }
    sums = {f"distill/{name}": figure.double().where(trained, 0.0).sum() for name, figure in figures.items()}
    return TeacherTerm(options.coef * divergence / max(totals.tokens, 1), sums)


@torch.no_grad()
def difference_sums(old: Tensor, teacher: Tensor, mask: Tensor, *, clip: float | None) -> dict[str, Tensor]:
    """Of d = log q_old - log p over the tokens in `mask`, all (S, C): `distill/d_mean`, and the share beyond `clip`."""
    d = (old - teacher).where(mask, 0.0)
    sums = {"distill/d_mean": d.double().sum()}
    if clip is not None:
        sums["distill/clipped"] = (d.abs() > clip).sum()
    return sums
