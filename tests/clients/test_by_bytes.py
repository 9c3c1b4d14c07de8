"""Clients not on PyPI (simple_GRPO, prime-rl, slime, miles, axolotl, TRL before 1.x): their bytes, with real numbers."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable

import numpy as np
import pytest
import requests
import torch
from conftest import MODEL, TOLERANCE, Oracle, actual

PROMPT = 5


def saved(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return buffer.getvalue()


def test_simple_grpo(
    url: str, sequences: list[list[int]], logprobs: Oracle, report: Callable[[str, float], None]
) -> None:
    """Its generator's upload (big-endian lengths around torch.save files), its trainer's get."""
    pair = sequences[:2]
    width = max(map(len, pair))
    inputs = torch.tensor([s + [2] * (width - len(s)) for s in pair])
    parts = [json.dumps({"plen": PROMPT}).encode(), saved(inputs), saved(torch.tensor([1.0, -1.0]))]
    body = struct.pack(">I", len(parts)) + b"".join(struct.pack(">I", len(p)) + p for p in parts)
    assert requests.post(f"{url}/upload", data=body, timeout=60).content == b"tensor"
    framed = requests.get(f"{url}/get", timeout=60).content
    assert requests.get(f"{url}/get", timeout=60).content == b"empty"
    found, end = [], 4
    for _ in range(struct.unpack(">I", framed[:4])[0]):
        start, end = end + 4, end + 4 + struct.unpack(">I", framed[end : end + 4])[0]
        found.append(framed[start:end])
    refs = torch.load(io.BytesIO(found[3]), weights_only=True).numpy()
    expected = np.stack([actual(logprobs(row), row)[PROMPT - 1 :] for row in inputs.tolist()])
    worst = float(np.abs(refs - expected).max())
    report("simple_GRPO: largest error", worst)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_prime_rl(
    url: str, sequences: list[list[int]], logprobs: Oracle, temperature: float, report: Callable[[str, float], None]
) -> None:
    ids = sequences[0]
    table = logprobs(ids, temperature)
    rows = np.argsort(-table, axis=1)[PROMPT - 1 :, :4]
    answer = requests.post(
        f"{url}/inference/v1/generate",
        json={
            "model": MODEL,
            "request_id": "r",
            "token_ids": ids,
            "sampling_params": {
                "max_tokens": 1,
                "temperature": temperature,
                "prompt_logprobs": 1,
                "prompt_logprob_start": PROMPT - 1,
                "prompt_logprob_token_ids": rows.tolist(),
            },
        },
        timeout=60,
    ).json()
    mine = np.array([p[str(i)]["logprob"] for p, i in zip(answer["prompt_logprobs"][1:], ids[1:], strict=True)])
    matrix = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])))
    expected = np.take_along_axis(table[PROMPT - 1 :], rows, axis=1)
    worst = float(max(np.abs(mine - actual(table, ids)).max(), np.abs(matrix - expected).max()))
    report(f"prime-rl, temperature {temperature}: largest error", worst)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_slime(
    url: str, sequences: list[list[int]], logprobs: Oracle, temperature: float, report: Callable[[str, float], None]
) -> None:
    answers = requests.post(
        f"{url}/generate",
        json={
            "input_ids": sequences,
            "sampling_params": {"max_new_tokens": 0, "temperature": temperature, "skip_special_tokens": False},
            "return_logprob": True,
            "logprob_start_len": 0,
        },
        timeout=60,
    ).json()
    worst = 0.0
    for ids, answer in zip(sequences, answers, strict=True):
        mine = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        worst = max(worst, float(np.abs(np.array(mine) - actual(logprobs(ids, temperature), ids)).max()))
    report(f"slime, temperature {temperature}: largest error", worst)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("field", ["top_logprobs_num", "token_ids_logprob", "token_ids_logprob_positions"])
def test_miles(
    url: str, sequences: list[list[int]], logprobs: Oracle, field: str, report: Callable[[str, float], None]
) -> None:
    """Its distillation: the teacher's best, a flat list of the student's ids, or a list for each position."""
    worst = 0.0
    for ids in sequences:
        table = logprobs(ids, 1.0)
        mine = np.argsort(-table, axis=1)[:, 3:7]  # of which some student might think best
        flat = sorted({int(i) for i in mine[PROMPT - 1 :, 0]})
        positions = [[]] * PROMPT + mine[PROMPT - 1 :].tolist()
        wanted = {"top_logprobs_num": 4, "token_ids_logprob": flat, "token_ids_logprob_positions": positions}
        body = {
            "input_ids": ids,
            "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
            "return_logprob": True,
            "logprob_start_len": 0,
            field: wanted[field],
        }
        meta = requests.post(f"{url}/generate", json=body, timeout=60).json()["meta_info"]
        told = meta["input_top_logprobs" if field == "top_logprobs_num" else "input_token_ids_logprobs"]
        for row, entries in zip(table[PROMPT - 1 :], told[1:][-(len(ids) - PROMPT) :], strict=True):
            assert len(entries) == (len(flat) if field == "token_ids_logprob" else 4)
            worst = max(worst, *(abs(entry[0] - row[entry[1]]) for entry in entries))
    report(f"miles, {field}: largest error", worst)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_axolotls_online_teacher(
    url: str, sequences: list[list[int]], logprobs: Oracle, temperature: float, report: Callable[[str, float], None]
) -> None:
    """Both of its ways: SGLang's, and vLLM's, which names the zero new tokens otherwise."""
    of_sglang = requests.post(
        f"{url}/generate",
        json={
            "input_ids": sequences,
            "return_logprob": True,
            "top_logprobs_num": 4,
            "logprob_start_len": 0,
            "return_text_in_logprobs": True,
            "echo": True,
            "sampling_params": {"max_new_tokens": 0, "temperature": temperature, "skip_special_tokens": False},
        },
        timeout=60,
    ).json()
    of_vllm = requests.post(
        f"{url}/v1/completions",
        json={
            "prompt": sequences,
            "echo": True,
            "logprobs": True,
            "prompt_logprobs": 4,
            "top_logprobs": 4,
            "max_new_tokens": 0,
            "skip_special_tokens": False,
            "temperature": temperature,
            "sampling_params": {"max_tokens": 0},
        },
        timeout=60,
    ).json()["choices"]
    worst = 0.0
    for ids, first, second in zip(sequences, of_sglang, of_vllm, strict=True):
        table = logprobs(ids, temperature)
        for t, row in enumerate(table, start=1):
            entries = first["meta_info"]["input_top_logprobs"][t]
            assert all(len(entry) == 3 for entry in entries)
            worst = max(worst, *(abs(logprob - row[i]) for logprob, i, _ in entries))
            worst = max(worst, *(abs(e["logprob"] - row[int(i)]) for i, e in second["prompt_logprobs"][t].items()))
    report(f"axolotl's online teacher, temperature {temperature}: largest error", worst)
    assert worst <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_older_trl(
    url: str, sequences: list[list[int]], logprobs: Oracle, temperature: float, report: Callable[[str, float], None]
) -> None:
    answer = requests.post(
        f"{url}/get_sequence_logprobs/",
        json={
            "sequences": sequences,
            "prompt_lengths": [PROMPT] * len(sequences),
            "top_logprobs": 2,
            "temperature": temperature,
            "response_format": "binary",
        },
        timeout=60,
    ).json()
    shape = answer["shape"][:2]
    got = np.frombuffer(base64.b64decode(answer["actual_logprobs_b64"]), np.float32).reshape(shape)
    worst = 0.0
    for row, length, ids in zip(got, answer["completion_lengths"], sequences, strict=True):
        expected = actual(logprobs(ids, temperature), ids)[PROMPT - 1 :]
        worst = max(worst, float(np.abs(row[:length] - expected).max()))
    report(f"TRL before 1.x, temperature {temperature}: largest error", worst)
    assert worst <= TOLERANCE
