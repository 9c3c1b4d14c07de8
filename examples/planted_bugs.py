"""Five bugs of RL training, planted in real rollouts, and `grpo-client check` finding each: the story of docs/debugging.md.

    grpo-server --model demo --runs runs/bugs         in one terminal
    python examples/planted_bugs.py                   in another: a run for each bug below runs/bugs, and what check says
    python examples/planted_bugs.py --shots pictures  also each as the inspector shows it (needs playwright and a Chromium)

The demo model is the policy and, on the server, the reference. Before the first update both are one model, and every
difference between their log-probs is a bug. The runs can be opened at http://localhost:8000/ui.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from grpo_client import ReferenceClient
from grpo_numerics import token_logprobs
from grpo_training.config import ModelConfig
from grpo_training.models.loading import LoadedModel, load_model

TOPICS = (
    "a lighthouse",
    "bread",
    "the moon",
    "a bicycle",
    "winter",
    "an old clock",
    "the sea",
    "coffee",
    "a garden",
    "rain",
)
QUESTIONS = ("Write two sentences about {}.", "What is {} good for?", "Tell a child what {} is.")
OF = 2  # completions a prompt
LENGTH = 16  # tokens of a completion
HOT, COLD = 1.0, 0.7

Ids = list[int]
Floats = list[float]


@dataclass(frozen=True)
class Group:
    """One prompt, with the template and without, its completions, and what was recorded of their tokens."""

    prompt: Ids
    bare: Ids
    completions: list[Ids]


class Policy:
    """A model that samples, and scores one sequence at a time: slow, and plain."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.model, self.tokenizer, self.end_ids = loaded.model, loaded.tokenizer, sorted(loaded.eos_ids)

    def groups(self, prompts: Sequence[str], temperature: float) -> list[Group]:
        """All prompts in one batch, padded on the left."""
        chats = [[{"role": "user", "content": text}] for text in prompts]
        templated = [
            list(self.tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False)) for c in chats
        ]
        width = max(map(len, templated))
        rows = [ids for ids in templated for _ in range(OF)]
        ids = torch.tensor([[self.end_ids[0]] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = self.model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=LENGTH,
            pad_token_id=self.end_ids[0],
            eos_token_id=self.end_ids,
        )
        completions = [self._until_end(row) for row in out[:, width:].tolist()]
        bare = [list(self.tokenizer(text)["input_ids"]) for text in prompts]
        return [
            Group(p, b, completions[k * OF : (k + 1) * OF])
            for k, (p, b) in enumerate(zip(templated, bare, strict=True))
        ]

    def _until_end(self, ids: Ids) -> Ids:
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        return ids[: ends[0] + 1] if ends else ids

    def logprobs(self, group: Group, temperature: float = 1.0) -> list[torch.Tensor]:
        return [self._scored(group.prompt, ids, temperature) for ids in group.completions]

    def _scored(self, prompt: Ids, ids: Ids, temperature: float) -> torch.Tensor:
        logits = self.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return token_logprobs(logits, torch.tensor(ids), temperature=temperature)

    def learn(self, groups: Sequence[Group], steps: int, rate: float) -> None:
        """Towards what it sampled itself, as an update by rewards of 1 would."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        for step in range(steps):
            loss = -torch.cat(self.logprobs(groups[step % len(groups)])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


# A bug: what happens to the log-probs that the policy recorded, and to the prompts that the reference is asked with.
Recorded = list[list[torch.Tensor]]


def unchanged(logprobs: Recorded) -> Recorded:
    return logprobs


def shifted(logprobs: Recorded) -> Recorded:
    """Each token has the log-prob of the one before it."""
    return [[row.roll(1) for row in rows] for rows in logprobs]


def in_bfloat16(logprobs: Recorded) -> Recorded:
    """The log-softmax was taken in bfloat16."""
    return [[row.bfloat16() for row in rows] for rows in logprobs]


@dataclass(frozen=True)
class Bug:
    """finds: the rule that must fire. step: of the record."""

    title: str
    finds: str
    sampled_at: float = HOT
    templated: bool = True
    stale: bool = False
    change: Callable[[Recorded], Recorded] = unchanged


BUGS = {
    "healthy": Bug("the same rollouts without a bug", ""),
    "no-template": Bug("the reference is asked without the chat template", "template", templated=False),
    "temperature": Bug("sampled at T = 0.7, scored at T = 1", "sharpness", sampled_at=COLD),
    "shifted": Bug("log-probs shifted by one token", "shifted", change=shifted),
    "bfloat16": Bug("log-probs rounded to bfloat16", "rounded", change=in_bfloat16),
    "stale-weights": Bug("sampled by old weights, recorded as the new ones'", "not_the_sampler", stale=True),
}


def plant(policy: Policy, reference: ReferenceClient, out: Path, prompts: Sequence[str]) -> None:
    """Writes a run for each bug. The policy is another one afterwards."""
    sampled = {t: policy.groups(prompts, t) for t in (HOT, COLD)}
    with torch.no_grad():
        recorded = {t: [policy.logprobs(group, t) for group in groups] for t, groups in sampled.items()}
    policy.learn(sampled[HOT], steps=6, rate=0.05)
    with torch.no_grad():
        of_new = [policy.logprobs(group) for group in sampled[HOT]]
    for name, bug in BUGS.items():
        groups = sampled[bug.sampled_at]
        own = bug.change(of_new if bug.stale else recorded[bug.sampled_at])
        asked = [group.prompt if bug.templated else group.bare for group in groups]
        scores = reference.score(asked, [group.completions for group in groups], extras=["entropy"])
        about = {"step": int(bug.stale), "temperature": 1.0, "precision": "float32", "end_ids": policy.end_ids}
        about["fingerprint"] = scores.reference.fingerprint
        records = [
            {**about, "prompt_ids": group.prompt, "completion_ids": group.completions}
            | {"policy_logprobs": [short(row) for row in rows]}
            | {"ref_logprobs": [short(s.logprobs) for s in of], "ref_entropy": [short(s.extras["entropy"]) for s in of]}
            for group, rows, of in zip(groups, own, scores.groups(), strict=True)
        ]
        write(out / name, records)


def short(row: Any) -> Floats:
    """Each as the shortest decimal that is the same float32."""
    return [float(str(x)) for x in torch.as_tensor(row).float().numpy()]


def write(run: Path, records: Sequence[dict[str, Any]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def checked(run: Path) -> str:
    """What `grpo-client check` prints of a run."""
    command = [shutil.which("grpo-client", path=str(Path(sys.executable).parent)) or "grpo-client", "check"]
    command += [str(run / "samples.jsonl")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def photograph(url: str, pictures: Path) -> None:
    """Each run as /ui shows it, its findings on top."""
    from playwright.sync_api import sync_playwright

    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        path = next((p for name in ("chromium", "google-chrome") if (p := shutil.which(name))), None)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name in BUGS:
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto(f"{url}/ui#run={name}")
            page.get_by_text("passed,").first.wait_for(timeout=120_000)
            page.wait_for_timeout(1000)  # for the tokens' texts
            page.screenshot(path=pictures / f"bug-{name}.png")
        browser.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000", help="a grpo-server with the same model")
    parser.add_argument("--model", default="demo", help="the policy: what the server hosts as well")
    parser.add_argument("--out", type=Path, default=Path("runs/bugs"), help="where the runs go: the server's --runs")
    parser.add_argument("--prompts", type=int, default=12, help="so many, up to 30; each has two completions")
    parser.add_argument("--shots", type=Path, help="where pictures of the inspector go")
    told = parser.parse_args(argv)
    torch.manual_seed(0)
    prompts = [question.format(topic) for topic in TOPICS for question in QUESTIONS][: told.prompts]
    print(f"sampling {2 * OF * len(prompts)} completions; a minute or two on a CPU", flush=True)
    with ReferenceClient(told.url) as reference:
        plant(Policy(load_model(ModelConfig(name=told.model, dtype="float32"))), reference, told.out, prompts)
    for name, bug in BUGS.items():
        print(f"\n{name}: {bug.title}\n{checked(told.out / name)}", flush=True)
    if told.shots:
        photograph(told.url, told.shots)


if __name__ == "__main__":
    main()
