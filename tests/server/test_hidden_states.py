"""Hidden states: what the model's own head makes the whole distribution of; given out only where the server allows it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from grpo_client import Group, InvalidResponse, ReferenceClient, RequestRefused, ScoreRequest, Usage, wire_tensors
from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS
from grpo_client.validation.answers import check_answer
from grpo_server.engine import EngineConfig, Piece
from grpo_server.engine.anatomy import anatomy
from grpo_server.engine.engine import TorchEngine
from grpo_server.engine.loading import Loaded
from grpo_server.engine.pricing import head_bytes
from grpo_server.scheduler.assembly import Assembly, host_bytes
from safetensors.torch import load
from server_fakes import real_server
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

VOCAB, H = 151, 32
PROMPTS = [[1, 2, 3, 4], [7, 8]]
COMPLETIONS = [[[5, 6, 7], [8]], [[9, 10], []]]
MASK = [[[1, 0, 1], [1]], [[0, 1], []]]
TEMPERATURE = [0.5, 1.0]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=H,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engine(model: PreTrainedModel) -> TorchEngine:
    return TorchEngine(
        EngineConfig(model="tiny", mode="exact", allow_hidden=True), Loaded(copy.deepcopy(model), None, None)
    )


@pytest.fixture(scope="module")
def url(engine: TorchEngine) -> Iterator[str]:
    with real_server(engine) as address:
        yield address


def truth(model: PreTrainedModel, head: bool) -> np.ndarray:
    """(N, V) log-probs of every token, or (N, H) hidden states, by the model itself."""
    rows = []
    for prompt, group, temperature in zip(PROMPTS, COMPLETIONS, TEMPERATURE, strict=True):
        for completion in group:
            out = model(torch.tensor([prompt + completion]), output_hidden_states=True)
            picked = out.logits if head else out.hidden_states[-1]
            picked = picked[0, len(prompt) - 1 : -1] if completion else picked[0, :0]
            rows.append(torch.log_softmax(picked.double() / temperature, -1) if head else picked.double())
    return torch.cat(rows).numpy()


def test_the_models_own_head_makes_the_whole_distribution_of_them(url: str, model: PreTrainedModel) -> None:
    with ReferenceClient(url) as client:
        assert client.info().hidden_size == H
        result = client.score(PROMPTS, COMPLETIONS, temperature=TEMPERATURE, extras=["hidden", "entropy"])
        plain = client.score(PROMPTS, COMPLETIONS, temperature=TEMPERATURE, extras=["entropy"])
    hidden = result.hidden_states()
    assert (hidden.shape, hidden.dtype, result.extras["hidden"].dtype) == ((6, H), np.float32, np.uint16)
    own = truth(model, head=False)
    np.testing.assert_array_equal(hidden, torch.from_numpy(hidden).bfloat16().float().numpy())
    np.testing.assert_allclose(hidden, own, rtol=2**-8, atol=1e-6)  # rounded once, by half a unit of 8 bits
    weight = model.get_output_embeddings().weight.double().numpy()
    temperature = np.repeat(TEMPERATURE, [4, 2])[:, None]
    logits = hidden.astype(np.float64) @ weight.T / temperature
    found = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    # a logit is off by at most the sum of what each term is off by; a log-prob by twice that
    bound = 2 * (2**-8 * np.abs(own) @ np.abs(weight).T / temperature).max(axis=1, keepdims=True)
    assert (np.abs(found - truth(model, head=True)) <= bound).all()
    assert bound.max() < 1
    assert result.logprobs.tobytes() == plain.logprobs.tobytes()
    assert result.extras["entropy"].tobytes() == plain.extras["entropy"].tobytes()


def test_under_a_mask_they_are_those_of_the_positions_that_were_asked(url: str) -> None:
    with ReferenceClient(url) as client:
        full = client.score(PROMPTS, COMPLETIONS, temperature=TEMPERATURE, extras=["hidden"])
        masked = client.score(
            PROMPTS, COMPLETIONS, temperature=TEMPERATURE, extras=["hidden"], completion_mask=MASK, top_k=2
        )
    asked = masked.completion_mask
    assert asked is not None
    np.testing.assert_array_equal(masked.extras["hidden"][asked], full.extras["hidden"][asked])
    assert np.isnan(masked.hidden_states()[~asked]).all()


def test_they_are_bfloat16_to_any_reader_and_leave_out_what_was_not_asked(url: str, model: PreTrainedModel) -> None:
    request = ScoreRequest.of(PROMPTS, COMPLETIONS, extras=["hidden"], completion_mask=MASK)
    headers = {"Content-Type": MEDIA_TENSORS}
    body = httpx.post(url + ROUTE_LOGPROBS, content=wire_tensors.encode_request(request), headers=headers).content
    hidden = load(body)["hidden"]
    assert (hidden.dtype, tuple(hidden.shape)) == (torch.bfloat16, (4, H))
    own = truth(model, head=False)[np.array([1, 0, 1, 1, 0, 1], bool)]
    np.testing.assert_allclose(hidden.double().numpy(), own, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("path", [ROUTE_LOGPROBS, "/v2/models/tiny/infer"])
def test_what_has_no_bfloat16_does_not_carry_them(url: str, path: str) -> None:
    native = {"groups": [{"prompt": [1], "completions": [[2]]}], "return": ["hidden"]}
    tensors = {"prompt_ids": [1], "prompt_lengths": [1], "completion_ids": [2], "completion_lengths": [1]}
    inputs = [
        {"name": name, "datatype": "INT32", "shape": [1], "data": data}
        for name, data in (tensors | {"group_sizes": [1]}).items()
    ]
    body = native if path == ROUTE_LOGPROBS else {"inputs": inputs, "parameters": {"return": "hidden"}}
    answer = httpx.post(url + path, content=json.dumps(body), headers={"Content-Type": MEDIA_JSON})
    assert answer.status_code == 422
    assert MEDIA_TENSORS in answer.text


def test_a_server_that_was_not_told_to_gives_none(model: PreTrainedModel) -> None:
    engine = TorchEngine(EngineConfig(model="tiny", mode="exact"), Loaded(copy.deepcopy(model), None, None))
    with real_server(engine) as address, ReferenceClient(address) as client:
        assert client.info().hidden_size is None
        with pytest.raises(RequestRefused, match="--allow-hidden"):
            client.score([[1]], [[2]], extras=["hidden"])


def test_they_are_priced(model: PreTrainedModel) -> None:
    n = 512
    plain = ScoreRequest.of([[1]], [[[2] * n]])
    hidden = replace(plain, extras=frozenset({"hidden"}))
    assert host_bytes(hidden, H) - host_bytes(plain, H) == n * 2 * H
    piece = Piece(np.ones(1, np.int32), (np.ones(n, np.int32),), 1.0)
    parts = anatomy(model)
    more = head_bytes(replace(piece, extras=frozenset({"hidden"})), n, parts) - head_bytes(piece, n, parts)
    assert more == n * 2 * H


def test_an_answer_that_holds_something_else_is_none(engine: TorchEngine) -> None:
    ids = np.array([1, 2], np.int32)
    asked = ScoreRequest((Group(ids, (ids,)),), extras=frozenset({"hidden"}))
    batch = engine.compute(engine.prepare([Piece(ids, (ids,), 1.0, extras=frozenset({"hidden"}))]))

    assembly = Assembly(asked, H)
    assembly.place((0,), batch.pieces[0])
    result = assembly.finish(engine.info, Usage())
    check_answer(result, asked)
    broken = result.extras["hidden"].copy()
    broken[1, 3] = 0x7F80  # infinity
    for wrong in (broken, broken[:, :-1], broken.astype(np.float32)):
        with pytest.raises(InvalidResponse, match="hidden"):
            check_answer(replace(result, extras={"hidden": wrong}), asked)
