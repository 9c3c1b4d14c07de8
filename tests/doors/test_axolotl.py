"""The plugin inside the real axolotl: its own validation, its own plugin manager, a few steps, and every conflict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from grpo_numerics import stablemax
from grpo_training.orthograd import FLAG
from grpo_training.patching import PatchConflict
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

base = pytest.importorskip("axolotl.integrations.base", reason="the Axolotl door needs the extra `axolotl`")
from axolotl.utils.config import prepare_plugins, validate_config  # noqa: E402
from axolotl.utils.dict import DictDefault  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TORCHS = F.cross_entropy
OURS = "grpo_training.axolotl.StableMaxPlugin"
CUT = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"
LIGER = "axolotl.integrations.liger.LigerPlugin"


@pytest.fixture(autouse=True)
def fresh_manager() -> Iterator[None]:
    """Axolotl's plugin manager is one for the process."""
    base.PluginManager.get_instance().plugins.clear()
    yield
    base.PluginManager.get_instance().plugins.clear()
    F.cross_entropy = TORCHS


def validated(plugins: list[str], **fields: Any) -> Any:
    cfg = DictDefault(
        {
            "base_model": "tiny",
            "datasets": [{"path": "rows", "type": "alpaca"}],
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "plugins": plugins,
            **fields,
        }
    )
    prepare_plugins(cfg)
    result = validate_config(cfg)
    base.PluginManager.get_instance().cfg = result
    return result


def test_axolotl_validates_the_fields() -> None:
    cfg = validated([OURS], stablemax=True, orthograd=True, orthograd_granularity="row", orthograd_skip=["bias"])
    assert (cfg.stablemax, cfg.orthograd, cfg.orthograd_granularity, cfg.orthograd_skip) == (
        True,
        True,
        "row",
        ["bias"],
    )
    with pytest.raises(ValueError, match="orthograd_granularity"):
        validated([OURS], orthograd_granularity="column")


@pytest.mark.parametrize(
    ("plugins", "fields", "named"),
    [
        ([OURS, CUT], {"bf16": True}, "cut_cross_entropy"),  # on by default: its plugin is listed
        ([CUT, OURS], {"bf16": True}, "cut_cross_entropy"),
        ([OURS, LIGER], {"liger_cross_entropy": True}, "liger_cross_entropy"),
        ([OURS, LIGER], {"liger_fused_linear_cross_entropy": True}, "liger_fused_linear_cross_entropy"),
        ([OURS], {"chunked_cross_entropy": True}, "chunked_cross_entropy"),
    ],
)
def test_conflicts_are_refused_by_validation(plugins: list[str], fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        validated(plugins, stablemax=True, **fields)


def test_conflicts_are_refused_again_before_the_model_is_loaded() -> None:
    cfg = validated([OURS], stablemax=True)
    cfg.cut_cross_entropy = True
    with pytest.raises(ValueError, match="cut_cross_entropy"):
        base.PluginManager.get_instance().pre_model_load(cfg)
    assert F.cross_entropy is TORCHS


def test_a_model_that_goes_around_the_patch_is_refused() -> None:
    cfg = validated([OURS], stablemax=True)
    manager = base.PluginManager.get_instance()
    manager.pre_model_load(cfg)

    def forward(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x

    forward.__module__ = "liger_kernel.transformers.model.llama"
    with pytest.raises(PatchConflict, match="liger_kernel"):
        manager.post_model_load(cfg, type("Fused", (torch.nn.Module,), {"forward": forward})())


def test_a_run_trains_under_both_and_gives_torch_back(tiny_path: Path, tmp_path: Path) -> None:
    cfg = validated([OURS], stablemax=True, orthograd=True)
    manager = base.PluginManager.get_instance()
    manager.pre_model_load(cfg)
    model = AutoModelForCausalLM.from_pretrained(tiny_path)
    manager.post_model_load(cfg, model)
    ids = torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    args = TrainingArguments(
        str(tmp_path), max_steps=1, optim="sgd", learning_rate=1e-2, max_grad_norm=0.0, report_to=[], use_cpu=True
    )
    trainer = Trainer(model=model, args=args, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
    manager.post_trainer_create(cfg, trainer)
    with torch.no_grad():
        p = stablemax(model(input_ids=ids).logits)[:, :-1].gather(-1, ids[:, 1:, None])
        assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(-p.log().mean().item(), rel=1e-6)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()
    skipped = {id(q) for group in trainer.optimizer.param_groups if not group[FLAG] for q in group["params"]}
    assert {n for n, q in model.named_parameters() if id(q) in skipped} == {n for n in before if "norm" in n}
    for name, now in model.named_parameters():
        update = (now.detach() - before[name]).flatten()
        if "norm" not in name:
            assert abs(float(F.cosine_similarity(update, before[name].flatten(), dim=0))) < 1e-4, name
    manager.post_train_unload(cfg)
    assert F.cross_entropy is TORCHS


def test_both_off_does_nothing() -> None:
    cfg = validated([OURS])
    manager = base.PluginManager.get_instance()
    trainer = SimpleNamespace()
    manager.pre_model_load(cfg)
    manager.post_trainer_create(cfg, trainer)
    assert F.cross_entropy is TORCHS
    assert vars(trainer) == {}


def test_axolotl_trains_a_few_steps(tiny_path: Path, tmp_path: Path) -> None:
    """`axolotl train` itself, from its command line: dataset, model, trainer and optimizer are axolotl's."""
    pytest.importorskip("axolotl.train", reason="axolotl trains only with all that it requires installed")
    row = {"input_ids": [1, *range(5, 15), 2], "attention_mask": [1] * 12, "labels": [1, *range(5, 15), 2]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    config = {
        "base_model": str(tiny_path),
        "plugins": [OURS],
        "stablemax": True,
        "orthograd": True,
        "datasets": [{"path": str(tmp_path / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(tmp_path / "prepared"),
        "output_dir": str(tmp_path / "out"),
        "sequence_len": 16,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "bf16": False,
        "fp16": False,
        "attn_implementation": "sdpa",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "axolotl.cli.train", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [state] = (tmp_path / "out").glob("checkpoint-4/trainer_state.json")
    losses = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_path, tmp_path / "out"))
    ids = torch.tensor([row["input_ids"]])
    p = stablemax(before(input_ids=ids).logits.double())[:, :-1].gather(-1, ids[:, 1:, None])
    assert losses[0] == pytest.approx(-p.log().mean().item(), rel=1e-4)
    assert losses[-1] < losses[0]
    weights = dict(before.named_parameters())
    grown = {n: float(w.norm() / weights[n].norm()) for n, w in after.named_parameters() if "norm" not in n}
    assert all(g >= 1 - 1e-6 for g in grown.values()), grown  # steps across the weights never shorten them
