"""What is written is what is read: both messages, both encodings, over generated values."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from grpo_client import (
    Group,
    ScoreRequest,
    ScoreResult,
    Status,
    TextGroup,
    TextScoreRequest,
    Usage,
    wire_json,
    wire_tensors,
)
from grpo_client.protocol import EXTRA_ARRAYS, EXTRAS, NORMALIZERS, PER_ID, ReferenceInfo
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

IDS = st.integers(0, 2**31 - 1)
BOTH = pytest.mark.parametrize("wire", [wire_json, wire_tensors], ids=["json", "tensors"])
TEMPERATURES = st.floats(2.0**-100, 2.0**100, width=32)


def ids(min_size: int = 0) -> st.SearchStrategy[np.ndarray]:
    return st.lists(IDS, min_size=min_size, max_size=6).map(lambda x: np.array(x, dtype=np.int32))


@st.composite
def requests(draw: st.DrawFn) -> ScoreRequest:
    width = draw(st.none() | st.integers(1, 3))
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        completions = tuple(draw(st.lists(ids(), min_size=1, max_size=3)))
        wanted = None
        if width is not None:
            wanted = tuple(draw(hnp.arrays(np.int32, (len(c), width), elements=IDS)) for c in completions)
        groups.append(Group(draw(ids(1)), completions, draw(TEMPERATURES), wanted))
    top_k = draw(st.integers(0, 50))
    extras = frozenset(draw(st.sets(st.sampled_from(EXTRAS))))
    return ScoreRequest(
        tuple(groups),
        draw(st.sampled_from(NORMALIZERS)),
        extras if top_k or width is not None else extras - {"tail"},
        top_k,
        draw(st.none() | st.text("0123456789abcdef", min_size=1)),
    )


@st.composite
def results(draw: st.DrawFn) -> ScoreResult:
    sizes = np.array(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)), dtype=np.int32)
    lengths = draw(hnp.arrays(np.int32, int(sizes.sum()), elements=st.integers(0, 4)))
    total = int(lengths.sum())
    width = draw(st.integers(1, 3))
    extras = {}
    for name in draw(st.sets(st.sampled_from(sorted(EXTRA_ARRAYS)))):
        shape = (total, width) if name in PER_ID else (total,)
        elements = IDS if EXTRA_ARRAYS[name] is np.int32 else st.floats(width=32, allow_nan=False, allow_infinity=False)
        extras[name] = draw(hnp.arrays(EXTRA_ARRAYS[name], shape, elements=elements))
    normalizer = draw(st.sampled_from(NORMALIZERS))
    with_text = draw(st.booleans())
    return ScoreResult(
        reference=ReferenceInfo(
            model=draw(st.text(max_size=5)), fingerprint="ab", version=3, dtype="bfloat16", mode="fast",
            normalizer=normalizer, max_length=9, vocab_size=7, bitwise=draw(st.none() | st.booleans()),
        ),
        normalizer=normalizer,
        temperature=draw(hnp.arrays(np.float32, len(sizes), elements=TEMPERATURES)),
        group_sizes=sizes,
        completion_lengths=lengths,
        logprobs=draw(hnp.arrays(np.float32, total, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))),
        status=draw(hnp.arrays(np.uint8, len(lengths), elements=st.sampled_from([int(s) for s in Status]))),
        extras=extras,
        usage=Usage(prompt_tokens=draw(st.integers(0, 10)), queue_ms=draw(st.floats(0, 1e6))),
        prompt_ids=tuple(draw(ids(1)) for _ in sizes) if with_text else None,
        completion_ids=tuple(np.arange(n, dtype=np.int32) for n in lengths) if with_text else None,
    )  # fmt: skip


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@BOTH
@given(request_=requests())
@settings(max_examples=60, deadline=None)
def test_request_round_trip(wire: ModuleType, request_: ScoreRequest) -> None:
    read = wire.decode_request(wire.encode_request(request_))
    assert replace(read, groups=()) == replace(request_, groups=())
    for group, original in zip(read.groups, request_.groups, strict=True):
        assert group.temperature == original.temperature
        assert same_bits(group.prompt, original.prompt)
        assert all(map(same_bits, group.completions, original.completions))
        assert (group.token_ids is None) == (original.token_ids is None)
        for rows, wanted in zip(group.token_ids or (), original.token_ids or (), strict=True):
            assert rows.tolist() == wanted.tolist()


@BOTH
@given(result=results())
@settings(max_examples=60, deadline=None)
def test_result_round_trip_bit_for_bit(wire: ModuleType, result: ScoreResult) -> None:
    read = wire.decode_result(wire.encode_result(result))
    for name in ("temperature", "group_sizes", "completion_lengths", "logprobs", "status"):
        assert same_bits(getattr(read, name), getattr(result, name)), name
    assert (read.reference, read.usage, read.normalizer) == (result.reference, result.usage, result.normalizer)
    assert set(read.extras) == set(result.extras)
    for name, values in result.extras.items():
        # Without a single position JSON cannot carry the width of a two-dimensional extra.
        assert same_bits(read.extras[name], values) or len(values) == len(read.extras[name]) == 0
    for mine, theirs in ((read.prompt_ids, result.prompt_ids), (read.completion_ids, result.completion_ids)):
        assert (mine is None) == (theirs is None)
        assert all(map(same_bits, mine or (), theirs or ()))


@given(bits=hnp.arrays(np.uint32, 64))
@settings(deadline=None)
def test_json_keeps_every_finite_fp32(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    result = one_completion(values)
    assert same_bits(wire_json.decode_result(wire_json.encode_result(result)).logprobs, values)


def test_json_writes_fp32_in_at_most_nine_digits() -> None:
    body = wire_json.encode_result(one_completion(np.array([-0.1, -12.5, 0.0], dtype=np.float32)))
    assert b'"logprobs":[[-0.100000001,-12.5,0.0]]' in body


def test_json_says_null_and_the_status_says_why() -> None:
    values = np.array([-1.0, np.nan, -np.inf], dtype=np.float32)
    result = replace(one_completion(values), status=np.array([Status.NONFINITE], dtype=np.uint8))
    body = wire_json.encode_result(result)
    assert b"[-1.0,null,null]" in body
    assert b'"status":["nonfinite"]' in body
    read = wire_json.decode_result(body)
    assert np.isnan(read.logprobs[1:]).all()
    assert read.status.tolist() == [Status.NONFINITE]


def test_tensors_keep_non_finite_figures() -> None:
    values = np.array([np.nan, -np.inf, np.inf], dtype=np.float32)
    assert same_bits(wire_tensors.decode_result(wire_tensors.encode_result(one_completion(values))).logprobs, values)


@BOTH
def test_scores_may_be_written_to(wire: ModuleType) -> None:
    read = wire.decode_result(wire.encode_result(one_completion(np.array([-1.0], dtype=np.float32))))
    read.logprobs[0] = 0.0  # torch.from_numpy warns about arrays that cannot be written to


@given(
    groups=st.lists(
        st.builds(
            TextGroup,
            st.text(min_size=1)
            | st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), min_size=1).map(tuple),
            st.lists(st.text(), min_size=1).map(tuple),
            TEMPERATURES,
        ),
        min_size=1,
    ).map(tuple)
)
@settings(max_examples=50, deadline=None)
def test_text_request_round_trip(groups: tuple[TextGroup, ...]) -> None:
    request = TextScoreRequest(groups, "stablemax", frozenset({"rank"}), 2, "abc")
    assert wire_json.decode_request(wire_json.encode_request(request)) == request


def test_both_encodings_carry_the_same_temperature() -> None:
    request = ScoreRequest.of([[1]], [[[2]]], temperature=0.7)
    read = [wire.decode_request(wire.encode_request(request)) for wire in (wire_json, wire_tensors)]
    assert read[0].groups[0].temperature == read[1].groups[0].temperature == float(np.float32(0.7))


def one_completion(logprobs: np.ndarray) -> ScoreResult:
    return ScoreResult(
        reference=ReferenceInfo(
            model="m", fingerprint="f", version=1, dtype="float32", mode="exact", max_length=9, vocab_size=9
        ),
        normalizer="softmax",
        temperature=np.ones(1, np.float32),
        group_sizes=np.ones(1, np.int32),
        completion_lengths=np.array([len(logprobs)], dtype=np.int32),
        logprobs=logprobs.astype(np.float32),
        status=np.zeros(1, np.uint8),
    )
