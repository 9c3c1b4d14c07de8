"""TRL trains against the service as against a reference of its own: same losses, and no second model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_client import ReferenceClient
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

trl = pytest.importorskip("trl", reason="the TRL door needs the extra `trl`")
from datasets import Dataset  # noqa: E402
from grpo_training.trl import (  # noqa: E402
    ReferenceUnusable,
    RemoteReferenceDPOTrainer,
    RemoteReferenceGRPOTrainer,
    ServedReference,
)
from grpo_training.trl.served import Rows  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

QUIET = {"report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}


def digits(completions: list[str], **_: Any) -> list[float]:
    return [sum(c.isdigit() for c in text) / 8 for text in completions]


def grpo(cls: type, model: Any, tokenizer: PreTrainedTokenizerFast, out: Path, rest: Any = None, **fields: Any) -> Any:
    args = trl.GRPOConfig(
        str(out),
        **QUIET,
        **{
            "beta": 0.3,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 8,
            "temperature": 0.7,
            "bf16": False,
            "gradient_checkpointing": False,
            "seed": 7,
            **fields,
        },
    )
    data = Dataset.from_dict({"prompt": ["1+2=", "a", "30+4=", "b c", "7", "55+1="]})
    return cls(
        model=str(model) if isinstance(model, Path) else model,
        reward_funcs=digits,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        **(rest or {}),
    )


def history(trainer: Any, *names: str) -> dict[str, list[float]]:
    trainer.train()
    return {name: [entry[name] for entry in trainer.state.log_history if name in entry] for name in names}


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_iterations": 2, "loss_type": "grpo"}, {"mask_truncated_completions": True, "loss_type": "bnpo"}],
    ids=str,
)
def test_grpo_learns_the_same_from_the_service_as_from_its_own_reference(
    fields: dict[str, Any], tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    names = ("loss", "kl", "grad_norm", "reward")
    local = history(grpo(trl.GRPOTrainer, tiny_path, tokenizer, tmp_path, **fields), *names)
    served = grpo(RemoteReferenceGRPOTrainer, tiny_path, tokenizer, tmp_path, {"reference": reference_url}, **fields)
    assert isinstance(served.ref_model, ServedReference)
    remote = history(served, *names)
    served.ref_model.close()
    assert (
        max(abs(kl) for kl in local["kl"]) > 1e-3
    )  # the reference has been left behind, so the comparison means something
    for name in names:
        assert remote[name] == pytest.approx(local[name], rel=1e-4, abs=1e-4), name


class WithTools:
    """Every third token of a completion is a tool's. TRL would need a model that calls one."""

    def _generate(self: Any, prompts: Any) -> Any:
        tools, self.tools = self.tools, []
        made = list(super()._generate(prompts))  # pyright: ignore[reportAttributeAccessIssue]
        self.tools = tools
        made[2] = [[int(i % 3 != 1) for i in range(len(ids))] for ids in made[1]]
        return tuple(made)


