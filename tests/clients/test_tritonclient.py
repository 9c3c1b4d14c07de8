"""Triton's HTTP client, which is also what KServe's Open Inference Protocol v2 speaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tritonclient.http as triton
from conftest import MODEL, TOLERANCE, Oracle, actual

PROMPT = 5


def inputs(arrays: dict[str, np.ndarray], binary: bool) -> list[triton.InferInput]:
    tensors = []
    for name, values in arrays.items():
        datatype = "FP32" if values.dtype == np.float32 else "INT32"
        tensors.append(triton.InferInput(name, list(values.shape), datatype))
        tensors[-1].set_data_from_numpy(values, binary_data=binary)
    return tensors


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_infer(
    url: str,
    sequences: list[list[int]],
    logprobs: Oracle,
    temperature: float,
    binary: bool,
    report: Callable[[str, float], None],
) -> None:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    names = {t["name"] for t in client.get_model_metadata(MODEL)["outputs"]}
    assert {"logprobs", "entropy"} <= names
    arrays = {
        "prompt_ids": np.concatenate([s[:PROMPT] for s in sequences]).astype(np.int32),
        "prompt_lengths": np.full(len(sequences), PROMPT, np.int32),
        "completion_ids": np.concatenate([s[PROMPT:] for s in sequences]).astype(np.int32),
        "completion_lengths": np.array([len(s) - PROMPT for s in sequences], np.int32),
        "group_sizes": np.ones(len(sequences), np.int32),
        "temperature": np.full(len(sequences), temperature, np.float32),
    }
    outputs = [triton.InferRequestedOutput(n, binary_data=binary) for n in ("logprobs", "status", "entropy")]
    result = client.infer(MODEL, inputs(arrays, binary), outputs=outputs, parameters={"return": "entropy"})
    expected = np.concatenate([actual(logprobs(s, temperature), s)[PROMPT - 1 :] for s in sequences])
    tables = np.concatenate([logprobs(s, temperature)[PROMPT - 1 :] for s in sequences])
    worst = float(np.abs(result.as_numpy("logprobs") - expected).max())
    report(f"tritonclient, temperature {temperature}, binary {binary}: largest error", worst)
    assert worst <= TOLERANCE
    assert not result.as_numpy("status").any()
    np.testing.assert_allclose(result.as_numpy("entropy"), -(np.exp(tables) * tables).sum(1), atol=1e-3)


def test_a_refusal_says_why(url: str) -> None:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    with pytest.raises(triton.InferenceServerException, match="prompt_lengths is missing"):
        client.infer(MODEL, inputs({"prompt_ids": np.array([1], np.int32)}, True))
