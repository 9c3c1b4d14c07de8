"""Turns of rollouts in exact mode with the tree kernels: computed once, and each score with the bits it has alone.

Run by `test_turns_interpreted` in a process of its own, with TRITON_INTERPRET=1.
"""

import copy

import numpy as np
import pytest
import torch
from grpo_server.engine import EngineConfig, Piece, bits, environment
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from transformers import AutoModelForCausalLM, LlamaConfig

VOCAB = 97
CONFIG = LlamaConfig(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=128,
)  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return host()


def host() -> TorchEngine:
    environment.set_environment("exact", threads=1)
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG)).eval().requires_grad_(False)
    return TorchEngine(EngineConfig("tiny", mode="exact", max_batch_tokens=1024), Loaded(model, None, None))


def turns() -> list[Piece]:
    """Three samples of three turns, each after a tool's answer; and one that parts within a completion."""
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, VOCAB, n, dtype=np.int32)  # noqa: E731
    contexts, pieces = [draw(23)] * 3, []
    for _ in range(3):
        answers = [draw(9) for _ in contexts]
        pieces += [Piece(c, (a,), 1.0) for c, a in zip(contexts, answers, strict=True)]
        contexts = [np.concatenate([c, a, draw(4)]) for c, a in zip(contexts, answers, strict=True)]
    branched = np.concatenate([pieces[-1].completions[0][:5], draw(6)])
    return [*pieces, Piece(pieces[-1].prompt, (branched, pieces[-1].completions[0]), 1.0)]


def test_turns_cost_their_tree_and_keep_their_bits(engine: TorchEngine) -> None:
    assert engine.info.bitwise
    pieces = turns()
    together = engine.compute(engine.prepare(pieces))
    tree = {(*p.prompt, *c)[:n] for p in pieces for c in p.completions for n in range(1, len(p.prompt) + len(c))}
    assert together.computed_tokens <= 1.02 * len(tree)
    for piece, scores in zip(pieces, together.pieces, strict=True):
        at = 0
        for completion in piece.completions:
            [alone] = engine.compute(engine.prepare([Piece(piece.prompt, (completion,), 1.0)])).pieces
            assert np.array_equal(scores.logprobs[at : at + len(completion)], alone.logprobs)
            at += len(completion)


def test_where_turns_change_bits_equal_prompts_alone_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = bits.same_bits

    def same_bits(score: object, pieces: object, together: object, crowd: list[Piece], **asked: bool) -> bool:
        turns = any(len(p.completions) == 2 and len(p.completions[0]) == 2 for p in crowd)
        return not turns and seen(score, pieces, together, crowd, **asked)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(bits, "same_bits", same_bits)
    engine = host()
    assert engine.info.bitwise
    pieces = turns()
    assert engine.compute(engine.prepare(pieces)).computed_tokens > 300
