"""Broken requests: each is a ProtocolError with the right status, that names the field and says what to do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from grpo_client import InvalidResponse, Limits, ProtocolError, wire_json, wire_tensors
from grpo_client.wire_tensors import container
from safetensors.numpy import save

GROUP: dict[str, Any] = {"prompt": [1, 2], "completions": [[3, 4], [5]]}


def body(**fields: Any) -> bytes:
    return json.dumps({"groups": [GROUP], **fields}).encode()


def group(**fields: Any) -> bytes:
    return body(groups=[GROUP, {**GROUP, **fields}])


def text(**fields: Any) -> bytes:
    return body(groups=[{"prompt": "a", "completions": ["b"], **fields}])


JSON_CASES: dict[str, tuple[bytes, int, str | None, str]] = {
    # name: body, status, param, a word of the remedy or reason
    "empty body": (b"", 400, None, "send a request"),
    "cut off": (body()[:-5], 400, None, "cut off"),
    "not utf-8": (b'{"groups": "\xff"}', 400, None, "JSON"),
    "trailing garbage": (body() + b"x", 400, None, "JSON"),
    "bottomless nesting": (b"[" * 100_000, 400, None, "JSON"),
    "a list": (b"[]", 400, None, "object"),
    "no groups": (b"{}", 400, "groups", "missing"),
    "unknown field with a long name": (body(**{"x" * 10_000: 1}), 400, "x" * 60 + "...", "known"),
    "groups is null": (body(groups=None), 400, "groups", "list"),
    "groups is empty": (body(groups=[]), 422, "groups", "at least one"),
    "group is a list": (body(groups=[[1]]), 400, "groups[0]", "object"),
    "unknown field": (body(temprature=1), 400, "temprature", "known"),
    "unknown field in a group": (group(completion=[]), 400, "groups[1].completion", "known"),
    "no prompt": (body(groups=[{"completions": [[1]]}]), 400, "groups[0].prompt", "prompt or messages"),
    "prompt and messages": (group(messages=[]), 400, "groups[1].prompt", "either"),
    "no completions": (body(groups=[{"prompt": [1]}]), 400, "groups[0].completions", "list"),
    "completions is empty": (group(completions=[]), 422, "groups[1].completions", "at least one"),
    "completions is flat": (group(completions=[1, 2]), 400, "groups[1].completions[0]", "list of token ids"),
    "completion is null": (group(completions=[[1], None]), 400, "groups[1].completions[1]", "list of token ids"),
    "empty prompt": (group(prompt=[]), 422, "groups[1].prompt", "prepend the BOS token"),
    "id is a float": (group(prompt=[1, 2.0]), 400, "groups[1].prompt[1]", "whole numbers"),
    "id is a bool": (group(completions=[[1], [2, True]]), 400, "groups[1].completions[1][1]", "whole numbers"),
    "id is a string": (group(prompt=["1"]), 400, "groups[1].prompt[0]", "whole numbers"),
    "id is null": (group(prompt=[None]), 400, "groups[1].prompt[0]", "whole numbers"),
    "id is negative": (group(completions=[[0, -1]]), 422, "groups[1].completions[0][1]", "from 0"),
    "id beyond int32": (group(prompt=[2**31]), 422, "groups[1].prompt[0]", "vocabulary"),
    "id of 300 digits": (group(prompt=[10**300]), 422, "groups[1].prompt[0]", "vocabulary"),
    "temperature 0": (body(temperature=0), 422, "temperature", "above 0"),
    "temperature below 0": (body(temperature=-1.0), 422, "temperature", "above 0"),
    "temperature NaN": (body(temperature=float("nan")), 422, "temperature", "finite"),
    "temperature infinite": (body(temperature=float("inf")), 422, "temperature", "finite"),
    "temperature too large": (body(temperature=1e300), 422, "temperature", "finite"),
    "temperature vanishes in fp32": (body(temperature=1e-300), 422, "temperature", "above 0"),
    "temperature of 400 digits": (body(temperature=10**400), 422, "temperature", "finite"),
    "temperature is a string": (body(temperature="1"), 400, "temperature", "number"),
    "temperature is true": (body(temperature=True), 400, "temperature", "number"),
    "temperature is null": (body(temperature=None), 400, "temperature", "number"),
    "temperatures too many": (body(temperature=[1, 1]), 400, "temperature", "one per group"),
    "one temperature wrong": (body(temperature=[0]), 422, "temperature[0]", "above 0"),
    "unknown normalizer": (body(normalizer="sigmoid"), 400, "normalizer", "stablemax"),
    "normalizer is a list": (body(normalizer=["softmax"]), 400, "normalizer", "one of"),
    "unknown extra": (body(**{"return": ["logits"]}), 400, "return[0]", "entropy"),
    "extra twice": (body(**{"return": ["rank", "rank"]}), 400, "return[1]", "once"),
    "return is a string": (body(**{"return": "rank"}), 400, "return", "list"),
    "return holds a list": (body(**{"return": [["rank"]]}), 400, "return[0]", "entropy"),
    "top_k is a float": (body(top_k=1.5), 400, "top_k", "whole number"),
    "top_k is true": (body(top_k=True), 400, "top_k", "whole number"),
    "top_k is negative": (body(top_k=-1), 422, "top_k", "0"),
    "fingerprint is a number": (body(fingerprint=7), 400, "fingerprint", "/v1/reference"),
    "fingerprint is empty": (body(fingerprint=""), 400, "fingerprint", "/v1/reference"),
    "token_ids is flat": (body(token_ids=[1]), 400, "token_ids[0]", "one entry per completion"),
    "token_ids for no group": (body(token_ids=[]), 400, "token_ids", "one per group"),
    "token_ids misses a completion": (body(token_ids=[[[[1], [2]]]]), 400, "token_ids[0]", "give 2"),
    "token_ids misses a position": (body(token_ids=[[[[1]], [[2]]]]), 400, "token_ids[0][0]", "give 2"),
    "token_ids ragged": (body(token_ids=[[[[1], [2, 3]], [[4]]]]), 400, "token_ids[0][0][1]", "equally many"),
    "token_ids of nothing": (body(token_ids=[[[[], []], [[]]]]), 400, "token_ids[0][0][0]", "at least one"),
    "token_ids negative": (body(token_ids=[[[[1], [-2]], [[4]]]]), 422, "token_ids[0][0][1][0]", "from 0"),
    "text with token_ids": (text(token_ids=[[[[1]]]]).replace(b'"token_ids"', b'"x"'), 400, "groups[0].x", "known"),
    "text prompt, id completion": (text(completions=[[1]]), 400, "groups[0].completions[0]", "all text"),
    "id prompt, text completion": (text(prompt=[1]), 400, "groups[0].prompt", "all text"),
    "empty text prompt": (text(prompt=""), 422, "groups[0].prompt", "BOS"),
    "no messages": (body(groups=[{"messages": [], "completions": ["a"]}]), 400, "groups[0].messages", "at least one"),
    "message without role": (
        body(groups=[{"messages": [{"content": "a"}], "completions": ["a"]}]), 400, "groups[0].messages[0]", "role",
    ),
}  # fmt: skip

I32 = np.int32
TENSORS: dict[str, np.ndarray] = {
    "prompt_ids": np.array([1, 2, 9], I32),
    "prompt_lengths": np.array([2, 1], I32),
    "completion_ids": np.array([3, 4, 5], I32),
    "completion_lengths": np.array([2, 0, 1], I32),
    "group_sizes": np.array([2, 1], I32),
    "temperature": np.array([1.0, 0.5], np.float32),
}


def tensors(metadata: dict[str, str] | None = None, drop: str = "", **changed: np.ndarray) -> bytes:
    return save({k: v for k, v in {**TENSORS, **changed}.items() if k != drop}, metadata or {})


def ints(*values: int) -> np.ndarray:
    return np.array(values, I32)


def header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


TENSOR_CASES: dict[str, tuple[bytes, int, str | None, str]] = {
    "empty body": (b"", 400, None, "send a request"),
    "seven bytes": (b"\0" * 7, 400, None, "cut off"),
    "JSON instead": (body(), 413, None, "safetensors at all"),
    "cut in the header": (tensors()[:40], 400, None, "cut off"),
    "cut in the data": (tensors()[:-3], 400, None, "cut off"),
    "bytes too many": (tensors() + b"\0", 400, None, "tensors"),
    "header claims 2**63": ((2**63).to_bytes(8, "little") + b"{}", 413, None, "limit"),
    "header is a list": (header("[]"), 400, None, "object"),
    "header is no JSON": (header("{nope}"), 400, None, "JSON"),
    "metadata of numbers": (header('{"__metadata__": {"top_k": 1}}'), 400, "__metadata__", "strings"),
    "entry is a number": (header('{"prompt_ids": 5}'), 400, "prompt_ids", "int32"),
    "shape is negative": (
        header('{"prompt_ids": {"dtype": "I32", "shape": [-1], "data_offsets": [0, 0]}}'), 400, "prompt_ids", "shape",
    ),
    "shape is huge": (
        header('{"prompt_ids": {"dtype": "I32", "shape": [99999999999999], "data_offsets": [0, 4]}}', b"\0" * 4),
        400, None, "header",
    ),
    "shape and data differ": (
        header('{"prompt_ids": {"dtype": "I32", "shape": [9], "data_offsets": [0, 4]}}', b"\0" * 4), 400, None, "header",
    ),
    "offsets overlap": (
        header('{"prompt_ids": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]},'
               '"group_sizes": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4), 400, None, "header",
    ),
    "unknown tensor": (tensors(weights=ints(1)), 400, "weights", "known"),
    "unknown metadata": (tensors({"topk": "1"}), 400, "topk", "known"),
    "tensor missing": (tensors(drop="group_sizes"), 400, "group_sizes", "missing"),
    "int64": (tensors(prompt_ids=np.array([1, 2, 9])), 400, "prompt_ids", "int32"),
    "float ids": (tensors(completion_ids=np.zeros(3, np.float32)), 400, "completion_ids", "int32"),
    "bool ids": (tensors(completion_ids=np.ones(3, bool)), 400, "completion_ids", "int32"),
    "temperature float64": (tensors(temperature=np.ones(2)), 400, "temperature", "float32"),
    "two dimensions": (tensors(prompt_ids=ints(1, 2, 9)[None]), 400, "prompt_ids", "1 dimension"),
    "token_ids flat": (tensors(token_ids=ints(1, 2, 3)), 400, "token_ids", "2 dimensions"),
    "prompt lengths short": (tensors(prompt_lengths=ints(2, 2)), 400, "prompt_lengths", "adds up to 4"),
    "prompt lengths too few": (tensors(prompt_lengths=ints(3)), 400, "prompt_lengths", "one per group"),
    "negative length": (tensors(completion_lengths=ints(4, -1, 0)), 422, "completion_lengths[1]", "0 or more"),
    "completion lengths long": (tensors(completion_lengths=ints(2, 2, 1)), 400, "completion_lengths", "adds up to 5"),
    "lengths overflow int32": (
        tensors(completion_lengths=ints(2**31 - 1, 2**31 - 1, 5)), 400, "completion_lengths", "adds up",
    ),
    "group sizes short": (tensors(group_sizes=ints(1, 1)), 400, "group_sizes", "adds up to 2"),
    "negative group size": (tensors(group_sizes=ints(4, -1)), 422, "group_sizes[1]", "0 or more"),
    "group of none": (tensors(group_sizes=ints(3, 0)), 422, "groups[1].completions", "at least one"),
    "empty prompt": (tensors(prompt_lengths=ints(3, 0)), 422, "groups[1].prompt", "BOS"),
    "negative id": (tensors(completion_ids=ints(3, -4, 5)), 422, "groups[0].completions[0]", "-4"),
    "temperatures too few": (tensors(temperature=np.ones(1, np.float32)), 400, "temperature", "one per group"),
    "temperature NaN": (tensors(temperature=np.array([1, np.nan], np.float32)), 422, "temperature[1]", "finite"),
    "temperature 0": (tensors(temperature=np.array([0, 1], np.float32)), 422, "temperature[0]", "above 0"),
    "token_ids rows": (tensors(token_ids=np.ones((2, 2), I32)), 400, "completion_lengths", "token_ids"),
    "token_ids no columns": (tensors(token_ids=np.ones((3, 0), I32)), 400, "token_ids[0][0]", "at least one"),
    "top_k is no number": (tensors({"top_k": "many"}), 400, "top_k", "whole number"),
    "top_k is negative": (tensors({"top_k": "-2"}), 422, "top_k", "0"),
    "top_k of 5000 digits": (tensors({"top_k": "9" * 5000}), 400, "top_k", "whole number"),
    "unknown extra": (tensors({"return": "rank,logits"}), 400, "return[1]", "entropy"),
    "extra twice": (tensors({"return": "rank,rank"}), 400, "return[1]", "once"),
    "unknown normalizer": (tensors({"normalizer": "sigmoid"}), 400, "normalizer", "softmax"),
    "no groups": (save({**{k: ints() for k in TENSORS}, "temperature": np.ones(0, np.float32)}), 422, "groups", "at least"),
}  # fmt: skip

CASES = [("json", name) for name in JSON_CASES] + [("tensors", name) for name in TENSOR_CASES]


@pytest.mark.parametrize(("encoding", "name"), CASES, ids=[f"{e}: {n}" for e, n in CASES])
def test_broken_request(encoding: str, name: str) -> None:
    wire, cases = (wire_json, JSON_CASES) if encoding == "json" else (wire_tensors, TENSOR_CASES)
    data, status, param, word = cases[name]
    with pytest.raises(ProtocolError) as caught:
        wire.decode_request(data)
    assert (caught.value.status, caught.value.param) == (status, param)
    assert word in caught.value.message
    assert len(caught.value.message) < 500, "an error must not give a large body back"


def test_the_sound_ones_are_sound() -> None:
    assert len(wire_json.decode_request(body()).groups) == 1
    assert len(wire_json.decode_request(text()).groups) == 1
    assert len(wire_tensors.decode_request(tensors({"format": "np"})).groups) == 2


def test_every_prefix_of_a_body_is_refused() -> None:
    for wire, data in ((wire_json, body()), (wire_tensors, tensors())):
        for end in range(len(data)):
            with pytest.raises(ProtocolError):
                wire.decode_request(data[:end])


def test_text_cannot_have_token_ids() -> None:
    data = json.dumps({"groups": [{"prompt": "a", "completions": ["b"]}], "token_ids": [[[[1]]]]}).encode()
    with pytest.raises(ProtocolError, match="tokenize first"):
        wire_json.decode_request(data)


@pytest.mark.parametrize(("wire", "data"), [(wire_json, body()), (wire_tensors, tensors())], ids=["json", "tensors"])
def test_limits(wire: Any, data: bytes) -> None:
    for limits in (Limits(max_body_bytes=10), Limits(max_completions=1)):
        with pytest.raises(ProtocolError, match="limit") as caught:
            wire.decode_request(data, limits)
        assert caught.value.status == 413


@pytest.mark.parametrize("wire", [wire_json, wire_tensors], ids=["json", "tensors"])
@pytest.mark.parametrize("data", [b"", b"<html>", b"{}", b"[1]", b'{"reference": null}', b"\0" * 20, tensors()])
def test_what_is_no_answer(wire: Any, data: bytes) -> None:
    with pytest.raises(InvalidResponse):
        wire.decode_result(data)


def test_a_header_that_is_dear_to_read_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(body: bytes) -> Any:
        raise AssertionError("the header was parsed")

    monkeypatch.setattr(container, "from_json", read)
    million = b",".join(b'"%06d":{"dtype":"I32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000))
    for header in (b"{" + million + b"}", b'{"__metadata__":{"a":"' + b"x" * 60_000_000 + b'"}}', b"[" * 2**17):
        body = len(header).to_bytes(8, "little") + header
        with pytest.raises(ProtocolError) as refused:
            wire_tensors.decode_request(body, Limits(max_body_bytes=2**27))
        assert (refused.value.status, refused.value.code) == (413, "header_too_large")


def test_a_header_within_its_limit_may_name_known_tensors_alone() -> None:
    names = ",".join(f'"{i}":{{"dtype":"I32","shape":[0],"data_offsets":[0,0]}}' for i in range(1000)).encode()
    with pytest.raises(ProtocolError) as refused:
        wire_tensors.decode_request((len(names) + 2).to_bytes(8, "little") + b"{" + names + b"}")
    assert (refused.value.status, refused.value.code) == (400, "unknown_field")
