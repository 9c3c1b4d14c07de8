"""What goes over the line byte by byte, as it was before there were options beside these: old clients meet new servers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from grpo_client import ReferenceInfo, ScoreRequest, ScoreResult, Usage, wire_json, wire_tensors

REQUEST_JSON = (
    b'{"groups":[{"prompt":[1,2,3],"completions":[[4,5],[]]},{"prompt":[7],"completions":[[6]]}],"temperature":[0.5,2.0],'
    b'"normalizer":"softmax","return":["entropy","rank"],"top_k":2,"fingerprint":"f00d",'
    b'"token_ids":[[[[1,2],[3,4]],[]],[[[9,8]]]]}'
)
ANSWER_JSON = (
    b'{"reference":{"model":"m","fingerprint":"f00d","version":1,"dtype":"float32","mode":"exact","normalizer":"softmax",'
    b'"max_length":64,"vocab_size":50,"tier":"packed","bitwise":true},"temperature":[0.5,2.0],"groups":[{"logprobs":'
    b'[[-0.5,-1.25],[]],"entropy":[[1.0,2.0],[]],"rank":[[0,1],[]],"top_ids":[[[4,5],[6,7]],[]],"top_logprobs":'
    b'[[[-0.5,-1.0],[-1.25,-2.0]],[]],"token_logprobs":[[[-4.0,-5.0],[-6.0,-7.0]],[]],"status":["ok","ok"]},{"logprobs":'
    b'[[-3.0]],"entropy":[[3.0]],"rank":[[2]],"top_ids":[[[8,9]]],"top_logprobs":[[[-1.5,-3.0]]],"token_logprobs":'
    b'[[[-8.0,-9.0]]],"status":["ok"]}],"usage":{"prompt_tokens":4,"completion_tokens":3,"computed_tokens":7,'
    b'"cached_sequences":0,"queue_ms":1.5,"compute_ms":2.5}}'
)
# safetensors: the header as an object, since the library leaves its order open, and the hex digits of the data.
REQUEST_HEADER: dict[str, Any] = {
    "__metadata__": {"normalizer": "softmax", "fingerprint": "f00d", "top_k": "2", "return": "entropy,rank"},
    "temperature": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "completion_ids": {"dtype": "I32", "shape": [3], "data_offsets": [8, 20]},
    "completion_lengths": {"dtype": "I32", "shape": [3], "data_offsets": [20, 32]},
    "group_sizes": {"dtype": "I32", "shape": [2], "data_offsets": [32, 40]},
    "prompt_ids": {"dtype": "I32", "shape": [4], "data_offsets": [40, 56]},
    "prompt_lengths": {"dtype": "I32", "shape": [2], "data_offsets": [56, 64]},
    "token_ids": {"dtype": "I32", "shape": [3, 2], "data_offsets": [64, 88]},
}
REQUEST_DATA = (
    "0000003f00000040" "040000000500000006000000" "020000000000000001000000" "0200000001000000"
    "01000000020000000300000007000000" "0300000001000000" "010000000200000003000000040000000900000008000000"
)  # fmt: skip
ANSWER_HEADER: dict[str, Any] = {
    "__metadata__": {
        "reference": '{"model":"m","fingerprint":"f00d","version":1,"dtype":"float32","mode":"exact","normalizer":"softmax",'
        '"max_length":64,"vocab_size":50,"tier":"packed","bitwise":true}',
        "usage": '{"prompt_tokens":4,"completion_tokens":3,"computed_tokens":7,"cached_sequences":0,"queue_ms":1.5,'
        '"compute_ms":2.5}',
    },
    "entropy": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
    "logprobs": {"dtype": "F32", "shape": [3], "data_offsets": [12, 24]},
    "temperature": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
    "token_logprobs": {"dtype": "F32", "shape": [3, 2], "data_offsets": [32, 56]},
    "top_logprobs": {"dtype": "F32", "shape": [3, 2], "data_offsets": [56, 80]},
    "completion_lengths": {"dtype": "I32", "shape": [3], "data_offsets": [80, 92]},
    "group_sizes": {"dtype": "I32", "shape": [2], "data_offsets": [92, 100]},
    "rank": {"dtype": "I32", "shape": [3], "data_offsets": [100, 112]},
    "top_ids": {"dtype": "I32", "shape": [3, 2], "data_offsets": [112, 136]},
    "status": {"dtype": "U8", "shape": [3], "data_offsets": [136, 139]},
}
ANSWER_DATA = (
    "0000803f0000004000004040" "000000bf0000a0bf000040c0" "0000003f00000040"
    "000080c00000a0c00000c0c00000e0c0000000c1000010c1" "000000bf000080bf0000a0bf000000c00000c0bf000040c0"
    "020000000000000001000000" "0200000001000000" "000000000100000002000000"
    "040000000500000006000000070000000800000009000000" "000000"
)  # fmt: skip


def request() -> ScoreRequest:
    return ScoreRequest.of(
        [[1, 2, 3], [7]], [[[4, 5], []], [[6]]], temperature=[0.5, 2.0], extras=["entropy", "rank"], top_k=2,
        token_ids=[[[[1, 2], [3, 4]], []], [[[9, 8]]]], fingerprint="f00d",
    )  # fmt: skip


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def answer() -> ScoreResult:
    return ScoreResult(
        reference=ReferenceInfo(
            model="m", fingerprint="f00d", version=1, dtype="float32", mode="exact", max_length=64, vocab_size=50,
            tier="packed", bitwise=True,
        ),
        normalizer="softmax",
        temperature=floats(0.5, 2.0),
        group_sizes=whole(2, 1),
        completion_lengths=whole(2, 0, 1),
        logprobs=floats(-0.5, -1.25, -3.0),
        status=np.zeros(3, np.uint8),
        usage=Usage(prompt_tokens=4, completion_tokens=3, computed_tokens=7, queue_ms=1.5, compute_ms=2.5),
        extras={
            "entropy": floats(1.0, 2.0, 3.0),
            "rank": whole(0, 1, 2),
            "top_ids": whole(4, 5, 6, 7, 8, 9).reshape(3, 2),
            "top_logprobs": floats(-0.5, -1.0, -1.25, -2.0, -1.5, -3.0).reshape(3, 2),
            "token_logprobs": floats(-4, -5, -6, -7, -8, -9).reshape(3, 2),
        },
    )  # fmt: skip


def container(header: dict[str, Any], data: str) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes.fromhex(data)


def parts(body: bytes) -> tuple[Any, str]:
    end = 8 + int.from_bytes(body[:8], "little")
    return json.loads(body[8:end]), body[end:].hex()


def test_a_request_is_written_as_ever() -> None:
    assert wire_json.encode_request(request()) == REQUEST_JSON
    assert parts(wire_tensors.encode_request(request())) == (REQUEST_HEADER, REQUEST_DATA)


def test_an_answer_is_written_as_ever() -> None:
    assert wire_json.encode_result(answer()) == ANSWER_JSON
    assert parts(wire_tensors.encode_result(answer())) == (ANSWER_HEADER, ANSWER_DATA)


def test_what_was_written_then_is_read_now() -> None:
    for body, read in (
        (REQUEST_JSON, wire_json.decode_request),
        (container(REQUEST_HEADER, REQUEST_DATA), wire_tensors.decode_request),
    ):
        again: Any = read(body)
        assert wire_json.encode_request(again) == REQUEST_JSON
    for body, read_answer in (
        (ANSWER_JSON, wire_json.decode_result),
        (container(ANSWER_HEADER, ANSWER_DATA), wire_tensors.decode_result),
    ):
        assert wire_json.encode_result(read_answer(body)) == ANSWER_JSON
