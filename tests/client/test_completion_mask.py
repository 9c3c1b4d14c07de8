"""`completion_mask`: what is context alone is neither asked nor answered, in each encoding, and everybody can tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from grpo_client import ProtocolError, ScoreRequest, wire_json, wire_tensors
from grpo_client.errors import InvalidResponse
from grpo_client.files.rollouts import ScoreDefaults, read_rollout
from grpo_client.protocol import EXTRA_ARRAYS, ReferenceInfo, ScoreResult
from grpo_client.splitting import merge, split
from grpo_client.validation.answers import check_answer
from grpo_client.wire_json.result_writer import result_object
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

WIRES = [wire_json, wire_tensors]
REFERENCE = ReferenceInfo(
    model="m", fingerprint="f" * 64, version=1, dtype="float32", mode="exact", max_length=99, vocab_size=50
)


def ask(mask=((1, 0, 1), (0, 0))):
    return ScoreRequest.of(
        [[1, 2], [3]],
        [[[4, 5, 6], [7, 8]], [[9]]],
        extras=("entropy", "rank"),
        top_k=2,
        completion_mask=[[*mask], [[1]]],
    )


def answer(request, seed=0):
    """Any figures, as a server has them: NaN and -1 where nothing is asked."""
    rng = np.random.default_rng(seed)
    mask = request.completion_mask
    n = int(request.completion_lengths.sum())
    widths = {"top_ids": (2,), "top_logprobs": (2,)}
    extras = {}
    for name in ("entropy", "rank", "top_ids", "top_logprobs"):
        values = (-rng.random((n, *widths.get(name, ())))).astype(np.float32)
        values = np.abs(values) if name == "entropy" else values
        extras[name] = values if EXTRA_ARRAYS[name] is np.float32 else (np.abs(values) * 40).astype(np.int32)
    logprobs = -rng.random(n).astype(np.float32)
    if mask is not None:
        logprobs[~mask] = np.nan
        for values in extras.values():
            values[~mask] = np.nan if values.dtype == np.float32 else -1
    return ScoreResult(
        REFERENCE,
        "softmax",
        np.array([g.temperature for g in request.groups], np.float32),
        request.group_sizes,
        request.completion_lengths,
        logprobs,
        np.zeros(len(request.completion_lengths), np.uint8),
        extras,
        completion_mask=mask,
    )


@pytest.mark.parametrize("wire", WIRES)
def test_a_request_and_its_answer_come_back_as_they_were(wire):
    request = ask()
    again = wire.decode_request(wire.encode_request(request))
    np.testing.assert_array_equal(again.completion_mask, [1, 0, 1, 0, 0, 1])
    result = answer(request)
    back = wire.decode_result(wire.encode_result(result))
    check_answer(back, request)
    np.testing.assert_array_equal(back.completion_mask, request.completion_mask)
    np.testing.assert_array_equal(back.logprobs, result.logprobs)
    for name, values in result.extras.items():
        np.testing.assert_array_equal(back.extras[name], values)
    np.testing.assert_array_equal(back[0].extras["rank"] >= 0, [True, False, True])


masks = st.lists(
    st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=3), min_size=1, max_size=4
)  # [group][completion][token]


@settings(deadline=None)
@given(masks, st.sampled_from(WIRES))
def test_any_mask_goes_both_ways(drawn, wire):
    completions = [[[1] * len(mask) for mask in group] for group in drawn]
    request = ScoreRequest.of(
        [[1]] * len(drawn), completions, extras=("entropy", "rank"), top_k=2, completion_mask=[[*g] for g in drawn]
    )
    again = wire.decode_request(wire.encode_request(request))
    assert [[m.tolist() for m in g.completion_mask] for g in again.groups] == drawn
    result = answer(request)
    back = wire.decode_result(wire.encode_result(result))
    np.testing.assert_array_equal(back.logprobs, result.logprobs)
    for name, values in result.extras.items():
        if back.completion_mask.any():  # no position, no width
            np.testing.assert_array_equal(back.extras[name], values)


@pytest.mark.parametrize("wire", WIRES)
def test_without_a_mask_the_bytes_do_not_speak_of_one(wire):
    request = replace(ask(), groups=tuple(replace(g, completion_mask=None) for g in ask().groups))
    assert b"completion_mask" not in wire.encode_request(request)
    assert b"completion_mask" not in wire.encode_result(answer(request))


def test_the_answer_is_as_large_as_what_is_asked():
    group = result_object(answer(ask()))["groups"][0]
    assert [len(rows) for rows in group["logprobs"]] == [3, 2]
    assert [len(rows) for rows in group["top_ids"]] == [2, 0]
    assert [len(rows) for rows in group["entropy"]] == [2, 0]
    assert group["completion_mask"] == [[1, 0, 1], [0, 0]]
    n = 4096
    request = ScoreRequest.of(
        [[1]], [[[2] * n]], extras=("entropy", "rank"), top_k=2, completion_mask=[[[1] * 8 + [0] * (n - 8)]]
    )
    body = len(wire_tensors.encode_result(answer(request)))
    assert body < 5 * n + 2000  # log-probs and the mask, and hardly anything beside


def test_a_group_without_a_mask_beside_one_with_is_asked_whole():
    first, second = ask().groups
    request = replace(ask(), groups=(first, replace(second, completion_mask=None)))
    for wire in WIRES:
        assert wire.decode_request(wire.encode_request(request)).completion_mask.tolist() == [1, 0, 1, 0, 0, 1]


def test_masks_of_trainers_are_taken_as_they_come():
    torch = pytest.importorskip("torch")
    for mask in (
        [[True, False, True]],
        [np.array([1, 0, 1], np.uint8)],
        np.array([[1.0, 0.0, 1.0]]),
        torch.tensor([[1, 0, 1]]),
        torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.bfloat16),
    ):
        flat = ScoreRequest.of([[1]], [[4, 5, 6]], completion_mask=mask)
        assert flat.completion_mask.tolist() == [True, False, True]
        nested = ScoreRequest.of([[1]], [[[4, 5, 6]]], completion_mask=[mask])
        assert nested.completion_mask.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("mask", "param"),
    [
        ([[[1, 0], [0, 0]], [[1]]], "completion_mask[0][0]"),
        ([[[1, 0, 1]], [[1]]], "completion_mask[0]"),
        ([[[1, 0, 1], [0, 0]]], "completion_mask"),
        ([[[1, 2, 1], [0, 0]], [[1]]], "completion_mask[0][0][1]"),
        ([[[1, 0.5, 1], [0, 0]], [[1]]], "completion_mask[0][0][1]"),
        ([[[1, "1", 1], [0, 0]], [[1]]], "completion_mask[0][0][1]"),
        ([[[1, None, 1], [0, 0]], [[1]]], "completion_mask[0][0][1]"),
        ([["101", [0, 0]], [[1]]], "completion_mask[0][0]"),
        ([None, [[1]]], "completion_mask[0]"),
        (7, "completion_mask"),
    ],
)
def test_a_wrong_mask_is_refused_by_its_name(mask, param):
    with pytest.raises(ProtocolError) as found:
        ScoreRequest.of([[1, 2], [3]], [[[4, 5, 6], [7, 8]], [[9]]], completion_mask=mask)
    assert found.value.param == param
    message = {
        "groups": [{"prompt": [1, 2], "completions": [[4, 5, 6], [7, 8]]}, {"prompt": [3], "completions": [[9]]}]
    }
    with pytest.raises(ProtocolError) as found:
        wire_json.decode_request(to_json(message | {"completion_mask": mask}))
    assert found.value.param == param


def test_a_wrong_tensor_is_refused_by_its_name():
    from grpo_client.wire_tensors.container import read_container, write_container
    from grpo_client.wire_tensors.request import _KNOWN

    _, arrays = read_container(wire_tensors.encode_request(ask()), _KNOWN, 2**16)
    for wrong, param in (
        (np.array([1, 0, 2, 0, 0, 1], np.uint8), "completion_mask[2]"),
        (np.array([1, 0, 1], np.uint8), "completion_lengths"),
        (np.array([1, 0, 1, 0, 0, 1], np.int32), "completion_mask"),
    ):
        with pytest.raises(ProtocolError) as found:
            wire_tensors.decode_request(write_container(arrays | {"completion_mask": wrong}, {}))
        assert found.value.param == param


def test_text_has_no_positions_to_mask():
    message = {"groups": [{"prompt": "a", "completions": ["b"]}], "completion_mask": [[[1]]]}
    with pytest.raises(ProtocolError) as found:
        wire_json.decode_request(to_json(message))
    assert found.value.param == "completion_mask"


def test_a_large_request_is_cut_with_its_mask_and_joined_with_it():
    request = ask()
    parts = split(request, 4)
    assert len(parts) == 3
    joined = merge(request, [answer(part, i) for i, part in enumerate(parts)])
    np.testing.assert_array_equal(joined.completion_mask, request.completion_mask)
    check_answer(joined, request)


def test_an_answer_under_another_mask_is_none():
    request, other = ask(), ask(mask=((1, 1, 1), (0, 0)))
    with pytest.raises(InvalidResponse) as found:
        check_answer(answer(other), request)
    assert found.value.param == "completion_mask"
    with pytest.raises(InvalidResponse):
        check_answer(replace(answer(request), completion_mask=None), request)


def test_a_hole_where_something_was_asked_is_found():
    result = answer(ask())
    result.logprobs[0] = np.nan
    with pytest.raises(InvalidResponse) as found:
        check_answer(result, ask())
    assert found.value.param == "logprobs"


def test_padded_is_filled_where_nothing_was_asked():
    result = answer(ask())
    values, mask = result.padded(fill=0.0)
    np.testing.assert_array_equal(mask, [[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert np.isfinite(values).all()
    assert (values[~mask] == 0).all()
    np.testing.assert_array_equal(values[mask], result.logprobs[result.completion_mask])


def test_a_line_of_a_file_may_have_a_mask():
    line = b'{"prompt": [1], "completions": [[4, 5, 6]], "completion_mask": [[1, 0, 1]]}'
    assert read_rollout(1, line, ScoreDefaults()).request.completion_mask.tolist() == [True, False, True]
    with pytest.raises(ProtocolError) as found:
        read_rollout(1, line.replace(b"[[1, 0, 1]]", b"[[1, 0]]"), ScoreDefaults())
    assert found.value.param == "completion_mask[0]"


def test_a_request_made_by_hand_is_looked_at():
    from grpo_client.validation.request_values import check_values

    group = ask().groups[0]
    broken = replace(group, completion_mask=(np.ones(3), np.ones(2)))
    with pytest.raises(ProtocolError, match="bool arrays"):
        check_values(ScoreRequest((broken,)))
