"""A tiny policy with a tokenizer, the run that trains it, and questions for its reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from grpo_client.protocol import Group, ScoreRequest

CHARACTERS = "\n !?.,:'+-*/=()0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def tiny_policy(path: Path, seed: int) -> Path:
    """A random Llama of two layers, a character a token; drawn wide enough that its distributions are far from uniform."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: i for i, c in enumerate(CHARACTERS, start=3)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run_values(model: Path, urls: list[str], steps: int, output: Path) -> dict[str, object]:
    """The configuration of `grpo-train`."""
    return {
        "model": {"name": str(model), "device": "cpu", "threads": 1},
        "reference": {"urls": urls, "max_wait": 300, "timeout": 10},
        "task": {
            "name": "basic_arithmetic",
            "kwargs": {"min_terms": 2, "max_terms": 2, "max_digits": 1, "seed": 1, "size": 200},
            "chat": False,
            "reward": "graded",
            "answer_pattern": r"\d",
        },
        "rollout": {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 12},
        "optimizer": {"lr": 1e-3},
        "loss": {"beta": 0.1},
        "trainer": {
            "steps": steps,
            "output": str(output),
            "checkpoint_every": 1,
            "tensorboard": False,
            "save_model": True,
        },
    }


def _question(seed: int) -> ScoreRequest:
    rng = np.random.default_rng(seed)

    def ids(n: int) -> np.ndarray:
        return rng.integers(3, 3 + len(CHARACTERS), n, dtype=np.int32)

    return ScoreRequest(tuple(Group(ids(24), tuple(ids(40) for _ in range(4))) for _ in range(4)))


# Each has some kilobytes both ways: there is something to break.
QUESTIONS = [_question(seed) for seed in range(4)]
