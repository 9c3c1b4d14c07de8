"""examples/swift_teacher.py inside the real ms-swift: its template, its requests, its frame, and its loss.

Equal models have a loss of 0; one row off they have not. ms-swift needs an environment of its own, and this test is skipped by
name without it.
"""

from __future__ import annotations

import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Status
from transformers import AutoModelForCausalLM, AutoTokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    pytest.importorskip("swift.rlhf_trainers", reason="ms-swift is not installed: pip install ms-swift")
    from swift.rlhf_trainers import gkd_helpers, rollout_mixin

pytestmark = pytest.mark.filterwarnings("ignore")


def example() -> Any:
    path = Path(__file__).resolve().parents[2] / "examples" / "swift_teacher.py"
    spec = spec_from_file_location("swift_teacher", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Served:
    """The client, with a model in the server's place."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(self, prompts: Any, completions: Any, *, temperature: float, top_k: int) -> ScoreResult:
        request = ScoreRequest.of(prompts, completions, temperature=temperature, top_k=top_k)
        ids, best, own = [], [], []
        for group in request.groups:
            sequence = torch.tensor([[*group.prompt.tolist(), *group.completions[0].tolist()]])
            with torch.no_grad():
                rows = (self.model(sequence).logits[0, :-1].double() / temperature).log_softmax(-1).float()
            own.append(rows.gather(1, sequence[0, 1:, None])[:, 0].numpy())
            best.append(rows.topk(top_k).values.numpy())
            ids.append(rows.topk(top_k).indices.int().numpy())
        return ScoreResult(
            reference=ReferenceInfo(
                model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=64, vocab_size=25
            ),
            normalizer="softmax",
            temperature=np.full(len(request.groups), temperature, np.float32),
            group_sizes=request.group_sizes,
            completion_lengths=request.completion_lengths,
            logprobs=np.concatenate(own),
            status=np.full(len(request.groups), Status.OK, np.uint8),
            extras={"top_ids": np.concatenate(ids), "top_logprobs": np.concatenate(best)} if top_k else {},
        )


def test_swifts_frame_of_a_served_teacher_is_that_of_the_model(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_path)
    sequences = [tokenizer("12+34=46\n").input_ids, tokenizer("1+1=2").input_ids]
    monkeypatch.setattr(rollout_mixin, "VLLMInferClient", rollout_mixin.VLLMInferClient)
    mixin = rollout_mixin.RolloutTrainerMixin
    monkeypatch.setattr(mixin, "_infer_teacher_requests", mixin._infer_teacher_requests)
    example().use_served_teachers()
    trainer = SimpleNamespace(
        template=SimpleNamespace(encode=lambda request: {"input_ids": request.ids}), teacher_clients=[Served(model)]
    )
    handle = {"all_requests": [SimpleNamespace(ids=ids) for ids in sequences]}
    parsed = mixin._infer_teacher_requests(trainer, handle, topk=4)
    width = max(map(len, sequences))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in sequences])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    told = gkd_helpers.assemble_teacher_output(
        parsed, {"input_ids": padded, "attention_mask": mask}, 4, False, torch.device("cpu")
    )
    logprobs = model(padded, attention_mask=mask).logits.log_softmax(-1)
    for row, ids in enumerate(sequences):
        best = logprobs[row, : len(ids) - 1].topk(4)
        torch.testing.assert_close(told.topk_logprobs[row, : len(ids) - 1], best.values, rtol=0, atol=1e-5)
        assert torch.equal(told.topk_indices[row, : len(ids) - 1], best.indices)
        assert (told.topk_logprobs[row, len(ids) - 1 :] == -torch.inf).all()


def test_swifts_sampled_tokens_are_found_at_their_places(tiny_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path).eval()
    ids = [1, 6, 5, 7, 4, 12, 13, 2]
    parsed = example().teacher_rows(Served(model), [ids], 0)
    mask = torch.tensor([[1, 1, 1, 0]])
    told = gkd_helpers.assemble_teacher_completion_logprobs(parsed, mask, torch.device("cpu"), [ids[-3:]])
    own = model(torch.tensor([ids])).logits.log_softmax(-1)[0, -4:-1].gather(1, torch.tensor(ids[-3:])[:, None])
    torch.testing.assert_close(told.topk_logprobs[0, :3], own, rtol=0, atol=1e-5)
