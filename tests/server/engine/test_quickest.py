"""What is measured at load: it decides in fast mode alone, and changes no score beyond what the mode promises."""

import numpy as np
import pytest
import torch
from grpo_server.engine import EngineConfig, Piece, quickest
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded, choose_dtype
from grpo_server.engine.quickest import is_quicker
from transformers import AutoModelForCausalLM, LlamaConfig

VOCAB = 151


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds):
        """A way whose calls take these seconds in turn, the last one ever after."""
        times = iter(seconds)
        last = seconds[-1]

        def way():
            self.now += next(times, last)

        return way


@pytest.mark.parametrize(
    ("other", "usual", "quicker", "share"),
    [
        ([0.01], [0.02], True, 0.5),
        ([0.02], [0.01], False, 2.0),
        ([0.0095], [0.01], False, 0.95),  # too near to tell
        ([0.5, 0.03, 0.03, 0.01], [0.5, 0.02, 0.02, 0.02], True, 0.5),  # disturbed at first
    ],
)
def test_the_best_times_are_compared(other, usual, quicker, share):
    clock = Clock()
    got = is_quicker(clock.takes(other), clock.takes(usual), clock)
    assert got == (quicker, pytest.approx(share))


def test_a_trial_ends_in_time():
    clock = Clock()
    is_quicker(clock.takes([30.0]), clock.takes([1.0]), clock)
    assert clock.now == 62.0  # the warm-up and one round


def engine(mode, dtype, monkeypatch, quicker):
    """quicker: what every trial answers; None: it must not be asked."""

    def answer(*_):
        assert quicker is not None, "nothing may be measured here"
        return quicker, 0.5

    monkeypatch.setattr(quickest, "is_quicker", answer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)
    return TorchEngine(EngineConfig(model="tiny", mode=mode), Loaded(model, None, None))


def scores(engine):
    rng = np.random.default_rng(2)
    pieces = [
        Piece(
            rng.integers(0, VOCAB, p, dtype=np.int32),
            tuple(rng.integers(0, VOCAB, n, dtype=np.int32) for n in (3, 40, 41, 150)),
            1.0,
        )
        for p in (5, 170)
    ]
    return np.concatenate([s.logprobs for s in engine.compute(engine.prepare(pieces)).pieces])


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
def test_either_way_gives_the_same_scores(dtype, within, monkeypatch):
    other, usual = (engine("fast", dtype, monkeypatch, quicker) for quicker in (True, False))
    assert not np.array_equal(scores(other), scores(usual))  # they did go different ways
    np.testing.assert_allclose(scores(other), scores(usual), rtol=0, atol=within)
    assert other.info == usual.info


def test_exact_mode_measures_nothing(monkeypatch):
    assert engine("exact", torch.float32, monkeypatch, None).info.mode == "exact"


@pytest.mark.parametrize(("quicker", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_fast_mode_takes_the_type_that_is_multiplied_faster(quicker, dtype, monkeypatch):
    monkeypatch.setattr(quickest, "is_quicker", lambda *_: (quicker, 0.5))
    assert choose_dtype(EngineConfig(model="tiny", mode="fast"), torch.device("cpu")) == dtype


def test_exact_mode_and_processes_that_share_a_model_do_not_ask(monkeypatch):
    monkeypatch.setattr(quickest, "is_quicker", None)
    assert choose_dtype(EngineConfig(model="tiny", mode="exact"), torch.device("cpu")) == torch.float32
    choose_dtype(EngineConfig(model="tiny", mode="fast"), torch.device("cpu"), ranks=2)
