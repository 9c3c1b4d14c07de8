"""Rotary frequencies around the length at which they change: every scheme, one token less to two tokens more, against a model
that has seen nothing before."""

import copy

import numpy as np
import pytest
import torch
from grpo_numerics.model_parts import rotary_edge
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SMALL = dict(
    vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
EDGE = 96


def longrope(edge):
    # far apart, so that a wrong choice is seen
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.5 + 3.0 * i for i in range(8)],
        "original_max_position_embeddings": edge,
    }


# scheme -> (model, what its config has, the edge or None)
SCHEMES = {
    "longrope": (
        "phi3",
        dict(max_position_embeddings=512, original_max_position_embeddings=EDGE, rope_parameters=longrope(EDGE)),
        EDGE,
    ),
    "longrope from 64 on": (
        "phi3",
        dict(max_position_embeddings=512, original_max_position_embeddings=64, rope_parameters=longrope(64)),
        64,
    ),
    "dynamic": (
        "llama",
        dict(max_position_embeddings=EDGE, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
        EDGE,
    ),
    "yarn": (
        "llama",
        dict(
            max_position_embeddings=4 * EDGE,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": EDGE,
            },
        ),
        None,
    ),
    "llama3": (
        "llama",
        dict(
            max_position_embeddings=4 * EDGE,
            rope_parameters={
                "rope_type": "llama3",
                "factor": 4.0,
                "rope_theta": 1e4,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": EDGE,
            },
        ),
        None,
    ),
    "linear": (
        "llama",
        dict(
            max_position_embeddings=4 * EDGE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
        ),
        None,
    ),
}


def tiny(scheme):
    torch.manual_seed(0)
    kind, own, _ = SCHEMES[scheme]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SMALL, **own))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0 if "embed" not in name else 2.0)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def alone(untouched, prompt, completion):
    """By a copy of the model that no sequence has gone through."""
    model = copy.deepcopy(untouched)
    ids = torch.from_numpy(np.concatenate([prompt, completion])).long()[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits, -1).gather(1, torch.from_numpy(completion).long()[:, None])[:, 0].numpy()


def pieces_around(edge):
    """Totals of edge - 2 to edge + 2 and far beyond, the longest first, short ones between."""
    rng = np.random.default_rng(1)

    def tokens(n):
        return rng.integers(3, 257, n, dtype=np.int32)

    prompt = tokens(edge - 10)
    lengths = (60, 8, 12, 9, 11, 10, 1)
    return [
        Piece(tokens(40), (tokens(3 * edge - 60), tokens(5)), 1.0),
        Piece(prompt, tuple(tokens(n) for n in lengths), 1.0),
        Piece(tokens(4), (tokens(6), tokens(edge - 4)), 1.0),
    ]


def assert_right(engine, untouched, pieces):
    for piece, scores in zip(pieces, engine.compute(engine.prepare(pieces)).pieces, strict=True):
        ends = np.cumsum([len(c) for c in piece.completions])
        for completion, end in zip(piece.completions, ends, strict=True):
            want = alone(untouched, piece.prompt, completion)
            total = len(piece.prompt) + len(completion)
            # two fp32 forwards that sum in different order; the logits of these models reach a few tens
            np.testing.assert_allclose(
                scores.logprobs[end - len(completion) : end], want, atol=2e-4, rtol=0, err_msg=str(total)
            )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_scores_around_the_edge_are_the_models_own(scheme, mode):
    model = tiny(scheme)
    untouched = copy.deepcopy(model)
    edge = SCHEMES[scheme][2]
    engine = TorchEngine(EngineConfig(model="tiny", mode=mode, dtype="float32"), Loaded(model, None, None))
    assert rotary_edge(model.config) == edge
    assert engine.info.tier == ("packed" if edge is None else "plain")
    assert engine.info.max_length == (512 if "longrope" in scheme else 4 * EDGE)
    for order in (1, -1):
        assert_right(engine, untouched, pieces_around(edge or EDGE)[::order])


@pytest.mark.parametrize("scheme", ["longrope", "dynamic"])
def test_below_the_edge_prompts_are_shared(scheme):
    model = tiny(scheme)
    untouched = copy.deepcopy(model)
    engine = TorchEngine(
        EngineConfig(model="tiny", mode="fast", dtype="float32", max_length=EDGE), Loaded(model, None, None)
    )
    assert (engine.info.tier, engine.info.max_length) == ("packed", EDGE)
    rng = np.random.default_rng(2)
    pieces = [
        Piece(
            rng.integers(3, 257, EDGE - 20, dtype=np.int32),
            tuple(rng.integers(3, 257, n, dtype=np.int32) for n in (18, 19, 20, 3)),
            1.0,
        )
    ]
    assert_right(engine, untouched, pieces)
