"""Axolotl's KD plugin, unmodified, on the files of `grpo-client score --format axolotl`: collator, loss, `axolotl train`.

The teacher's log-probs are those of a model. A student that is the same model has a loss of 0 where each row is compared with
the logits that it came from, and of more than 0 one row off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status
from grpo_client.files.rollouts import Rollout
from grpo_client.files.target_files import TargetFiles
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("axolotl.integrations.kd", reason="the KD plugin is axolotl's: make test-doors")
pq = pytest.importorskip("pyarrow.parquet")

K = 5
PROMPTS = ([1, 6, 5, 7, 4], [1, 9, 5, 8])
COMPLETIONS = ([[12, 13, 2], [14, 15, 16, 17, 2]], [[20, 2], [21, 22, 11, 10]])
pytestmark = pytest.mark.filterwarnings("ignore")


def scored(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> ScoreResult:
    """As the server would answer."""
    request = ScoreRequest.of([list(prompt)], [[list(c) for c in completions]], top_k=K)
    rows = []
    for completion in completions:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        rows.append((logits.log_softmax(-1), torch.tensor(completion)))
    best = [logprobs.topk(K) for logprobs, _ in rows]
    return ScoreResult(
        reference=ReferenceInfo(
            model="tiny", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=25
        ),
        normalizer="softmax",
        temperature=np.ones(1, np.float32),
        group_sizes=request.group_sizes,
        completion_lengths=request.completion_lengths,
        logprobs=torch.cat([logprobs.gather(1, ids[:, None])[:, 0] for logprobs, ids in rows]).numpy(),
        status=np.full(len(completions), Status.OK, np.uint8),
        extras={
            "top_ids": torch.cat([b.indices for b in best]).int().numpy(),
            "top_logprobs": torch.cat([b.values for b in best]).numpy(),
        },
    )


@pytest.fixture(scope="module")
def teacher(tiny_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_path).eval()


@pytest.fixture(scope="module")
def targets(teacher: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kd") / "targets"
    with TargetFiles(path, "axolotl", resume=False, rows=100) as files:
        for line, (prompt, completions) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True), 1):
            result = scored(teacher, prompt, completions)
            request = ScoreRequest.of([list(prompt)], [[list(c) for c in completions]], top_k=K)
            files.append(Rollout(line, None, request), result)
    return path


def loss(student: Any, batch: dict[str, torch.Tensor], shift: int = 0, **options: Any) -> float:
    """As `AxolotlKDTrainer.compute_loss` has it, a token. shift: by how many positions the targets come too late."""
    from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss

    function = LigerFusedLinearKLTopKLogprobLoss(
        0.0, 1.0, 1.0, 0.0, compiled=False, compute_ce_loss=False, **{"normalize_topk": None, **options}
    )
    moved = {name: batch[f"target_{name}"].roll(shift, 1) for name in ("token_ids", "logprobs", "mask")}
    hidden = student(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    ).hidden_states[-1]
    total = function(
        student.lm_head.weight,
        hidden,
        moved["token_ids"],
        moved["logprobs"],
        moved["mask"],
        true_labels=batch["labels"],
    )
    return float(total / (batch["labels"] != -100).sum())


@pytest.fixture(scope="module")
def batch(targets: Path, tiny_path: Path) -> dict[str, torch.Tensor]:
    from axolotl.integrations.kd.collator import DataCollatorForKD

    rows = pq.read_table(targets).select(
        ["input_ids", "attention_mask", "labels", "target_logprobs", "target_token_ids", "target_mask"]
    )
    collator = DataCollatorForKD(AutoTokenizer.from_pretrained(tiny_path), return_tensors="pt")
    return dict(collator(rows.to_pylist()))


def test_equal_models_differ_by_nothing_where_each_row_is_at_its_logits(teacher: Any, batch: Any) -> None:
    assert abs(loss(teacher, batch)) < 1e-6
    for shift in (-1, 1):
        assert loss(teacher, batch, shift) > 0.1


def test_each_token_of_each_completion_is_learnt_from(batch: Any) -> None:
    tokens = sum(len(c) for completions in COMPLETIONS for c in completions)
    assert int(batch["target_mask"].sum()) == tokens * K
    assert int((batch["labels"] != -100).sum()) == tokens


def test_the_chat_loader_of_axolotl_is_one_position_late(teacher: Any, tiny_path: Path) -> None:
    """Why the files go around it: with completion token t's row as row t, or as any other, equal models differ."""
    from axolotl.integrations.kd.chat_template import ChatTemplateStrategyWithKDv2
    from axolotl.integrations.kd.collator import DataCollatorForKD

    prompt, completion = PROMPTS[0], COMPLETIONS[0][1]
    result = scored(teacher, prompt, [completion])
    loader = ChatTemplateStrategyWithKDv2.__new__(ChatTemplateStrategyWithKDv2)
    loader.logprobs_field, loader.gen_temperature, loader.kd_temperature = "logprobs", 1.0, 1.0
    sample = loader.transform_logprobs(
        {
            "input_ids": [*prompt, *completion],
            "attention_mask": [1] * (len(prompt) + len(completion)),
            "labels": [-100] * len(prompt) + completion,
            "logprobs": np.asarray(result.extras["top_logprobs"]).tolist(),
            "target_token_ids": np.asarray(result.extras["top_ids"]).tolist(),
        }
    )
    batch = dict(DataCollatorForKD(AutoTokenizer.from_pretrained(tiny_path), return_tensors="pt")([sample]))
    assert loss(teacher, batch, normalize_topk=True) > 0.1
    assert abs(loss(teacher, batch, -1, normalize_topk=True)) < 1e-6


@pytest.fixture
def trained(targets: Path, tiny_path: Path, tmp_path: Path) -> Any:
    """`axolotl train` on the files, from its command line: the losses that it logs."""
    pytest.importorskip("axolotl.train", reason="axolotl trains only with all that it requires installed")

    def run(**more: Any) -> list[float]:
        config = {
            "base_model": str(tiny_path),
            "plugins": ["axolotl.integrations.kd.KDPlugin"],
            "kd_trainer": True,
            "kd_ce_alpha": 0.0,
            "kd_alpha": 1.0,
            "kd_temperature": 1.0,
            "datasets": [{"path": str(targets), "ds_type": "parquet", "type": None}],
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "output_dir": str(tmp_path / "out"),
            "sequence_len": 32,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 4,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler": "constant",
            "logging_steps": 1,
            "bf16": False,
            "fp16": False,
            "attn_implementation": "sdpa",
            **more,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "axolotl.cli.train", str(tmp_path / "config.yaml")]
        quiet = {
            "AXOLOTL_DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCHDYNAMO_DISABLE": "1",
        }
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        [state] = (tmp_path / "out").glob("checkpoint-4/trainer_state.json")
        return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]

    return run


def test_axolotl_trains_on_the_files(trained: Any, teacher: Any, tmp_path: Path) -> None:
    torch.manual_seed(7)
    student = AutoModelForCausalLM.from_config(teacher.config)
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(teacher.name_or_path).save_pretrained(tmp_path / "student")
    losses = trained(base_model=str(tmp_path / "student"))
    assert losses[0] > 0.1
    assert losses[-1] < losses[0]


def test_axolotl_has_nothing_to_learn_from_itself(trained: Any) -> None:
    assert all(abs(loss) < 1e-5 for loss in trained(max_steps=4))
