"""A reference cut over two processes (gloo, on the CPU) answers as one in one process does, through the real command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from grpo_client import ReferenceClient
from grpo_server.engine import EngineConfig, Piece, load_engine
from grpo_server.engine.reading import _all_here
from grpo_server.engine.tensor_parallel import Ranks, decode, encode
from prometheus_client.parser import text_string_to_metric_families
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 199


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def model(request, tmp_path_factory) -> Path:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=request.param, initializer_range=0.2,
    )  # fmt: skip
    where = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(where)
    return where


def torchrun(ranks: int, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
            "-m", "grpo_server", "--tensor-parallel", "--port", "0", *flags,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_ranks_score_as_one_process_and_drain(model):
    one = load_engine(EngineConfig(str(model)))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (20, 1, 7)]
    completions = [[rng.integers(0, VOCAB, n).tolist() for n in sizes] for sizes in ((9, 1, 0, 5), (30,), (4, 2))]
    ask = dict(temperature=0.7, extras=["entropy", "rank"], top_k=3)
    process = torchrun(2, "--model", str(model), "--peak-tflops", "0.5")
    try:
        assert process.stdout is not None
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://127.0.0.1:\d+", line)))
        with ReferenceClient(url) as client:
            client.wait_ready(timeout=120)
            info, result = client.info(), client.score(prompts, completions, **ask)
            metrics = httpx.get(f"{url}/metrics").text
            again = client.score(prompts[:1], [completions[0][:1]], **ask)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert "all accepted work is done" in output
    assert info.fingerprint == one.info.fingerprint
    assert info.tier == "packed"
    pieces = [
        Piece(
            np.array(p, np.int32), tuple(np.array(c, np.int32) for c in g), 0.7, "softmax",
            frozenset({"entropy", "rank"}), 3,
        )
        for p, g in zip(prompts, completions, strict=True)
    ]  # fmt: skip
    batch = one.compute(one.prepare(pieces))
    told = {s.name: s.value for family in text_string_to_metric_families(metrics) for s in family.samples}
    assert told["grpo_server_model_flops_total"] == batch.flops  # of the whole model, not of a slice
    assert told["grpo_server_peak_flops"] == 1e12  # of both ranks
    want = batch.pieces
    np.testing.assert_allclose(result.logprobs, np.concatenate([w.logprobs for w in want]), rtol=0, atol=2e-5)
    np.testing.assert_allclose(
        result.extras["entropy"], np.concatenate([w.extras["entropy"] for w in want]), rtol=0, atol=2e-5
    )
    np.testing.assert_array_equal(result.extras["top_ids"], np.concatenate([w.extras["top_ids"] for w in want]))
    assert info.bitwise
    assert again.logprobs.tobytes() == result.logprobs[:9].tobytes()


def test_heads_that_cannot_be_cut_are_refused_with_what_can(model):
    process = torchrun(3, "--model", str(model))
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "2 key-value heads cannot be cut into 3 equal parts; start one of [1, 2] processes" in output


def test_without_torchrun_it_is_said_how_to_start(model, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        Ranks()
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        load_engine(EngineConfig(str(model), tensor_parallel=True))


def test_a_message_between_ranks_brings_every_piece_back():
    rng = np.random.default_rng(1)

    def ids(*shape: int) -> np.ndarray:
        return rng.integers(0, VOCAB, shape, dtype=np.int32)

    pieces = [
        Piece(ids(4), (ids(3), ids(0)), 1 / 3),
        Piece(ids(1), (ids(2),), 1.0, "stablemax", frozenset({"rank", "entropy"}), 5, (ids(2, 4),)),
    ]
    for sent, got in zip(pieces, decode(encode(pieces)), strict=True):
        np.testing.assert_array_equal(got.prompt, sent.prompt)
        assert [c.tolist() for c in got.completions] == [c.tolist() for c in sent.completions]
        assert (got.temperature, got.normalizer, got.extras, got.top_k) == (
            sent.temperature, sent.normalizer, sent.extras, sent.top_k,
        )  # fmt: skip
        assert (got.token_ids is None) == (sent.token_ids is None)
        for a, b in zip(got.token_ids or (), sent.token_ids or (), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_device_map_scores_alike_and_refuses_to_offload(model):
    one, spread = (load_engine(EngineConfig(str(model), device_map=m)) for m in (None, "auto"))
    piece = Piece(np.arange(5, dtype=np.int32), (np.arange(7, dtype=np.int32),), 1.0)
    got, want = (e.compute(e.prepare([piece])).pieces[0].logprobs for e in (spread, one))
    np.testing.assert_array_equal(got, want)
    with torch.device("meta"):
        away = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(ValueError, match="do not fit on the devices"):
        _all_here(away)
