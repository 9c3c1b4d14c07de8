"""What distillation trainers ask: ids for each position (miles), zero new tokens by other names (axolotl), no text."""

from __future__ import annotations

from typing import Any

import pytest
from bigram_engine import BigramEngine
from server_fakes import VOCAB, serving

pytestmark = pytest.mark.anyio

IDS = [20, 31, 42, 53, 20]
POSITIONS = [[], [], [5, 7], [9], [11, 11, 12]]
BODY = {
    "input_ids": IDS, "sampling_params": {"max_new_tokens": 0, "temperature": 1.0}, "return_logprob": True,
    "logprob_start_len": 0, "token_ids_logprob_positions": POSITIONS,
}  # fmt: skip


async def post(engine: Any, path: str, body: dict[str, Any], status: int = 200, **settings: Any) -> Any:
    async with serving(engine, **settings) as client:
        response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def expected(engine: BigramEngine, ids: list[int], positions: list[list[int]], first: int) -> list[Any]:
    return [[[float(engine.distribution(ids[:t])[i]), i, None] for i in positions[t]] for t in range(first, len(ids))]


@pytest.mark.parametrize("start", [0, 2])
async def test_each_position_is_answered_with_its_own_ids(engine: BigramEngine, start: int) -> None:
    meta = (await post(engine, "/generate", {**BODY, "logprob_start_len": start}))["meta_info"]
    assert meta["input_token_ids_logprobs"] == [None, *expected(engine, IDS, POSITIONS, start + 1)]
    assert [e[0] for e in meta["input_token_logprobs"]] == [None, *engine.logprobs(IDS, start=start + 1)]
    [[piece]] = engine.batches
    assert sum(ids.size for ids in piece.token_ids) == 3 * (
        len(IDS) - start - 1
    )  # as wide as the longest, not the union


async def test_several_prompts_have_several_lists_of_them(engine: BigramEngine) -> None:
    other = [40, 41, 42]
    asked = {**BODY, "input_ids": [IDS, other], "token_ids_logprob_positions": [POSITIONS, [[], [3], [4]]]}
    for ids, positions, answer in zip(
        (IDS, other), asked["token_ids_logprob_positions"], await post(engine, "/generate", asked), strict=True
    ):
        assert answer["meta_info"]["input_token_ids_logprobs"] == [None, *expected(engine, ids, positions, 1)]


async def test_nothing_asked_anywhere_is_answered_with_nothing(engine: BigramEngine) -> None:
    meta = (await post(engine, "/generate", {**BODY, "token_ids_logprob_positions": [[]] * 5}))["meta_info"]
    assert meta["input_token_ids_logprobs"] == [None, [], [], [], []]


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids_logprob_positions": POSITIONS[1:]},
        {"token_ids_logprob_positions": [POSITIONS]},
        {"token_ids_logprob_positions": [[], [], [5], [VOCAB], []]},
        {"token_ids_logprob_positions": [[], [], [5], list(range(9)), []]},
        {"token_ids_logprob": [5]},
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_its_name(engine: BigramEngine, change: dict[str, Any]) -> None:
    error = (await post(engine, "/generate", {**BODY, **change}, 422, max_top_k=8))["error"]
    assert error["param"] == "token_ids_logprob_positions"
    assert not engine.batches


async def test_too_wide_a_union_is_told_of_the_field_for_positions(engine: BigramEngine) -> None:
    asked = {**BODY, "token_ids_logprob_positions": None, "token_ids_logprob": list(range(9))}
    error = (await post(engine, "/generate", asked, 422, max_top_k=8))["error"]
    assert error["param"] == "token_ids_logprob"
    assert "token_ids_logprob_positions" in error["message"]


COMPLETION = {"prompt": [IDS], "echo": True, "logprobs": True, "prompt_logprobs": 2}


@pytest.mark.parametrize(
    "zero",
    [
        {"max_tokens": 0},
        {"max_new_tokens": 0},
        {"sampling_params": {"max_tokens": 0}},
        {"max_new_tokens": 0, "sampling_params": {"max_tokens": 0}, "top_logprobs": 2, "skip_special_tokens": False},
    ],
)
async def test_zero_new_tokens_by_any_name(engine: BigramEngine, zero: dict[str, Any]) -> None:
    answer = await post(engine, "/v1/completions", {**COMPLETION, **zero})
    [choice] = answer["choices"]
    assert answer["usage"]["completion_tokens"] == 0
    assert [next(iter(p)) for p in choice["prompt_logprobs"][1:]] == [str(i) for i in IDS[1:]]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({}, "max_tokens"),
        ({"max_tokens": 0, "max_new_tokens": 1}, "max_new_tokens"),
        ({"max_tokens": 0, "sampling_params": {"max_tokens": 1}}, "sampling_params.max_tokens"),
        ({"sampling_params": {"max_tokens": 0, "temperature": 0.5}}, "sampling_params.temperature"),
        ({"sampling_params": {"max_tokens": 0, "top_p": 0.5}}, "sampling_params.top_p"),
        ({"max_tokens": 0, "top_logprobs": 7}, "top_logprobs"),
    ],
)
async def test_names_that_differ_or_change_figures_are_refused(
    engine: BigramEngine, change: dict[str, Any], param: str
) -> None:
    error = (await post(engine, "/v1/completions", {**COMPLETION, **change}, 422))["error"]
    assert error["param"] == param
    assert not engine.batches


@pytest.mark.parametrize(
    ("k", "detokenize", "decoded"), [(2, None, True), (2, False, False), (21, None, False), (21, True, True)]
)
async def test_text_of_many_best_tokens_is_not_decoded_unasked(
    engine: BigramEngine, k: int, detokenize: bool | None, decoded: bool
) -> None:
    params = {"max_tokens": 0, "prompt_logprobs": k, "detokenize": detokenize}
    [choice] = (await post(engine, "/v1/completions", {"prompt": [IDS], **params}))["choices"]
    generated = await post(engine, "/inference/v1/generate", {"token_ids": IDS, "sampling_params": params})
    for answered in (choice["prompt_logprobs"], generated["prompt_logprobs"]):
        texts = {entry["decoded_token"] for position in answered[1:] for entry in position.values()}
        assert (None not in texts) == decoded
        assert decoded or texts == {None}


async def test_the_text_of_an_id_is_decoded_once(engine: BigramEngine) -> None:
    hosted, decodes = engine.hosted, []
    tokenizer = hosted.tokenizer

    class Counting(type(tokenizer)):
        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            decodes.append(tuple(token_ids))
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens)

    object.__setattr__(hosted, "tokenizer", Counting())

    class Same(type(engine)):
        hosted = property(lambda self: hosted)

    engine.__class__ = Same
    body = {"token_ids": IDS, "sampling_params": {"max_tokens": 0, "prompt_logprobs": 2}}
    async with serving(engine) as client:
        answers = [(await client.post("/inference/v1/generate", json=body)).json() for _ in range(2)]
    assert answers[0]["prompt_logprobs"] == answers[1]["prompt_logprobs"]
    assert decodes
    assert len(decodes) == len(set(decodes))
