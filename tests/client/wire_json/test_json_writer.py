"""Writing JSON in chunks is writing JSON, and no chunk takes long to write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grpo_client import ReferenceInfo, ScoreResult, wire_json, wire_tensors
from grpo_client.wire_json.result_writer import result_object
from grpo_client.wire_json.writer import STEP, entries, in_steps, json_bytes, json_chunks, runs
from grpo_client.wire_tensors.container import CHUNK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json
from safetensors.numpy import load, save

WHO = ReferenceInfo(model="m", fingerprint="f", version=1, dtype="float32", mode="exact", max_length=9, vocab_size=9)
# An entry of these figures, separators included, is no longer than that: "-1.234567891e-38, ".
LONGEST_FIGURE = 24


def result(groups: list[list[int]], top_k: int = 0, *, with_ids: bool = False) -> ScoreResult:
    """groups: the lengths of each one's completions."""
    lengths = np.array([n for group in groups for n in group], dtype=np.int32)
    rng = np.random.default_rng(0)
    tokens = int(lengths.sum())
    logprobs = -rng.random(tokens, dtype=np.float32)
    logprobs[::7] = np.nan
    extras: dict[str, Any] = {"rank": rng.integers(0, 9, tokens, dtype=np.int32)}
    if top_k:
        extras["top_ids"] = rng.integers(0, 9, (tokens, top_k), dtype=np.int32)
        extras["top_logprobs"] = -rng.random((tokens, top_k), dtype=np.float32)
    return ScoreResult(
        WHO,
        "softmax",
        np.ones(len(groups), np.float32),
        np.array([len(group) for group in groups], dtype=np.int32),
        lengths,
        logprobs,
        (np.arange(len(lengths)) % 2).astype(np.uint8),
        extras,
        prompt_ids=tuple(np.arange(3, dtype=np.int32) for _ in groups) if with_ids else None,
        completion_ids=tuple(np.arange(n, dtype=np.int32) for n in lengths) if with_ids else None,
    )


SHAPES: dict[str, Any] = {
    "small": ([[2, 0], [3]], 2),
    "no tokens": ([[0], [0, 0]], 0),
    "many groups": ([[2]] * STEP, 0),
    "many completions": ([[1] * 2 * STEP, [3]], 0),
    "empty completions": ([[0] * 2 * STEP], 0),
    "a long completion": ([[1, 3 * STEP, 2], [5]], 0),
    "many best": ([[STEP // 4, 1]], 20),
    "a mix": ([[1, 2], [STEP + 1], [3], [2 * STEP, 1, 1], [1]], 3),
}


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_in_chunks_is_the_answer(shape: str, with_ids: bool) -> None:
    groups, top_k = SHAPES[shape]
    answer = result(groups, top_k, with_ids=with_ids)
    whole = to_json(result_object(answer), inf_nan_mode="null")
    assert from_json(wire_json.encode_result(answer)) == from_json(whole)
    assert wire_json.encode_result(answer) == whole
    assert max(map(len, wire_json.result_chunks(answer))) <= 2 * STEP * LONGEST_FIGURE


JSON = st.recursive(
    st.none() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


def lazy(value: Any) -> Any:
    if isinstance(value, list):
        return map(lazy, value)
    return {k: lazy(v) for k, v in value.items()} if isinstance(value, dict) else value


@settings(deadline=None)
@given(JSON)
def test_what_is_made_when_it_is_written_is_written_alike(value: Any) -> None:
    assert json_bytes(lazy(value)) == json_bytes(value) == to_json(value, inf_nan_mode="null")


@pytest.mark.parametrize("length", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP])
def test_arrays_and_rows_are_lists(length: int) -> None:
    values = np.arange(length)
    assert from_json(json_bytes(values)) == values.tolist()
    assert from_json(json_bytes(in_steps(iter(values.tolist())))) == values.tolist()
    table = np.stack([values, values], axis=1)
    assert from_json(json_bytes({"x": table})) == {"x": table.tolist()}
    assert max(map(len, json_chunks(table))) <= STEP * LONGEST_FIGURE


def test_a_chunk_may_hold_several_entries() -> None:
    assert json_bytes(iter([entries([1, 2]), {"a": iter([])}, b'"x"'])) == b'[1,2,{"a":[]},"x"]'


def test_runs_cover_all_and_weigh_no_more_than_a_step() -> None:
    weights = [3, 3, 3, 9, 0, 1, 10, 2]
    found = list(runs(weights, step=6))
    assert [i for run in found for i in run] == list(range(len(weights)))
    assert all(len(run) == 1 or sum(weights[run.start : run.stop]) <= 6 for run in found)
    assert list(runs([])) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_in_chunks_are_what_the_library_writes(shape: str) -> None:
    groups, top_k = SHAPES[shape]
    answer = result(groups, top_k, with_ids=True)
    body = wire_tensors.encode_result(answer)
    written = save(load(body), header_of(body)["__metadata__"])
    assert header_of(body) == header_of(written)
    assert body[-data_bytes(body) :] == written[-data_bytes(written) :]
    assert int.from_bytes(body[:8], "little") % 8 == 0
    chunks = list(wire_tensors.result_chunks(answer))
    assert b"".join(chunks) == body
    assert max(map(len, chunks)) <= CHUNK


def header_of(body: bytes) -> dict[str, Any]:
    return from_json(body[8 : 8 + int.from_bytes(body[:8], "little")])


def data_bytes(body: bytes) -> int:
    return len(body) - 8 - int.from_bytes(body[:8], "little")
