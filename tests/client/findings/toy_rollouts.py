"""A language model of NumPy, with a tokenizer and a template: what samples, and the reference that scores.

Each next token depends on the last ones strongly and on all before a little, so that a prompt that differs shows in first
tokens most, and in the others too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

V = 400
BOS, USER, END, ASSISTANT, SYSTEM = 0, 1, 2, 3, 7
PIECES = ["<s>", "<user>", "</s>", "<assistant>", "a", "b", "ab", "<system>"] + [f"w{i} " for i in range(8, V)]
SYSTEM_TURN = [BOS, SYSTEM, 20, 21, 22, END]


def prompt_of(content: list[int], *, system: bool = True) -> list[int]:
    return [*(SYSTEM_TURN if system else []), BOS, USER, *content, END, ASSISTANT]


@dataclass
class Toy:
    """sharp: how far its logits spread. seed: whose weights."""

    seed: int = 0
    sharp: float = 2.0
    noise: float = 0.0
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self._near = rng.normal(size=(V, 48))
        self._far = rng.normal(size=(V, 48))
        self._out = rng.normal(size=(48, V)) / 48**0.5 * self.sharp
        self._near[[END, ASSISTANT]] *= 2.5  # what stands last before an answer says most about its first token
        self._banned = np.zeros(V)
        self._banned[[BOS, USER, ASSISTANT, SYSTEM, 4, 5, 6]] = -30.0

    def logits(self, context: np.ndarray) -> np.ndarray:
        """(n, V): after each of the n tokens."""
        near = np.zeros((len(context), 48))
        state = np.zeros(48)
        for i, token in enumerate(context):
            state = 0.6 * state + self._near[token]
            near[i] = state
        far = np.cumsum(self._far[context], axis=0) / np.sqrt(np.arange(1, len(context) + 1))[:, None]
        # Where a token stands matters as well, as it does under rotary embeddings.
        place = np.sin(np.arange(len(context))[:, None] * np.linspace(0.05, 1.0, 48))
        return (near + 0.5 * far + 0.4 * place) @ self._out / 1.4 + self._banned

    def logprobs(
        self, prompt: Any, completion: Any, temperature: float = 1.0, normalizer: str = "softmax"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C,) log-probs and entropies."""
        context = np.concatenate([np.asarray(prompt), np.asarray(completion)]).astype(int)
        rows = self.logits(context)[len(prompt) - 1 : -1] / temperature
        if normalizer == "stablemax":
            scores = np.where(rows >= 0, rows + 1, 1 / (1 - np.minimum(rows, 0)))
            table = np.log(scores / scores.sum(-1, keepdims=True))
        else:
            table = (
                rows
                - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True))
                - rows.max(-1, keepdims=True)
            )
        chosen = table[np.arange(len(rows)), np.asarray(completion, dtype=int)]
        return chosen, -(np.exp(table) * table).sum(-1)

    def sample(
        self, prompt: list[int], rng: np.random.Generator, temperature: float = 1.0, most: int = 24
    ) -> list[int]:
        ids: list[int] = []
        while len(ids) < most and (not ids or ids[-1] != END):
            row = self.logits(np.array(prompt + ids))[-1] / temperature
            p = np.exp(row - row.max())
            ids.append(int(rng.choice(V, p=p / p.sum())))
        return ids

    # What a server does.

    def score(
        self,
        prompts: Any,
        completions: Any,
        *,
        temperature: Any = 1.0,
        normalizer: str = "softmax",
        extras: tuple[str, ...] = (),
    ) -> Any:
        temperatures = temperature if isinstance(temperature, list) else [temperature] * len(prompts)
        pairs = [
            self.logprobs(prompt, completion, at, normalizer)
            for prompt, of, at in zip(prompts, completions, temperatures, strict=True)
            for completion in of
        ]
        return _Result(np.concatenate([p[0] for p in pairs]), {"entropy": np.concatenate([p[1] for p in pairs])})

    def tokenize(self, text: Any, *, add_special_tokens: bool = True, add_generation_prompt: bool = True) -> np.ndarray:
        if not isinstance(text, str):
            content = self.tokenize(text[0]["content"], add_special_tokens=False).tolist()
            return np.array(prompt_of(content)[: None if add_generation_prompt else -1], dtype=np.int32)
        ids: list[int] = [BOS] if add_special_tokens else []
        longest = sorted(range(V), key=lambda i: -len(PIECES[i]))
        text = {"0": PIECES[30], "abc": PIECES[31] + PIECES[32]}.get(text, text)
        while text:
            ids.append(next(i for i in longest if text.startswith(PIECES[i])))
            text = text[len(PIECES[ids[-1]]) :]
        return np.array(ids, dtype=np.int32)

    def detokenize(self, ids: Any) -> str:
        return "".join(PIECES[int(i)] for i in ids)


@dataclass
class _Result:
    logprobs: np.ndarray
    extras: dict[str, np.ndarray]


def rollouts(
    *,
    temperature: float = 1.0,
    groups: int = 12,
    of: int = 4,
    seed: int = 1,
    step: int | None = 0,
    sampler: Toy | None = None,
    **how: Any,
) -> list[dict[str, Any]]:
    """Records as a healthy run writes them. how: what `record` takes."""
    reference, rng = Toy(), np.random.default_rng(seed)
    records = []
    for _ in range(groups):
        prompt = prompt_of(rng.integers(40, V, size=6).tolist())
        completions = [(sampler or reference).sample(prompt, rng, temperature) for _ in range(of)]
        records.append(record(reference, prompt, completions, temperature, step=step, rng=rng, **how))
    return records


def record(
    reference: Toy,
    prompt: list[int],
    completions: list[list[int]],
    temperature: float,
    *,
    step: int | None,
    rng: np.random.Generator,
    policy: Toy | None = None,
    policy_temperature: float | None = None,
    policy_prompt: Any = None,
    policy_normalizer: str = "softmax",
    ref_prompt: Any = None,
    ref_temperature: float | None = None,
    noise: float = 1e-6,
) -> dict[str, Any]:
    t = [  # the policy first: what the reference is sent may be another prompt
        (policy or reference).logprobs(
            policy_prompt(prompt) if policy_prompt else prompt,
            ids,
            policy_temperature or temperature,
            policy_normalizer,
        )[0]
        for ids in completions
    ]
    prompt = ref_prompt(prompt) if ref_prompt else prompt
    scored = [reference.logprobs(prompt, ids, ref_temperature or temperature) for ids in completions]
    made = {
        "step": step,
        "temperature": ref_temperature or temperature,
        "prompt_ids": prompt,
        "completion_ids": completions,
        "policy_logprobs": [[float(np.float32(x + noise * rng.normal())) for x in row] for row in t],
        "ref_logprobs": [[float(np.float32(x)) for x in row[0]] for row in scored],
        "ref_entropy": [row[1].tolist() for row in scored],
        "ended": [ids[-1] == END for ids in completions],
        "end_ids": [END],
        "rewards": rng.random(len(completions)).round(3).tolist(),
    }
    return {name: value for name, value in made.items() if value is not None}
