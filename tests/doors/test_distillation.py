"""The distillation losses beside TRL's own, on the same logits."""

from __future__ import annotations

import pytest
import torch
from grpo_numerics.head.chosen import fused_chosen_logprobs
from grpo_training.losses.distillation import Support, distillation_terms

N, D, V, K = 13, 8, 61, 5


def setting() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    return hidden, weight, 2 * torch.randn(N, V, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_whole_vocabulary_is_gkd(beta: float, temperature: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    hidden, weight, teacher_logits = setting()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        (hidden @ weight.t())[None], teacher_logits[None], beta=beta, temperature=temperature, reduction="sum"
    )
    ids = torch.arange(V).expand(N, V)
    teacher = Support(
        ids, (teacher_logits / temperature).log_softmax(-1), torch.full((N,), -torch.inf, dtype=torch.float64)
    )
    student = fused_chosen_logprobs(hidden, weight, ids, temperature=temperature)
    mine = distillation_terms(student, teacher, "jsd", beta=beta).divergence.sum()
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(mine, hidden), torch.autograd.grad(theirs, hidden), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_tail_bucket_is_that_of_the_server_trainer(beta: float) -> None:
    trainer = pytest.importorskip("trl.experimental.server_distillation.server_distillation_trainer")
    hidden, weight, teacher_logits = setting()
    full = teacher_logits.log_softmax(-1)
    ids = full.topk(K).indices
    outside = full.scatter(1, ids, -torch.inf).logsumexp(-1)
    student = fused_chosen_logprobs(hidden, weight, ids)
    mine = distillation_terms(student, Support(ids, full.gather(1, ids), outside), "jsd", beta=beta).divergence
    valid = torch.ones_like(ids, dtype=torch.bool)
    q, mask = trainer._add_tail_bucket((hidden @ weight.t()).log_softmax(-1).gather(1, ids), valid)
    p, _ = trainer._add_tail_bucket(full.gather(1, ids), valid)
    theirs = trainer._jsd_divergence(q, p, beta, mask)
    theirs = theirs.sum(-1) if theirs.ndim == 2 else theirs
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
