"""Ten real references of three sizes in one process: each answers, bit for bit, as it does alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from grpo_client import wire_json
from grpo_client.protocol import Group, ReferenceInfo, ScoreRequest
from grpo_server.app import create_app
from grpo_server.engine import EngineConfig, Piece, load_engine
from server_fakes import make_config, running
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.anyio

SIZES = ((16, 1, 64), (24, 2, 48), (32, 2, 96))  # hidden, layers, vocabulary
COUNT = 10


def saved(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    hidden, layers, vocab = SIZES[seed % len(SIZES)]
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def requests(name: str, seed: int) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, 48, n, np.int32)

    def group() -> Group:
        return Group(ids(int(rng.integers(1, 12))), tuple(ids(int(rng.integers(1, 20))) for _ in range(3)))

    return [ScoreRequest((group(), group()), model=name) for _ in range(4)]


async def score(client: httpx.AsyncClient, request: ScoreRequest) -> tuple[ReferenceInfo, np.ndarray]:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/v1/logprobs", content=wire_json.encode_request(request), headers=headers)
    result = wire_json.decode_result(answer.content)
    return result.reference, result.logprobs


async def test_each_scores_as_alone_whatever_is_asked_of_the_others(tmp_path: Path) -> None:
    paths = {f"r{n}": saved(tmp_path / f"r{n}", n) for n in range(COUNT)}
    asked = {name: requests(name, n) for n, name in enumerate(paths)}
    config = make_config(
        model=tuple(f"{name}={path}" for name, path in paths.items()), mode="exact", device="cpu", max_batch_tokens=128
    )
    app = create_app(config, lambda: load_engine(config.engine()))
    async with running(app) as client:
        interleaved = [request for round_ in zip(*asked.values(), strict=True) for request in round_]
        answers = await asyncio.gather(*(score(client, request) for request in interleaved))
    assert len({info.fingerprint for info, _ in answers}) == COUNT
    got: dict[str, list[np.ndarray]] = {name: [] for name in paths}
    for info, logprobs in answers:
        assert info.bitwise
        got[info.model].append(logprobs)
    for name, path in paths.items():
        alone = load_engine(EngineConfig(model=path, mode="exact", device="cpu"))
        for request, logprobs in zip(asked[name], got[name], strict=True):
            pieces = [Piece(g.prompt, g.completions, g.temperature) for g in request.groups]
            scores = alone.compute(alone.prepare(pieces))
            np.testing.assert_array_equal(logprobs, np.concatenate([piece.logprobs for piece in scores.pieces]))
