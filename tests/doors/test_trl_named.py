"""A reference, or a teacher, among several that a server hosts: each trainer of the TRL door asks for the one that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the TRL door needs the extra `trl`")

from grpo_client import NotFound, ReferenceClient
from grpo_training.trl import (
    RemoteReferenceDPOTrainer,
    RemoteReferenceGRPOTrainer,
    RemoteTeacherTrainer,
    ServedReference,
)
from test_trl import QUIET, grpo
from test_trl_teacher import trainer as teacher_trainer
from transformers import AutoModelForCausalLM
from trl import DPOConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 11, 12, 0, 0]])


def served(url: str, name: str | None) -> torch.Tensor:
    reference = ServedReference.at(url, name)
    labels = IDS.masked_fill(IDS == 0, -100)
    labels[:, :2] = -100
    out = reference(IDS, (IDS != 0).long(), labels).log_probs
    reference.close()
    return out


def own(path: Path) -> torch.Tensor:
    logits = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(IDS).logits[:, :-1]
    scores = logits.double().log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0].float()
    scores[:, 0] = 0.0
    return scores.masked_fill(IDS[:, 1:] == 0, 0.0)


def test_the_scores_are_those_of_the_one_that_is_named(reference_url: str, tiny_path: Path, other_path: Path) -> None:
    for name, path in ((None, tiny_path), ("tiny", tiny_path), ("other", other_path)):
        torch.testing.assert_close(served(reference_url, name), own(path), atol=1e-4, rtol=0)
    assert (own(tiny_path) - own(other_path)).abs().max() > 0.1


@pytest.mark.parametrize("name", [None, "other"])
def test_each_trainer_asks_for_the_one_that_it_names(
    name: str | None, tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    rest = {"reference": reference_url, "reference_model": name}
    made: list[ServedReference] = [grpo(RemoteReferenceGRPOTrainer, tiny_path, tokenizer, tmp_path, rest).ref_model]
    rest = {"teacher": reference_url, "reference_model": name}
    made.append(teacher_trainer(RemoteTeacherTrainer, tiny_path, tokenizer, tmp_path, rest).teacher)
    args = DPOConfig(str(tmp_path), **QUIET, bf16=False, precompute_ref_log_probs=True)
    made.append(dpo(tiny_path, tokenizer, args, reference=reference_url, reference_model=name)._served)
    assert [one.info.model for one in made] == [name or "tiny"] * 3
    for one in made:
        one.close()


def dpo(tiny_path: Path, tokenizer: Any, args: DPOConfig, **rest: Any) -> Any:
    from datasets import Dataset

    rows = {"prompt": ["1+1="], "chosen": ["2"], "rejected": ["3"]}
    return RemoteReferenceDPOTrainer(
        str(tiny_path), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer, **rest
    )


def test_a_name_that_is_not_there_is_refused_with_those_that_are(
    tiny_path: Path, tokenizer: Any, reference_url: str, tmp_path: Path
) -> None:
    rest = {"reference": reference_url, "reference_model": "nobody"}
    with pytest.raises(NotFound, match="'nobody' is not here; this server hosts 'tiny', 'other'"):
        grpo(RemoteReferenceGRPOTrainer, tiny_path, tokenizer, tmp_path, rest)
    with ReferenceClient(reference_url) as client, pytest.raises(ValueError, match="reference_model: the client says"):
        ServedReference.at(client, "other")
