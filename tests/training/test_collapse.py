"""The four figures by hand, and the warning in a real Trainer, where collapse is made by scaling the head."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from grpo_training.collapse import CollapseCallback, CollapseMonitor
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


def test_the_figures_of_one_step() -> None:
    monitor = CollapseMonitor()
    monitor.saw_logits(torch.tensor([[30.0, 0.0], [1.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 0, -100]))
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([-3.0, 4.0])
    monitor.before_step([weight])
    weight.data *= 2
    monitor.after_step()
    figures = monitor.figures()
    assert figures["zero_share"] == 0.5  # exp(-30) is below fp32's last place of 1
    assert figures["max_logit"] == 30.0
    assert figures["cosine"] == pytest.approx(7 / 25)
    assert figures["norm_growth"] == pytest.approx(math.log(2))
    assert monitor.figures() == {}


def test_stablemax_has_no_zero_there() -> None:
    monitor = CollapseMonitor(normalizer="stablemax")
    monitor.saw_logits(torch.tensor([[30.0, 0.0]]), torch.tensor([0]))
    assert monitor.figures()["zero_share"] == 0.0


class Reporter(TrainerCallback):
    """Stands for TensorBoard and its like, which come before a user's callbacks."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_) -> None:
        self.seen.append(dict(logs))


@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_a_trainer_logs_them_and_warns_when_the_loss_vanishes(
    scale: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=8,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.lm_head.weight *= scale
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # labels that the model is certain of, so that each term is as small as its logits allow
        best = model.eval()(input_ids=ids).logits.argmax(-1)
    labels = torch.cat([ids[:, :1], best[:, :-1]], dim=1)
    rows = [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        logging_steps=1,
        learning_rate=1e-6,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    reporter = Reporter()
    trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[reporter])
    callback = CollapseCallback.install(trainer)
    with caplog.at_level(logging.WARNING, logger="grpo_training.collapse"):
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = {f"collapse/{name}" for name in ("zero_share", "max_logit", "cosine", "norm_growth")}
    assert all(names <= set(entry) for entry in steps)
    assert all(names <= set(entry) for entry in reporter.seen if "loss" in entry)
    warnings = [record for record in caplog.records if record.name == "grpo_training.collapse"]
    assert len(warnings) == callback.warned == (scale > 1)
    assert (steps[0]["collapse/zero_share"] >= 0.05) is (scale > 1)
    assert (steps[0]["collapse/max_logit"] > 17) is (scale > 1)
    assert not model._forward_hooks


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="warn_at"):
        CollapseCallback(warn_at=5)
