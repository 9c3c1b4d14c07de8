"""Reading JSON in chunks is reading JSON: the same values, the same refusals; and what is dear for its size is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from grpo_client import Limits, ProtocolError, wire_json, wire_tensors
from grpo_client.wire_json import reader
from grpo_client.wire_json.reader import read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json
from safetensors.numpy import save

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=12)
TRICKY = st.sampled_from(["a,b", '[{"', "\\", '\\"', "\\\\", "]", ",", "é€😀", "x" * 40, ""])
KEYS = st.sampled_from(["a", "b", "c,", 'd"', "e\\"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | TRICKY | st.lists(st.integers(0, 99), max_size=30),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=30,
)


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        assert value.dtype == np.int64
        return value.tolist()
    if isinstance(value, list):
        return [plain(v) for v in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@settings(deadline=None)
@given(VALUES, st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_a_document_in_chunks_is_the_document(value: Any, step: int, ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert plain(read_json(body, step)) == from_json(body)


@settings(deadline=None)
@given(VALUES, st.integers(1, 12), st.data())
def test_what_is_no_json_whole_is_none_in_chunks(value: Any, step: int, data: st.DataObject) -> None:
    body = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([b"", *(b'[]{},:"\\ 1'[i : i + 1] for i in range(10))])
        )
    try:
        want = from_json(bytes(body))
    except ValueError:
        with pytest.raises(ProtocolError, match="not valid JSON"):
            read_json(bytes(body), step)
        return
    try:
        assert plain(read_json(bytes(body), step)) == want
    except ProtocolError as refused:  # the one thing on which it is stricter
        if "a key stands twice" not in str(refused):
            raise


def test_a_long_list_of_whole_numbers_is_an_array_and_a_mixed_one_a_list() -> None:
    body = json.dumps({"a": [*range(200)], "b": [*range(200), "x"], "c": [1.5] * 200, "d": [2**70] * 60}).encode()
    read = read_json(body, 64)
    assert isinstance(read["a"], np.ndarray)
    assert read["a"].tolist() == list(range(200))
    assert read["b"] == [*range(200), "x"]
    assert read["c"] == [1.5] * 200
    assert read["d"] == [2**70] * 60


def test_no_call_of_the_parser_gets_more_than_a_step_and_its_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds Python's lock is short: the parser sees a chunk at a time, however large the body."""
    sizes: list[int] = []

    def parse(text: bytes) -> Any:
        sizes.append(len(text))
        return from_json(text)

    monkeypatch.setattr(reader, "from_json", parse)
    groups = [{"prompt": list(range(3000)), "completions": [[7] * 3000] * 20}] * 8
    body = json.dumps({"groups": groups, "temperature": [0.5] * 8}).encode()
    assert len(body) > 20 * reader.STEP
    request = wire_json.decode_request(body)
    assert [len(g.prompt) for g in request.groups] == [3000] * 8
    assert len(sizes) > 20
    assert max(sizes) <= 2 * reader.STEP + 1000


@pytest.mark.parametrize(
    "body",
    {
        "lists": b"[" + b"[]," * 2**19 + b"[]]",
        "lists in groups": b'{"groups": [' + b"[]," * 2**19 + b"[]]}",
        "objects": b"[" + b"{}," * 2**19 + b"{}]",
        "keys": b"{" + b'"k":1,' * 2**19 + b'"k":1}',
        "strings": b"[" + b'"",' * 2**19 + b'""]',
        "depth": b"[" * 2**20,
        "a long string": b'{"groups": "' + b"a" * 2**25 + b'"}',
        "a long string of escapes": b'{"groups": "' + b"\\u00e9" * 2**22 + b'"}',
        "a long string of commas": b'{"groups": "' + b"," * 2**25 + b'"}',
        "a long number": b'{"groups": ' + b"9" * 2**25 + b"}",
        "blanks": b'{"groups": ' + b" " * 2**25 + b"1}",
        "floats": b'{"temperature": [' + b"1.5," * 2**21 + b"1]}",
    }.items(),
    ids=lambda case: case[0],
)
def test_what_is_dear_for_its_size_is_refused_before_it_is_built(
    body: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0

    def parse(text: bytes) -> Any:
        nonlocal parsed
        parsed += len(text)
        return from_json(text)

    monkeypatch.setattr(reader, "from_json", parse)
    with pytest.raises(ProtocolError) as refused:
        wire_json.decode_request(body[1])
    assert (refused.value.status, refused.value.code) == (413, "body_too_complex")
    assert len(str(refused.value)) < 300
    assert parsed < 2**23


def test_the_limits_leave_room_for_the_largest_request_that_is_served() -> None:
    most = Limits().max_completions
    for group in ({"prompt": "p", "completions": ["c"]}, {"prompt": [1], "completions": [[2]]}):
        body = json.dumps({"groups": [group] * most}).encode()
        assert len(wire_json.decode_request(body).groups) == most


def test_an_id_that_is_wrong_deep_in_a_long_list_is_named() -> None:
    for wrong, status, word in (
        (-1, 422, "token ids are from 0"),
        (2**40, 422, "from 0"),
        (2**70, 422, "from 0"),
        (1.5, 400, "whole"),
    ):
        prompt = [5] * 100_000 + [wrong] + [5] * 100_000
        with pytest.raises(ProtocolError, match=word) as refused:
            wire_json.decode_request(json.dumps({"groups": [{"prompt": prompt, "completions": [[1]]}]}).encode())
        assert refused.value.status == status
        assert refused.value.param == "groups[0].prompt[100000]"


def test_more_groups_than_completions_are_allowed_are_refused_by_number_in_both_encodings() -> None:
    few = Limits(max_completions=10)
    with pytest.raises(ProtocolError, match="limit is 10"):
        wire_json.decode_request(json.dumps({"groups": [{}] * 11}).encode(), few)
    many = np.ones(1_000_000, np.int32)
    none = np.zeros(0, np.int32)
    arrays = {
        "prompt_ids": many,
        "prompt_lengths": many,
        "completion_ids": none,
        "completion_lengths": none,
        "group_sizes": many * 0,
    }
    with pytest.raises(ProtocolError, match="1000000 completions in one request; the limit is 10"):
        wire_tensors.decode_request(save(arrays), few)
