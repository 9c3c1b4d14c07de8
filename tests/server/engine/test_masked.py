"""What is not asked is context: the rest scores the same, the head has no row for it, nothing behind the last is computed."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from grpo_client.protocol import Status
from grpo_numerics import score_rows
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from grpo_server.engine.memory import halve
from grpo_server.engine.tensor_parallel import decode, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

VOCAB = 101
CONFIG = LlamaConfig(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128,
)  # fmt: skip
WAYS = {
    "fast": EngineConfig("tiny", mode="fast", dtype="float32"),
    "exact": EngineConfig("tiny"),
    "cache": EngineConfig("tiny", mode="fast", dtype="float32", tier="cache"),
    "plain": EngineConfig("tiny", mode="fast", dtype="float32", tier="plain"),
}


class Served:
    def __init__(self):
        self.head_rows = []
        self.engines = {
            way: TorchEngine(config, Loaded(self.model(), None, None), self.head) for way, config in WAYS.items()
        }

    @staticmethod
    def model():
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG)).eval().requires_grad_(False)

    def head(self, rows, *args, **kwargs):
        self.head_rows.append(len(rows))
        return score_rows(rows, *args, **kwargs)

    def score(self, way, pieces):
        self.head_rows.clear()
        engine = self.engines[way]
        return engine.compute(engine.prepare(pieces))


@pytest.fixture(scope="module")
def served():
    return Served()


def piece(lengths, seed=0, **asked):
    rng = np.random.default_rng(seed)
    draw = lambda *n: rng.integers(0, VOCAB, n, dtype=np.int32)  # noqa: E731
    completions = tuple(draw(n) for n in lengths)
    ids = tuple(draw(n, 3) for n in lengths)
    return Piece(draw(7), completions, 0.8, extras=frozenset({"entropy", "rank"}), top_k=2, token_ids=ids, **asked)


def masked(of, masks):
    return replace(of, completion_mask=tuple(np.array(m, dtype=np.bool_) for m in masks))


drawn = st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(drawn, min_size=1, max_size=3), st.sampled_from(list(WAYS)))
def test_scores_are_those_of_the_whole_where_they_are_asked(served, masks, way):
    whole = [piece([len(m) for m in group], seed) for seed, group in enumerate(masks)]
    some = [masked(p, group) for p, group in zip(whole, masks, strict=True)]
    expected = served.score(way, whole).pieces
    got = served.score(way, some).pieces
    assert sum(served.head_rows) == sum(p.asked_tokens for p in some)
    for p, mine, full in zip(some, got, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(mine.logprobs), ~p.asked)
        np.testing.assert_allclose(mine.logprobs[p.asked], full.logprobs[p.asked], rtol=0, atol=2e-5)
        assert mine.status.tolist() == [Status.OK] * len(p.completions)
        assert mine.extras.keys() == full.extras.keys()
        for name, values in mine.extras.items():
            assert values.shape == full.extras[name].shape or not p.asked.any()
            np.testing.assert_allclose(values[p.asked], full.extras[name][p.asked], rtol=0, atol=2e-5)
            assert (np.isnan(values) if values.dtype == np.float32 else values == -1)[~p.asked].all()


def test_in_exact_mode_a_mask_changes_no_bit(served):
    whole = piece([9, 40, 33])
    some = masked(whole, [[1] * 4 + [0] * 5, [0] * 20 + [1] * 20, [0, 1, 0] * 11])
    [full], [mine] = (served.score("exact", [p]).pieces for p in (whole, some))
    np.testing.assert_array_equal(mine.logprobs[some.asked], full.logprobs[some.asked])


def test_nothing_behind_the_last_asked_token_is_computed(served):
    whole = piece([10, 20])
    some = masked(whole, [[0, 1, 1] + [0] * 7, [0] * 20])
    assert served.score("fast", [whole]).computed_tokens == 7 + 9 + 19
    assert served.score("fast", [some]).computed_tokens == 7 + 2
    assert served.score("fast", [masked(whole, [[0] * 10, [0] * 20])]).computed_tokens == 0
    assert served.head_rows in ([], [0])


def test_a_score_that_is_not_finite_is_no_ones_business_where_nothing_is_asked(served):
    model = served.model()
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.clone()
    engine = TorchEngine(WAYS["fast"], Loaded(model, None, None))
    whole = replace(piece([6]), extras=frozenset(), top_k=0, token_ids=None)
    cursed = int(whole.completions[0][2])
    model.model.embed_tokens.weight.data[cursed] = torch.nan
    statuses = []
    for mask in ([1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]):
        [scores] = engine.compute(engine.prepare([masked(whole, [mask])])).pieces
        statuses.append(scores.status.tolist())
    assert statuses == [[Status.OK], [Status.NONFINITE]]


def test_masks_stay_with_their_completions_when_a_batch_is_halved_or_sent_to_other_ranks():
    asked = masked(piece([2, 3, 1, 4]), [[1, 0], [0, 0, 1], [0], [1, 1, 0, 1]])
    halves = halve([asked])
    assert [m.tolist() for m in halves.second[0].completion_mask] == [[False], [True, True, False, True]]
    [again, plain] = decode(encode([asked, piece([2, 2])]))
    assert [m.tolist() for m in again.completion_mask] == [m.tolist() for m in asked.completion_mask]
    assert plain.completion_mask is None
