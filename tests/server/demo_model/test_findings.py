"""`grpo_client.findings` on what a real model wrote: each bug that people plant is found, and its healthy twin is not.

24 completions of 24 tokens of SmolLM2-135M, sampled at 1 and at 0.7. The log-probs of the same model in this process are the
policy's, those of a real server the reference's.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from grpo_client import ReferenceClient
from grpo_client.findings import Finding, Verdict, check, check_samples, samples_of
from grpo_client.findings.rescoring import filled

pytestmark = pytest.mark.demo_model
QUESTIONS = (
    "Name a river and say where it flows.",
    "What is 17 + 25? Explain.",
    "Write a sentence about rain.",
    "How do bees make honey?",
    "Tell me a short story about a fox.",
    "Why is the sky blue?",
)
OF, TOKENS = 4, 24


class Sampled:
    """What was sampled at one temperature, and the policy's log-probs of it."""

    def __init__(self, oracle: Any, temperature: float) -> None:
        self.model, self.tokenizer = oracle
        self.temperature = temperature
        torch.manual_seed(7)
        self.prompts: list[list[int]] = []
        self.completions: list[list[list[int]]] = []
        for question in QUESTIONS:
            chat = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            written = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=TOKENS,
                num_return_sequences=OF,
            )[:, len(prompt) :].tolist()
            end = self.tokenizer.eos_token_id
            self.prompts.append(prompt)
            self.completions.append([ids[: ids.index(end) + 1] if end in ids else ids for ids in written])

        self.logits = self.forward(self.model)

    @torch.no_grad()
    def forward(self, model: Any) -> list[list[torch.Tensor]]:
        """The logits that predict each token, a (C, V) tensor per completion."""
        return [
            [model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] for ids in completions]
            for prompt, completions in zip(self.prompts, self.completions, strict=True)
        ]

    def logprobs(
        self, temperature: float, logits: list[list[torch.Tensor]] | None = None, dtype: torch.dtype = torch.float32
    ) -> list[list[list[float]]]:
        return [
            [
                (rows.to(dtype) / temperature)
                .log_softmax(-1)
                .float()
                .gather(1, torch.tensor(ids)[:, None])[:, 0]
                .tolist()
                for rows, ids in zip(group, completions, strict=True)
            ]
            for group, completions in zip(logits or self.logits, self.completions, strict=True)
        ]

    def records(self, t: list[list[list[float]]], temperature: float, **more: Any) -> list[dict[str, Any]]:
        """more: prompts, other than those that were sampled from; step."""
        prompts = more.get("prompts", self.prompts)
        of_all = {"step": more.get("step", 0), "temperature": temperature}
        return [
            of_all | {"prompt_ids": p, "completion_ids": c, "policy_logprobs": row}
            for p, c, row in zip(prompts, self.completions, t, strict=True)
        ]


@pytest.fixture(scope="module")
def hot(oracle):
    return Sampled(oracle, 1.0)


@pytest.fixture(scope="module")
def cool(oracle):
    return Sampled(oracle, 0.7)


def asked(server: Any, records: list[dict[str, Any]]) -> dict[str, Finding]:
    """With everything that the server can be asked."""
    with ReferenceClient(server[0]) as client:
        return {f.name: f for f in check(samples_of(enumerate(records, start=1)), served=client)}


def fired(findings: dict[str, Finding]) -> set[str]:
    return {name for name, f in findings.items() if f.verdict is Verdict.CHECK}


def fired_alone(server: Any, records: list[dict[str, Any]]) -> set[str]:
    """By the file alone, scored once."""
    with ReferenceClient(server[0]) as client:
        samples, _ = filled(samples_of(enumerate(records, start=1)), client, lambda what: None)
    return fired({f.name: f for f in check_samples(samples)})


def test_healthy_rollouts_pass(server, hot, cool) -> None:
    for sampled, temperature in ((hot, 1.0), (cool, 0.7)):
        findings = asked(server, sampled.records(sampled.logprobs(temperature), temperature))
        assert fired(findings) == set()
        passed = {name for name, f in findings.items() if f.verdict is Verdict.PASSED}
        assert passed >= {"not_the_sampler", "template", "noise_floor", "sharpness", "shifted", "rounded", "explain"}


def test_a_missing_template_is_found_and_named(server, hot) -> None:
    bare = [hot.tokenizer(q, add_special_tokens=False)["input_ids"] for q in QUESTIONS]
    findings = asked(server, hot.records(hot.logprobs(1.0), 1.0, prompts=bare))
    assert fired(findings) >= {"template", "noise_floor", "explain"}
    assert findings["explain"].says.startswith("the policy's prompt has the chat template:")


def test_another_temperature_is_found_and_named(server, cool) -> None:
    findings = asked(server, cool.records(cool.logprobs(0.7), 1.0))
    assert fired(findings) >= {"sharpness", "noise_floor", "explain"}
    assert "not_the_sampler" not in fired(findings)
    assert findings["explain"].says.startswith("the policy's temperature is 0.7:")


def test_a_missing_generation_prompt_is_found(server, hot) -> None:
    generation = len(hot.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
    short = [prompt[:-generation] for prompt in hot.prompts]
    assert fired_alone(server, hot.records(hot.logprobs(1.0), 1.0, prompts=short)) >= {"template", "noise_floor"}


def test_raw_log_probs_of_sharper_samples_are_found(server, cool) -> None:
    assert fired_alone(server, cool.records(cool.logprobs(1.0), 0.7)) >= {"not_the_sampler", "noise_floor"}


def test_log_probs_that_were_divided_are_found(server, cool) -> None:
    t = [[[x / 0.7 for x in row] for row in group] for group in cool.logprobs(1.0)]
    assert fired_alone(server, cool.records(t, 1.0)) >= {"divided_by_temperature", "not_the_sampler"}


def test_a_shift_by_one_is_found(server, hot) -> None:
    t = [[np.roll(row, 1).tolist() for row in group] for group in hot.logprobs(1.0)]
    assert fired_alone(server, hot.records(t, 1.0)) >= {"shifted", "not_the_sampler"}


def test_log_probs_in_bfloat16_are_found(server, hot) -> None:
    found = fired_alone(server, hot.records(hot.logprobs(1.0, dtype=torch.bfloat16), 1.0))
    assert "rounded" in found
    assert found <= {"rounded", "noise_floor"}


def test_stale_weights_are_found(server, hot) -> None:
    """The policy's figures are of weights that have moved on from those that sampled."""
    moved = copy.deepcopy(hot.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(parameter.abs().mean() * 0.4 * torch.randn_like(parameter))
    assert "not_the_sampler" in fired_alone(server, hot.records(hot.logprobs(1.0, hot.forward(moved)), 1.0, step=9))
