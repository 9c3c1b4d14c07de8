"""The whole way with a real model: SmolLM2-135M behind a real `grpo-server` process, against transformers in fp32.

The oracle is the plain per-sequence forward, its logits normalised in float64. Re-ordering fp32 sums alone moves a score
of this model by up to 2e-5; the promise is 5e-5.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from grpo_client import ReferenceClient
from grpo_client.protocol import Status

pytestmark = pytest.mark.demo_model
PROMISE = 5e-5  # nats


@torch.no_grad()
def expected(model, prompt, completion, temperature, normalizer):
    if not completion:
        return np.zeros(0)
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double() / temperature
    if normalizer == "stablemax":
        logits = torch.sign(logits) * torch.log1p(logits.abs())
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None])[:, 0].numpy()


TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "def add(a, b):\n    return a + b\n",
    "What is 3 + 4? The answer is 7.",
    "In 1905 Albert Einstein published four papers that changed physics: on light, on atoms, on space and time.",
]


def groups_of(tokenizer, sizes):
    """Real text cut into prompts and completions of many lengths: an empty one, one that ends in EOS = pad, among them."""
    rng = np.random.default_rng(len(sizes))
    eos = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == eos
    prompts, completions = [], []
    for k, size in enumerate(sizes):
        ids = tokenizer(TEXTS[k % len(TEXTS)]).input_ids
        prompt = ids[:1] if k == 0 else ids[: len(ids) // 2]
        rest = ids[len(prompt) :]
        group = []
        for g in range(size):
            cut = rest[: int(rng.integers(1, len(rest) + 1))]
            noise = rng.integers(3, 49152, int(rng.integers(0, 4))).tolist()
            group.append([[], [*cut, eos], [eos, *cut, eos, eos]][g % 3] if g % 4 else [*cut, *noise])
        prompts.append(prompt)
        completions.append(group)
    return prompts, completions


@pytest.mark.parametrize("encoding", ["json", "tensors"])
@pytest.mark.parametrize(
    ("temperature", "normalizer", "sizes"),
    [
        (0.5, "softmax", [1, 5]),
        (1.0, "softmax", [16, 1]),
        (1.7, "softmax", [2, 7]),
        (0.5, "stablemax", [4]),
        (1.0, "stablemax", [1, 2]),
        (1.7, "stablemax", [3, 8]),
    ],
)
def test_scores_are_transformers_own(server, oracle, encoding, temperature, normalizer, sizes):
    model, tokenizer = oracle
    prompts, completions = groups_of(tokenizer, sizes)
    with ReferenceClient(server[0], encoding=encoding) as client:
        result = client.score(prompts, completions, temperature=temperature, normalizer=normalizer)
    assert result.reference.bitwise
    scores = iter(result.completions())
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            mine = next(scores)
            assert mine.status == Status.OK
            want = expected(model, prompt, completion, temperature, normalizer)
            np.testing.assert_allclose(mine.logprobs, want, rtol=0, atol=PROMISE)


def test_both_encodings_and_any_company_have_the_same_bits(server, oracle):
    prompts, completions = groups_of(oracle[1], [3, 4])
    answers = []
    for encoding in ("json", "tensors"):
        with ReferenceClient(server[0], encoding=encoding) as client:
            answers.append(client.score(prompts, completions).logprobs)
            alone = [client.score([p], [[c]]).logprobs for p, g in zip(prompts, completions, strict=True) for c in g]
            answers.append(np.concatenate(alone))
    assert all(a.tobytes() == answers[0].tobytes() for a in answers)


def test_text_is_tokenized_by_the_server_and_its_ids_come_back(server, oracle):
    model, tokenizer = oracle
    with ReferenceClient(server[0]) as client:
        result = client.score_text(["The capital of France is"], [[" Paris.", " a city"]])
    assert result.prompt_ids is not None
    assert result.completion_ids is not None
    assert tokenizer.decode(result.completion_ids[0]) == " Paris."
    want = expected(model, result.prompt_ids[0].tolist(), result.completion_ids[0].tolist(), 1.0, "softmax")
    np.testing.assert_allclose(result.ragged()[0], want, rtol=0, atol=PROMISE)


def test_the_logits_are_never_all_there(server):
    """4,096 completion tokens: their logits would take 800 MB in fp32. `python -m benchmarks.memory` does 32,768."""

    def peak() -> int:
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server[1]}/status").read_text())[1]) * 1024

    rng = np.random.default_rng(0)
    Path(f"/proc/{server[1]}/clear_refs").write_text("5")  # forget the peak of loading
    before = peak()
    with ReferenceClient(server[0]) as client:
        prompts = [rng.integers(3, 49152, 16) for _ in range(8)]
        result = client.score(prompts, [rng.integers(3, 49152, (8, 64)) for _ in prompts])
    assert len(result.logprobs) == 4096
    assert peak() - before < 600e6


def test_openapi_and_reference_are_served(server):
    with ReferenceClient(server[0]) as client:
        info = client.info()
    assert info.model == "demo"
    assert len(info.fingerprint) == 64
    assert info.vocab_size == 49152
    assert json.loads(info.model_dump_json())["tier"] == "packed"
