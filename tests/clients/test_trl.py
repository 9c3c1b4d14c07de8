"""TRL: the teacher client, and a short run of the trainer that uses it.

TRL asks whether the package `vllm` is installed before it makes a client, also of one that only scores over HTTP, for
which it needs `requests` alone. That question is answered with yes here; nothing else of TRL is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers
from conftest import TOLERANCE, Oracle, actual
from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
from trl.generation import vllm_client

PROMPT = 5


@pytest.fixture(autouse=True)
def vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *a, **k: True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_get_sequence_logprobs(
    url: str,
    sequences: list[list[int]],
    logprobs: Oracle,
    temperature: float,
    report: Callable[[str, float], None],
) -> None:
    client = vllm_client.VLLMClient(base_url=url)
    answer = client.get_sequence_logprobs(
        sequences, [PROMPT] * len(sequences), top_logprobs=3, temperature=temperature, chunk_size=2
    )
    worst = 0.0
    for i, ids in enumerate(sequences):
        table = logprobs(ids, temperature)[PROMPT - 1 :]
        mine = np.array(answer["actual_logprobs"][i])[:, 0]
        worst = max(worst, float(np.abs(mine - actual(logprobs(ids, temperature), ids)[PROMPT - 1 :]).max()))
        best = np.sort(table, axis=1)[:, ::-1][:, :3]
        worst = max(worst, float(np.abs(np.array(answer["logprobs"][i]) - best).max()))
        assert np.array(answer["actual_token_ids"][i])[:, 0].tolist() == ids[PROMPT:]
    report(f"TRL teacher, temperature {temperature}: largest error", worst)
    assert worst <= TOLERANCE


def test_server_distillation(
    url: str, tokenizer: transformers.PreTrainedTokenizerBase, tmp_path: Path, report: Callable[[str, float], None]
) -> None:
    """A tiny student with the teacher's vocabulary learns from the server for a few steps."""
    transformers.set_seed(0)
    student = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=49152,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    prompts = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(8)]
    config = ServerDistillationConfig(
        output_dir=str(tmp_path),
        teacher_model_server_url=url,
        loss_top_k=1,
        beta=0.5,
        temperature=1.0,
        max_completion_length=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        max_steps=3,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
    )
    trainer = ServerDistillationTrainer(
        model=student,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    report("server distillation: last loss", losses[-1])
