"""Rollouts of several turns: the scores of each sequence alone, at the price of their tree, whatever way a model is served."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from grpo_numerics.packed import worth
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

VOCAB = 97
SIZES = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
)  # fmt: skip
# fp32 forwards that sum in different order, by models whose scores lie a few nats apart
NATS = 5e-5


def model(config):
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def served(request):
    """A model and the engines of each tier: soft-cap and a window of 24 with gemma2."""
    config = LlamaConfig(**SIZES) if request.param == "llama" else Gemma2Config(**SIZES, sliding_window=24)
    ways = {
        "fast": EngineConfig("tiny", mode="fast", dtype="float32"),
        "exact": EngineConfig("tiny"),
        "cache": EngineConfig("tiny", mode="fast", dtype="float32", tier="cache"),
        "plain": EngineConfig("tiny", mode="fast", dtype="float32", tier="plain"),
    }
    return model(config), {way: TorchEngine(c, Loaded(model(config), None, None)) for way, c in ways.items()}


def truth(model, piece):
    """(N,) by the model's own forward of each sequence alone, normalised in float64."""
    parts = [np.zeros(0)]
    for completion in piece.completions:
        if len(completion):
            ids = torch.from_numpy(np.concatenate([piece.prompt, completion])).long()[None]
            logits = model(input_ids=ids, use_cache=False).logits[0, len(piece.prompt) - 1 : -1].double()
            parts.append(torch.log_softmax(logits, -1)[range(len(completion)), ids[0, len(piece.prompt) :]].numpy())
    return np.concatenate(parts)


def turns(samples, turns, prompt, completion, tool):
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, VOCAB, n, dtype=np.int32)  # noqa: E731
    contexts = [draw(prompt)] * samples
    for _ in range(turns):
        answers = [draw(completion) for _ in contexts]
        yield from (Piece(c, (a,), 1.0) for c, a in zip(contexts, answers, strict=True))
        contexts = [np.concatenate([c, a, draw(tool)]) for c, a in zip(contexts, answers, strict=True)]


def tree_tokens(pieces):
    return len({(*p.prompt, *c)[:n] for p in pieces for c in p.completions for n in range(1, len(p.prompt) + len(c))})


@pytest.mark.parametrize("way", ["fast", "exact", "cache", "plain"])
def test_four_turns_of_eight_samples(served, way):
    own, engines = served
    pieces = list(turns(samples=8, turns=4, prompt=40, completion=12, tool=6))
    scores = engines[way].compute(engines[way].prepare(pieces))
    for piece, mine in zip(pieces, scores.pieces, strict=True):
        np.testing.assert_allclose(mine.logprobs, truth(own, piece), rtol=0, atol=NATS)
    if way == "fast":
        assert scores.computed_tokens <= 1.02 * tree_tokens(pieces)


trees = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20)), min_size=1, max_size=4),
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees, st.sampled_from([0.0, 32.0]))
def test_random_trees_score_as_each_sequence_alone(served, drawn, calls):
    """Sequences put together from few stretches of tokens, so that they begin alike in every way."""
    own, engines = served
    stretches = np.random.default_rng(1).integers(0, VOCAB, (4, 20), dtype=np.int32)
    pieces = [
        Piece(
            np.concatenate([stretches[s][:n] for s, n in prompt]), tuple(stretches[s][:n] for s, n in completions), 1.0
        )
        for prompt, completions in drawn
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worth, "CALLS", calls)  # at 0 every fork is cut
        patch.setattr(worth, "MERGE", calls and worth.MERGE)
        scores = engines["fast"].compute(engines["fast"].prepare(pieces))
    for piece, mine in zip(pieces, scores.pieces, strict=True):
        np.testing.assert_allclose(mine.logprobs, truth(own, piece), rtol=0, atol=NATS)


def test_a_tally_counts_what_an_engine_shares(served):
    _, engines = served
    pieces = list(turns(samples=3, turns=2, prompt=40, completion=12, tool=6))
    added = {way: [tally.add(p) for p in pieces] for way, e in engines.items() for tally in [e.tally()]}
    assert added["fast"] == [52, 12, 12, 18, 18, 18]
    assert added["exact"] == [52, 12, 12, 70, 70, 70]
    assert added["cache"] == added["plain"] == [52, 52, 52, 70, 70, 70]
