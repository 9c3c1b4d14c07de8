"""verl's manager of teachers over a served one."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import MODEL, TOLERANCE, Config
from grpo_client.models.demo import locate
from grpo_client.verl import ServedTeacher
from transformers import AutoModelForCausalLM
from verl.experimental.teacher_loop.teacher_manager import AsyncTeacherLLMServerManager

DISTILLATION = (
    "distillation.enabled=True",
    "distillation.nnodes=1",
    "distillation.n_gpus_per_node=1",
    "distillation.teacher_models.teacher_model.model_path=demo",
    "distillation.teacher_models.teacher_model.inference.tensor_model_parallel_size=1",
)


@pytest.mark.parametrize(("loss", "k"), [(("loss_mode=k3",), 1), (("loss_mode=forward_kl_topk", "topk=4"), 4)])
def test_the_manager_gets_a_teachers_scores(
    loss: tuple[str, ...], k: int, config: Config, url: str, report: Callable[[str, object], None]
) -> None:
    settings = config(*DISTILLATION, *(f"distillation.distillation_loss.{one}" for one in loss))
    teacher = pickle.loads(pickle.dumps(ServedTeacher(url)))  # noqa: S301  # as it travels into an agent loop
    manager = AsyncTeacherLLMServerManager(settings, {"default": teacher})
    ids = torch.randint(3, 49000, (21,), generator=torch.Generator().manual_seed(5)).tolist()
    about, scores = asyncio.run(manager.compute_teacher_logprobs_single(ids))
    model = AutoModelForCausalLM.from_pretrained(locate(MODEL).path, dtype=torch.float32).eval()
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)[:-1]
    assert about.shape == scores.shape == (21, k)
    if k > 1:
        assert torch.equal(table.topk(k).indices, about[:-1].long())
    worst = float((table.gather(1, about[:-1].long()) - scores[:-1]).abs().max())
    report(f"teacher, k = {k}: largest difference", worst)
    assert worst <= TOLERANCE
