"""The probe's oracle: plain transformers behind a pipe, and what it says when there is no right answer to be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_client.probe import OracleFailed, open_oracle
from grpo_client.probe.cases import Case
from transformers import LlamaConfig, LlamaForCausalLM


def test_the_oracle_is_transformers_in_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    cases = [Case((5, 9, 14, 3), 2), Case((7,), 1), Case((1, 2, 60), 1)]
    with open_oracle(str(tmp_path)) as oracle:
        assert (oracle.facts.vocab_size, oracle.facts.max_length) == (64, 32)
        assert oracle.facts.texts == ()  # no tokenizer was saved
        answers = {t: oracle.score(cases, t) for t in (1.0, 2.0)}
    for temperature, scores in answers.items():
        for case, got in zip(cases, scores, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([case.ids])).logits[0].double()
            table = torch.log_softmax(logits / temperature, dim=-1).numpy()
            right = [table[t - 1, case.ids[t]] for t in range(case.start, len(case.ids))]
            # The same fp32 forward, but eager attention instead of torch's fused one: some ulps of logits below 1.
            np.testing.assert_allclose(got, right, atol=1e-5)


def test_a_model_that_is_not_there_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OracleFailed, match="cannot load"), open_oracle(str(tmp_path / "nothing")):
        pass


def test_a_model_that_is_not_whole_is_no_oracle(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, state_dict={n: t for n, t in model.state_dict().items() if "lm_head" not in n})
    with (
        pytest.raises(OracleFailed, match=r"lacks 1 tensors of the model \(lm_head\.weight"),
        open_oracle(str(tmp_path)),
    ):
        pass
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(OracleFailed, match=r"model\.safetensors is cut off"), open_oracle(str(tmp_path)):
        pass
