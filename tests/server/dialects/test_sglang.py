"""POST /generate, as slime, axolotl and lm-evaluation-harness send it."""

from __future__ import annotations

from typing import Any

import pytest
from bigram_engine import BigramEngine
from server_fakes import FakeTokenizer, serving

pytestmark = pytest.mark.anyio

IDS = [20, 31, 42, 53, 20]
BODY = {
    "input_ids": [IDS],
    "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
    "return_logprob": True,
    "logprob_start_len": 0,
}


async def ask(engine: BigramEngine, status: int = 200, **change: Any) -> Any:
    async with serving(engine) as client:
        response = await client.post("/generate", json={**BODY, **change})
    assert response.status_code == status, response.text
    return response.json()


async def test_input_logprobs(engine: BigramEngine) -> None:
    [answer] = await ask(engine)
    meta = answer["meta_info"]
    assert meta["input_token_logprobs"] == [
        [lp, i, None] for lp, i in zip([None, *engine.logprobs(IDS)], IDS, strict=True)
    ]
    assert meta["output_token_logprobs"] == []
    assert meta["prompt_tokens"] == len(IDS)
    assert answer["output_ids"] == []


async def test_a_flat_prompt_is_answered_by_a_lone_object(engine: BigramEngine) -> None:
    for body, ids in (
        ({"input_ids": IDS}, IDS),
        ({"input_ids": None, "text": "ab"}, FakeTokenizer()("ab", add_special_tokens=True)["input_ids"]),
    ):
        answer = await ask(engine, **body)
        assert [e[0] for e in answer["meta_info"]["input_token_logprobs"]] == [None, *engine.logprobs(ids)]


async def test_the_next_token_best_tokens_and_texts(engine: BigramEngine) -> None:
    [answer] = await ask(
        engine,
        sampling_params={"max_new_tokens": 1, "temperature": 0},
        top_logprobs_num=2,
        return_text_in_logprobs=True,
    )
    best, meta = engine.best(IDS), answer["meta_info"]
    after = engine.distribution(IDS)
    assert answer["output_ids"] == [best]
    assert answer["text"] == f" {best}"
    assert meta["output_token_logprobs"] == [[float(after[best]), best, str(best)]]
    assert meta["output_top_logprobs"][0][0] == [float(after[best]), best, str(best)]
    assert meta["input_top_logprobs"][0] is None
    for t in range(1, len(IDS)):
        scores = engine.distribution(IDS[:t])
        assert [e[1] for e in meta["input_top_logprobs"][t]] == (-scores).argsort()[:2].tolist()
        assert meta["input_token_logprobs"][t] == [float(scores[IDS[t]]), IDS[t], str(IDS[t])]


async def test_scores_from_a_position_on_share_what_comes_before(engine: BigramEngine) -> None:
    other = [*IDS[:3], 61, 62, 63]
    answers = await ask(engine, input_ids=[IDS, other], logprob_start_len=2, token_ids_logprob=[7, 8])
    for ids, answer in zip((IDS, other), answers, strict=True):
        meta = answer["meta_info"]
        assert [e[1] for e in meta["input_token_logprobs"]] == ids[2:]
        assert [e[0] for e in meta["input_token_logprobs"]] == [None, *engine.logprobs(ids, start=3)]
        wanted = meta["input_token_ids_logprobs"]
        assert wanted[0] is None
        for t in range(3, len(ids)):
            scores = engine.distribution(ids[:t])
            assert wanted[t - 2] == [[float(scores[i]), i, None] for i in (7, 8)]
    [[piece]] = engine.batches
    assert piece.prompt.tolist() == IDS[:3]
    assert len(piece.completions) == 2


async def test_fields_that_are_given_per_prompt(engine: BigramEngine) -> None:
    answers = await ask(
        engine,
        input_ids=[IDS, IDS],
        sampling_params=[{"max_new_tokens": 0, "temperature": t} for t in (0.5, 2.0)],
        logprob_start_len=[0, -1],
        top_logprobs_num=[0, 1],
        token_ids_logprob=[[5], [6]],
    )
    first, second = (a["meta_info"] for a in answers)
    assert [e[0] for e in first["input_token_logprobs"]] == [None, *engine.logprobs(IDS, 0.5)]
    assert first["input_token_ids_logprobs"][1][0][1] == 5
    assert second["input_token_logprobs"] == []
    assert second["input_top_logprobs"] == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"sampling_params": {"max_new_tokens": 8}}, "sampling_params.max_new_tokens"),
        ({"sampling_params": {}}, "sampling_params.max_new_tokens"),
        ({"sampling_params": {"max_new_tokens": 0, "n": 2}}, "sampling_params.n"),
        ({"stream": True}, "stream"),
        ({"return_logprob": False}, "return_logprob"),
        ({"logprob_start_len": 5}, "logprob_start_len"),
        ({"logprob_start_len": [0, 0]}, "logprob_start_len"),
        ({"input_ids": [[100]]}, "input_ids[0]"),
        ({"input_ids": [[]]}, "input_ids[0]"),
        ({"token_ids_logprob": [[1], [2]]}, "token_ids_logprob"),
        ({"top_logprobs_num": 1000}, "top_logprobs_num"),
    ],
)
async def test_what_cannot_be_answered_is_refused_by_name(
    engine: BigramEngine, change: dict[str, Any], param: str
) -> None:
    error = (await ask(engine, 422, **change))["error"]
    assert error["param"] == param, error


async def test_text_or_ids_not_both(engine: BigramEngine) -> None:
    assert "either" in (await ask(engine, 400, text="a"))["error"]["message"]
