"""lm-evaluation-harness: `local-completions` and `sglang-generate` against its own `hf` model on the same tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from conftest import MODEL, TOLERANCE
from lm_eval.tasks import TaskManager

CHOICE_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
PERPLEXITY_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
QUESTIONS: list[dict[str, Any]] = [
    {"question": "What is the capital of France?", "choices": ["Berlin", "Paris", "Madrid"], "answer": 1},
    {"question": "How many legs does a spider have?", "choices": ["six", "eight", "ten"], "answer": 1},
    {"question": "What is 7 + 5?", "choices": ["11", "12", "13"], "answer": 1},
    {"question": "Which is a fruit?", "choices": ["apple", "hammer", "river"], "answer": 0},
    {"question": "What is water made of?", "choices": ["iron and carbon", "hydrogen and oxygen"], "answer": 1},
    {"question": "Which animal barks?", "choices": ["a cat", "a fish", "a dog"], "answer": 2},
]
TEXTS = [
    "The sun rose over the hills, and the village woke slowly. A baker opened his shop; the smell of bread filled the air.",
    "To add two numbers, write them one below the other and add the digits from right to left, carrying where needed.",
    "Water boils at one hundred degrees Celsius at sea level, and at a lower temperature on a high mountain.",
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tasks")
    for name, template, rows in (
        ("grpo_choice", CHOICE_TASK, QUESTIONS),
        ("grpo_perplexity", PERPLEXITY_TASK, [{"text": text} for text in TEXTS]),
    ):
        data = home / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (home / f"{name}.yaml").write_text(template.format(name=name, data=data))
    return home


def evaluate(tasks: Path, names: list[str], **model: Any) -> dict[str, Any]:
    return lm_eval.simple_evaluate(
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        **model,
    )


def responses(outcome: dict[str, Any], task: str) -> list[tuple[float, bool]]:
    """(log-likelihood, is_greedy) of every request of the task, or (log-likelihood, False) for rolling ones."""
    flat = [r for sample in outcome["samples"][task] for r in sample["filtered_resps"]]
    return [(r[0], r[1]) if isinstance(r, list | tuple) else (r, False) for r in flat]


@pytest.fixture(scope="module")
def by_transformers(tasks: Path, model_dir: str) -> dict[str, Any]:
    """What lm-eval's own model finds: transformers in fp32, in this process."""
    args = {"pretrained": model_dir, "dtype": "float32"}
    return evaluate(tasks, ["grpo_choice", "grpo_perplexity"], model="hf", model_args=args, batch_size=1, device="cpu")


def compare(
    ours: dict[str, Any], theirs: dict[str, Any], names: list[str], report: Callable[[str, float], None], label: str
) -> None:
    worst = 0.0
    for name in names:
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                # Relative: a word perplexity is the exponential of a sum of errors over the words of a text.
                assert ours["results"][name][metric] == pytest.approx(value, rel=TOLERANCE), metric
        for (mine, _), (reference, _) in zip(responses(ours, name), responses(theirs, name), strict=True):
            worst = max(worst, abs(mine - reference))
    report(f"{label}: largest difference of a log-likelihood", worst)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("tokenized", [True, False])
def test_local_completions(
    url: str,
    tasks: Path,
    by_transformers: dict[str, Any],
    batch_size: int,
    tokenized: bool,
    report: Callable[[str, float], None],
) -> None:
    """The server's tokenizer is found by itself (tokenizer_backend=auto)."""
    names = ["grpo_choice", "grpo_perplexity"]
    args = {"model": MODEL, "base_url": f"{url}/v1/completions", "tokenized_requests": tokenized}
    outcome = evaluate(tasks, names, model="local-completions", model_args=args, batch_size=batch_size)
    compare(outcome, by_transformers, names, report, f"local-completions, batch {batch_size}, tokenized {tokenized}")
    greedy = [[g for _, g in responses(o, "grpo_choice")] for o in (outcome, by_transformers)]
    assert greedy[0] == greedy[1]


def test_sglang_generate(
    url: str, tasks: Path, model_dir: str, by_transformers: dict[str, Any], report: Callable[[str, float], None]
) -> None:
    args = {"model": model_dir, "base_url": f"{url}/generate", "tokenizer_backend": "huggingface"}
    outcome = evaluate(tasks, ["grpo_choice"], model="sglang-generate", model_args=args, batch_size=2)
    compare(outcome, by_transformers, ["grpo_choice"], report, "sglang-generate")