def test_tools_and_a_reference(
    tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup(key: str) -> str:
        """Look something up.

        Args:
            key: what.
        """
        return key

    for name in ("supports_tool_calling", "is_chat_template_prefix_preserving"):
        monkeypatch.setattr(f"trl.trainer.grpo_trainer.{name}", lambda _: True)
    monkeypatch.setattr("trl.trainer.grpo_trainer.add_response_schema", lambda it: it)
    names = ("loss", "kl", "grad_norm", "reward")
    own = type("Own", (WithTools, trl.GRPOTrainer), {})
    served = type("Served", (WithTools, RemoteReferenceGRPOTrainer), {})
    local = history(grpo(own, tiny_path, tokenizer, tmp_path, {"tools": [lookup]}), *names)
    asking = grpo(served, tiny_path, tokenizer, tmp_path, {"tools": [lookup], "reference": reference_url})
    asks, nonsense = asking.reference_logprobs, []

    def tools_are_nonsense(model: Any, input_ids: Any, attention_mask: Any, width: int) -> Any:
        waiting = asks(model, input_ids, attention_mask, width)
        scored = asking._awaited

        def spoilt() -> Any:
            scores = scored().clone()
            nonsense.append(scores[:, -width:][:, 1::3].fill_(-50.0))
            return scores

        asking._awaited = spoilt
        return waiting

    monkeypatch.setattr(asking, "reference_logprobs", tools_are_nonsense)
    remote = history(asking, *names)
    asking.ref_model.close()
    assert nonsense
    assert max(abs(kl) for kl in local["kl"]) > 1e-3
    for name in names:
        assert remote[name] == pytest.approx(local[name], rel=1e-4, abs=1e-4), name


def test_no_second_model_is_loaded(
    tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path)
    loads: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append("load")
        return load(*args, **kwargs)

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", counted)
    trainer = grpo(RemoteReferenceGRPOTrainer, model, tokenizer, tmp_path, {"reference": reference_url})
    assert (trainer.beta, trainer.args.beta) == (0.3, 0.3)
    assert loads == []
    trainer.ref_model.close()
    grpo(trl.GRPOTrainer, model, tokenizer, tmp_path)
    assert loads == ["load"]


def test_beta_0_asks_nothing(tiny_path: Path, tokenizer: Any, tmp_path: Path) -> None:
    nobody = {"reference": "http://127.0.0.1:9"}
    trainer = grpo(RemoteReferenceGRPOTrainer, tiny_path, tokenizer, tmp_path, nobody, beta=0.0, max_steps=1)
    assert trainer.ref_model is None
    trainer.train()


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_the_reference_moves_as_trl_moves_its_own(
    alpha: float, tiny_path: Path, tokenizer: Any, moving_url: str, tmp_path: Path
) -> None:
    moves = {"sync_ref_model": True, "ref_model_mixup_alpha": alpha, "ref_model_sync_steps": 2, "max_steps": 5}
    names = ("loss", "kl", "reward")
    local = history(grpo(trl.GRPOTrainer, tiny_path, tokenizer, tmp_path, **moves), *names)
    served = grpo(RemoteReferenceGRPOTrainer, tiny_path, tokenizer, tmp_path, {"reference": moving_url}, **moves)
    remote = history(served, *names, "reference/version")
    assert isinstance(served.ref_model, ServedReference)
    served.ref_model.close()
    for name in names:
        assert remote[name] == pytest.approx(local[name], abs=1e-4), name
    assert max(local["kl"]) > 1e-3
    versions = remote["reference/version"]
    assert (versions[0], versions[-1], sorted(versions)) == (1, 3, versions)
    assert not (tmp_path / "reference").exists()


def test_what_cannot_be_served_is_refused(tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path) -> None:
    with ReferenceClient(reference_url) as client, pytest.raises(ReferenceUnusable, match="vocabulary"):
        ServedReference(client, vocab_size=5)
    with pytest.raises(ValueError, match="precompute_ref_log_probs"):
        RemoteReferenceDPOTrainer(
            str(tiny_path), args=trl.DPOConfig(str(tmp_path), **QUIET, bf16=False), reference=reference_url
        )


@pytest.mark.parametrize("fields", [{}, {"ld_alpha": 0.5}, {"max_length": 7, "truncation_mode": "keep_end"}], ids=str)
def test_dpo_columns_and_losses(
    fields: dict[str, Any], tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    def build(cls: type, **more: Any) -> Any:
        args = trl.DPOConfig(
            str(tmp_path),
            **QUIET,
            **{"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "bf16": False, **fields},
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
        )
        data = Dataset.from_dict(
            {
                "prompt": ["1+2=", "a", "30+4=", "b c"],
                "chosen": ["3", "bcdef", "34", "d"],
                "rejected": ["12", "a", "7 7", "0000"],
            }
        )
        return cls(model=str(tiny_path), args=args, train_dataset=data, processing_class=tokenizer, **more)

    local, remote = build(trl.DPOTrainer), build(RemoteReferenceDPOTrainer, reference=reference_url)
    assert remote.ref_model is None
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        expected = local.train_dataset[column]
        assert list(remote.train_dataset[column]) == pytest.approx(list(expected), abs=1e-4)
    assert history(remote, "loss")["loss"] == pytest.approx(history(local, "loss")["loss"], abs=1e-4)


def test_rows_strip_padding_and_share_prompts() -> None:
    ids = torch.tensor([[0, 5, 6, 7, 8], [5, 6, 9, 0, 0], [0, 0, 4, 3, 3], [1, 2, 3, 0, 0]])
    attention = ids.ne(0).long()
    labels = ids.masked_fill(attention == 0, -100)
    labels[0, :3] = labels[1, :2] = -100
    labels[3] = -100  # a truncated completion that is masked: nothing to score
    rows = Rows.of(ids, attention, labels)
    assert rows.prompts == [[5, 6], [4]]
    assert rows.completions == [[[7, 8], [9]], [[3, 3]]]
    out = rows.spread([torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0, 5.0])], torch.zeros(4, 4))
    assert out.tolist() == [[0, 0, 1, 2], [0, 3, 0, 0], [0, 0, 4, 5], [0, 0, 0, 0]]
    labels[0, 3] = -100
    labels[0, 2] = 6
    with pytest.raises(ValueError, match="without a gap"):
        Rows.of(ids, attention, labels)
