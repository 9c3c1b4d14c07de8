"""The Open Inference Protocol v2, byte by byte."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from typing import Any

import httpx
import numpy as np
import pytest
from bigram_engine import BigramEngine
from server_fakes import CURSED, serving

pytestmark = pytest.mark.anyio

HEADER = "Inference-Header-Content-Length"
PROMPTS, COMPLETIONS = [[20, 31], [7]], [[[42, 53], []], [[9]]]
ARRAYS = {
    "prompt_ids": np.array([20, 31, 7], "<i4"),
    "prompt_lengths": np.array([2, 1], "<i4"),
    "completion_ids": np.array([42, 53, 9], "<i4"),
    "completion_lengths": np.array([2, 0, 1], "<i4"),
    "group_sizes": np.array([2, 1], "<i4"),
    "temperature": np.array([0.5, 2.0], "<f4"),
}
DATATYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}


def expected(engine: BigramEngine) -> list[float]:
    return [*engine.logprobs([20, 31, 42, 53], 0.5, start=2), *engine.logprobs([7, 9], 2.0)]


def as_json(arrays: dict[str, np.ndarray], **fields: Any) -> dict[str, Any]:
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": DATATYPES[a.dtype.name], "data": a.ravel().tolist()}
        for n, a in arrays.items()
    ]
    return {"inputs": inputs, **fields}


def as_binary(arrays: dict[str, np.ndarray], **fields: Any) -> tuple[bytes, dict[str, str]]:
    body = as_json(arrays, **fields)
    for tensor in body["inputs"]:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": arrays[tensor["name"]].nbytes}
    header = json.dumps(body).encode()
    return header + b"".join(a.tobytes() for a in arrays.values()), {HEADER: str(len(header))}


def read(response: httpx.Response) -> dict[str, np.ndarray]:
    """Outputs in whatever way they came."""
    assert response.status_code == 200, response.text
    dtypes = {"FP32": "<f4", "UINT8": "u1", "INT32": "<i4"}
    length = int(response.headers.get(HEADER, len(response.content)))
    raw, found = response.content[length:], {}
    for output in json.loads(response.content[:length])["outputs"]:
        dtype = dtypes[output["datatype"]]
        if "data" in output:
            values = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            values, raw = np.frombuffer(raw[:size], dtype), raw[size:]
        found[output["name"]] = values.reshape(output["shape"])
    assert not raw
    return found


async def post(engine: BigramEngine, **request: Any) -> httpx.Response:
    async with serving(engine) as client:
        return await client.post("/v2/models/fake/infer", **request)


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
async def test_either_encoding_either_way(engine: BigramEngine, binary_in: bool, binary_out: bool) -> None:
    fields = {"id": "7", "parameters": {"binary_data_output": binary_out, "return": "rank", "top_k": 2}}
    if binary_in:
        content, headers = as_binary(ARRAYS, **fields)
        response = await post(engine, content=content, headers=headers)
    else:
        response = await post(engine, json=as_json(ARRAYS, **fields))
    outputs = read(response)
    assert (HEADER in response.headers) is binary_out
    np.testing.assert_array_equal(outputs["logprobs"], np.array(expected(engine), np.float32))
    assert outputs["status"].tolist() == [0, 0, 0]
    assert outputs["top_ids"].shape == (3, 2)
    assert set(outputs) == {"logprobs", "status", "rank", "top_ids", "top_logprobs"}


async def test_only_the_outputs_that_were_asked_for(engine: BigramEngine) -> None:
    wanted = [{"name": "logprobs", "parameters": {"binary_data": True}}, {"name": "status"}]
    response = await post(engine, json=as_json(ARRAYS, outputs=wanted))
    outputs = read(response)
    assert list(outputs) == ["logprobs", "status"]
    assert int(response.headers[HEADER]) == len(response.content) - outputs["logprobs"].nbytes


async def test_int64_ids_and_nested_data(engine: BigramEngine) -> None:
    body = as_json({n: a.astype(np.int64) if a.dtype == np.int32 else a for n, a in ARRAYS.items()})
    asked = np.array([[7, 8]] * 3)
    body["inputs"].append({"name": "token_ids", "shape": [3, 2], "datatype": "INT64", "data": asked.tolist()})
    outputs = read(await post(engine, json=body))
    assert outputs["token_logprobs"][0].tolist() == engine.distribution([20, 31], 0.5)[[7, 8]].tolist()


async def test_what_is_not_finite_travels_as_it_is_in_binary_and_as_null_in_json(engine: BigramEngine) -> None:
    arrays = {**ARRAYS, "completion_ids": np.array([42, CURSED, 9], "<i4")}
    binary = read(await post(engine, json=as_json(arrays, parameters={"binary_data_output": True})))
    assert np.isnan(binary["logprobs"]).tolist() == [False, True, False]
    assert binary["status"].tolist() == [1, 0, 0]
    text = (await post(engine, json=as_json(arrays))).json()
    assert text["outputs"][0]["data"][1] is None


async def test_probes_and_metadata(engine: BigramEngine) -> None:
    async with serving(engine) as client:
        for path in ("health/live", "health/ready", "models/fake/ready", "models/fake/versions/1/ready"):
            assert (await client.get(f"/v2/{path}")).status_code == 200, path
        server = (await client.get("/v2")).json()
        assert server["version"] == importlib.metadata.version("grpo-refserver")
        assert "binary_tensor_data" in server["extensions"]
        described = (await client.get("/v2/models/fake")).json()
        assert (await client.get("/v2/models/fake/versions/1")).json() == described
        assert (await client.get("/v2/models/other")).status_code == 404
        assert (await client.get("/v2/models/fake/versions/2")).status_code == 404
        answer = await client.post("/v2/models/fake/versions/1/infer", json=as_json(ARRAYS))
    assert {t["name"] for t in described["inputs"]} == {*ARRAYS, "token_ids", "completion_mask"}
    assert {"name": "logprobs", "datatype": "FP32", "shape": [-1]} in described["outputs"]
    assert read(answer)["logprobs"].tolist() == expected(engine)


def without(name: str) -> dict[str, Any]:
    return as_json({n: a for n, a in ARRAYS.items() if n != name})


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (without("prompt_ids"), 400, "prompt_ids"),
        (as_json({**ARRAYS, "prompt_ids": np.array([20, 100, 7])}), 422, "groups[0].prompt"),
        (as_json({**ARRAYS, "prompt_ids": np.array([20, 2**40, 7])}), 400, "inputs[0]"),
        (as_json({**ARRAYS, "temperature": np.array([1.0, 0.0], "<f4")}), 422, "temperature[1]"),
        (as_json({**ARRAYS, "surprise": np.array([1], "<i4")}), 400, "surprise"),
        (as_json({**ARRAYS, "prompt_ids": np.array([20, 31, 7], "<f4")}), 400, "prompt_ids"),
        (as_json({**ARRAYS, "prompt_ids": np.array([[20, 31, 7]])}), 400, "prompt_ids"),
        (as_json({**ARRAYS, "prompt_ids": np.array([20, -1, 7])}), 422, "groups[0].prompt"),
        (as_json({**ARRAYS, "group_sizes": np.array([3, 1])}), 400, "group_sizes"),
        (as_json(ARRAYS, parameters={"top_k": "many"}), 400, "top_k"),
        (as_json(ARRAYS, outputs=[{"name": "entropy"}]), 400, "outputs[0]"),
        ({"inputs": [{"name": "prompt_ids", "shape": [3], "datatype": "INT32", "data": [1, 2]}]}, 400, "inputs[0]"),
        ({"inputs": [{"name": "prompt_ids", "shape": [1], "datatype": "INT32", "data": ["x"]}]}, 400, "inputs[0]"),
        ({"inputs": [{"name": "prompt_ids", "shape": [1], "datatype": "INT32"}]}, 400, "inputs[0]"),
        ({"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}, 400, "inputs[0].datatype"),
    ],
)
async def test_a_broken_request_is_told_which_tensor(
    engine: BigramEngine, body: dict[str, Any], status: int, param: str
) -> None:
    response = await post(engine, json=body)
    assert response.status_code == status, response.text
    assert response.json()["param"] == param
    assert isinstance(response.json()["error"], str)  # an object would break the protocol's own clients


async def test_binary_data_that_does_not_match_its_header(engine: BigramEngine) -> None:
    content, headers = as_binary(ARRAYS)
    cut = await post(engine, content=content[:-1], headers=headers)
    more = await post(engine, content=content + b"x", headers=headers)
    beyond = await post(engine, content=content, headers={HEADER: str(len(content) + 1)})
    brotli = await post(engine, content=content, headers={**headers, "Content-Encoding": "br"})
    packed = await post(engine, content=gzip.compress(content), headers={**headers, "Content-Encoding": "gzip"})
    assert [r.status_code for r in (cut, more, beyond, brotli, packed)] == [400, 400, 400, 415, 200]
    assert isinstance(brotli.json()["error"], str)
