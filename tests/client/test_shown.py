"""Results and requests in a notebook: short to look at, indexed and iterated as a list of completions is."""

from __future__ import annotations

import numpy as np
import pytest
from grpo_client import Group, ReferenceClient, ScoreRequest, TextScoreRequest
from grpo_client.http.exchange import Call, Reply
from grpo_client.http.transport import TransportSettings


def test_a_result_is_a_line(scored) -> None:
    request = ScoreRequest.of([[1, 2], [7]], [[[3, 4], []], [[8]]], temperature=[0.5, 2], extras=["rank"])
    result = scored(request)
    mean = result.logprobs.mean(dtype=np.float64)
    assert repr(result) == (
        f"ScoreResult(3 completions in 2 groups, 3 tokens, mean log-prob {mean:.4g}, all ok, temperature 0.5-2, extras rank, "
        "reference 'fake' f00d)"
    )
    assert repr(request) == "ScoreRequest(2 groups, 3 completions, temperature 0.5-2, extras rank)"
    assert repr(request.groups[0]) == "Group(prompt of 2 tokens, 2 completions of 0 to 2 tokens, temperature 0.5)"
    first = ", ".join(f"{v:.4g}" for v in result.logprobs[:2])
    assert repr(result[0]) == f"CompletionScores(2 tokens, ok, logprobs [{first}], extras rank)"
    result.status[1] = 1
    assert "2 ok and 1 nonfinite" in repr(result)


def test_however_much_it_holds_it_stays_a_line(scored) -> None:
    many = ScoreRequest.of(
        [list(range(900))] * 50, [[list(range(900))] * 20] * 50, token_ids=[[[[1, 2]] * 900] * 20] * 50
    )
    text = TextScoreRequest.of(
        ["long " * 9999, [{"role": "user", "content": "x" * 9999}] * 50], [["y" * 9999] * 50] * 2
    )
    everything = [many, many.groups[0], scored(many), scored(many)[0], text, *text.groups]
    everything += [Call("POST", "/x", body=b"x" * 9999), Reply(200, {}, b"x" * 9999, "http://x")]
    for value in everything:
        assert len(repr(value)) < 700, repr(value)
        assert "\n" not in repr(value)
    for length in (0, 1):
        assert repr(scored(ScoreRequest((Group(np.array([1], np.int32), ()),) * length)))


def test_no_key_is_shown() -> None:
    with ReferenceClient("http://x", api_key="s3cret") as client:
        settings = client._workers.get().core.settings
        for value in (
            client,
            settings,
            settings.transport(),
            TransportSettings(1.0, 1, {"Authorization": "Bearer s3cret"}),
        ):
            assert "s3cret" not in repr(value)


def test_indexing_and_iteration(scored) -> None:
    result = scored(ScoreRequest.of([[1, 2], [7]], [[[3, 4], []], [[8]]], extras=["entropy"], top_k=2))
    ragged = result.ragged()
    assert len(result) == 3
    for i, completion in enumerate(result):
        assert completion.logprobs.tolist() == result[i].logprobs.tolist() == ragged[i].tolist()
        assert result[i - 3].extras["top_ids"].shape == completion.extras["top_ids"].shape == (len(completion), 2)
    assert [c.logprobs.tolist() for c in result[1:]] == [r.tolist() for r in ragged[1:]]
    assert [len(c) for c in result[::-1]] == [1, 0, 2]
    assert len(result[np.int64(2)]) == 1
    for at in (3, -4):
        with pytest.raises(IndexError):
            result[at]
    for wrong in ("a", 1.0, None):
        with pytest.raises(TypeError):
            result[wrong]
    assert result == result  # arrays make == ambiguous unless it is identity
    assert result != scored(ScoreRequest.of([[1]], [[[2, 3]]]))
    assert [len(group) for group in result.groups()] == [2, 1]
