"""POST /v1/completions with echo, as lm-evaluation-harness and openai-python use it."""

from __future__ import annotations

from typing import Any

import pytest
from bigram_engine import BigramEngine
from server_fakes import CURSED, MAX_LENGTH, FakeTokenizer, serving

pytestmark = pytest.mark.anyio

IDS = [20, 31, 42, 53, 20]
ECHO = {"model": "fake", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}


async def ask(engine: BigramEngine, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    async with serving(engine) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == status, response.text
    return response.json()


async def test_echo_gives_every_token_its_score_and_one_entry_more_for_the_next(engine: BigramEngine) -> None:
    answer = await ask(engine, {**ECHO, "prompt": [IDS, [7]]})
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:-1] == engine.logprobs(IDS)
    best = engine.best(IDS)
    assert logprobs["token_logprobs"][-1] == float(engine.distribution(IDS)[best])
    assert logprobs["tokens"] == [str(IDS[0]), *(f" {i}" for i in [*IDS[1:], best])]
    assert answer["choices"][0]["text"] == "".join(logprobs["tokens"])
    assert {len(v) for v in logprobs.values()} == {len(IDS) + 1}
    # A single token: nothing predicts it, and what follows is known.
    assert answer["choices"][1]["logprobs"]["token_logprobs"] == [
        None,
        float(engine.distribution([7])[engine.best([7])]),
    ]
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")


async def test_a_harness_that_compares_with_the_maximum_sees_whether_a_token_was_the_best(engine: BigramEngine) -> None:
    greedy = [20]
    for _ in range(4):
        greedy.append(engine.best(greedy))
    ids = [*greedy, (greedy[-1] + 1) % 100]
    logprobs = (await ask(engine, {**ECHO, "prompt": ids}))["choices"][0]["logprobs"]
    pairs = zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True)
    is_best = [token == max(top.values()) for token, top in pairs]
    assert is_best == [*(engine.best(ids[:t]) == ids[t] for t in range(1, len(ids))), True]
    assert any(is_best[:-1])


async def test_tokens_that_read_alike_do_not_hide_the_better_one(engine: BigramEngine) -> None:
    class Mumbling(FakeTokenizer):
        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            return "?" * len(token_ids)

    engine.tokenizer = Mumbling()
    best = engine.best(IDS)
    for last, expected in ((best, True), ((best + 1) % 100, False)):
        body = {**ECHO, "prompt": [*IDS, last], "logprobs": 5}
        logprobs = (await ask(engine, body))["choices"][0]["logprobs"]
        assert logprobs["top_logprobs"][-2] == {"?": float(engine.distribution(IDS)[best])}
        assert (logprobs["token_logprobs"][-2] == max(logprobs["top_logprobs"][-2].values())) is expected


async def test_without_a_new_token_the_arrays_are_as_long_as_the_prompt(engine: BigramEngine) -> None:
    [choice] = (await ask(engine, {**ECHO, "prompt": IDS, "max_tokens": 0}))["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, *engine.logprobs(IDS)]
    assert choice["text"] == " ".join(map(str, IDS))


async def test_without_echo_only_the_next_token_is_reported(engine: BigramEngine) -> None:
    body = {"prompt": [IDS], "max_tokens": 1, "logprobs": 3, "return_token_ids": True}
    [choice] = (await ask(engine, body))["choices"]
    best = engine.best(IDS)
    assert choice["text"] == f" {best}"
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (IDS, [best])
    assert choice["logprobs"]["tokens"] == [f" {best}"]
    assert len(choice["logprobs"]["top_logprobs"][0]) == 3


async def test_text_is_tokenized_here(engine: BigramEngine) -> None:
    tokenizer = FakeTokenizer()
    for prompt in ("abc", ["abc", "d"]):
        for special in (True, False):
            answer = await ask(engine, {**ECHO, "prompt": prompt, "add_special_tokens": special})
            ids = tokenizer("abc", add_special_tokens=special)["input_ids"]
            logprobs = answer["choices"][0]["logprobs"]
            assert logprobs["token_logprobs"][:-1] == [None, *engine.logprobs(ids)]
            assert len(answer["choices"]) == (1 if prompt == "abc" else 2)
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:i])) for i in range(len(ids) + 1)]


async def test_token_ids_in_place_of_strings(engine: BigramEngine) -> None:
    body = {**ECHO, "prompt": IDS, "return_tokens_as_token_ids": True}
    logprobs = (await ask(engine, body))["choices"][0]["logprobs"]
    assert logprobs["tokens"][0] == f"token_id:{IDS[0]}"
    assert f"token_id:{IDS[1]}" in logprobs["top_logprobs"][1]


async def test_ids_score_without_a_tokenizer(engine: BigramEngine) -> None:
    engine.tokenizer = None
    logprobs = (await ask(engine, {**ECHO, "prompt": IDS}))["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][1:-1] == engine.logprobs(IDS)
    assert "token ids" in (await ask(engine, {**ECHO, "prompt": "a"}, 422))["error"]["message"]


@pytest.mark.parametrize(("temperature", "scored_at"), [(0, 1.0), (None, 1.0), (2, 2.0), (0.5, 0.5)])
async def test_temperature_is_honoured_and_greedy_scores_at_one(
    engine: BigramEngine, temperature: float, scored_at: float
) -> None:
    answer = await ask(engine, {**ECHO, "prompt": IDS, "temperature": temperature})
    assert answer["choices"][0]["logprobs"]["token_logprobs"][1:-1] == engine.logprobs(IDS, scored_at)


async def test_vllm_prompt_logprobs_hold_the_actual_token_whatever_its_rank(engine: BigramEngine) -> None:
    body = {"prompt": [IDS, IDS[:2]], "max_tokens": 1, "temperature": 2.0, "prompt_logprobs": 2}
    choices = (await ask(engine, body))["choices"]
    for ids, choice in zip((IDS, IDS[:2]), choices, strict=True):
        assert choice["prompt_logprobs"][0] is None
        assert len(choice["prompt_logprobs"]) == len(ids)
        for t in range(1, len(ids)):
            scores = engine.distribution(ids[:t], 2.0)
            position = choice["prompt_logprobs"][t]
            actual = position[str(ids[t])]
            assert actual["logprob"] == float(scores[ids[t]])
            assert actual["rank"] == 1 + int((scores > scores[ids[t]]).sum())
            by_rank = sorted(position.items(), key=lambda item: item[1]["rank"])[:2]
            assert [int(i) for i, _ in by_rank] == (-scores).argsort()[:2].tolist()
        assert choice["logprobs"] is None


async def test_vllm_prompt_logprobs_of_the_actual_token_alone(engine: BigramEngine) -> None:
    body = {"prompt": [IDS], "max_tokens": 0, "prompt_logprobs": 0}
    [choice] = (await ask(engine, body))["choices"]
    assert [list(p) for p in choice["prompt_logprobs"][1:]] == [[str(i)] for i in IDS[1:]]


async def test_what_is_not_finite_is_null(engine: BigramEngine) -> None:
    answer = await ask(engine, {**ECHO, "prompt": [20, CURSED, 21], "prompt_logprobs": 0})
    assert answer["choices"][0]["logprobs"]["token_logprobs"][1] is None
    assert answer["choices"][0]["prompt_logprobs"][1][str(CURSED)]["logprob"] is None


async def test_a_full_context_has_no_room_for_a_next_token(engine: BigramEngine) -> None:
    full = [20] * MAX_LENGTH
    refused = await ask(engine, {**ECHO, "prompt": [full]}, 413)
    assert "max_tokens=0" in refused["error"]["message"]
    await ask(engine, {**ECHO, "prompt": full, "max_tokens": 0})
    [choice] = (await ask(engine, {"prompt": full, "max_tokens": 1, "prompt_logprobs": 1}))["choices"]
    assert len(choice["prompt_logprobs"]) == MAX_LENGTH
    await ask(engine, {**ECHO, "prompt": [*full, 20], "max_tokens": 0}, 413)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"stream": True}, "stream"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ],
)
async def test_generation_is_refused_and_told_what_this_is(
    engine: BigramEngine, change: dict[str, Any], param: str
) -> None:
    error = (await ask(engine, {**ECHO, "prompt": IDS, **change}, 422))["error"]
    assert error["param"] == param
    assert "scores given tokens" in error["message"]
    assert not engine.batches


async def test_chat_is_refused_and_told_where_to_go(engine: BigramEngine) -> None:
    async with serving(engine) as client:
        response = await client.post("/v1/chat/completions", json={"messages": []})
    assert response.status_code == 422
    assert "/v1/logprobs" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"prompt": [[5, 100]]}, 422, "prompt[0]"),
        ({"prompt": [[5], []]}, 422, "prompt[1]"),
        ({"prompt": []}, 422, "prompt[0]"),
        ({"prompt": [[1.5]]}, 400, "prompt.sequences[0][0]"),
        ({"prompt": [True]}, 400, "prompt.ids[0]"),
        ({"prompt": None}, 400, "prompt.text"),
        ({"logprobs": 1000}, 422, "logprobs"),
        ({"temperature": -1}, 422, "temperature"),
        ({"echo": False, "max_tokens": 0}, 422, "echo"),
    ],
)
async def test_a_broken_request_is_told_which_field(
    engine: BigramEngine, change: dict[str, Any], status: int, param: str
) -> None:
    error = (await ask(engine, {**ECHO, "prompt": IDS, **change}, status))["error"]
    assert error["param"] == param, error


async def test_the_schema_describes_the_dialects(engine: BigramEngine) -> None:
    async with serving(engine) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/v1/completions", "/inference/v1/generate", "/generate", "/get_sequence_logprobs/"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"], path
        assert "$ref" not in str(schema)
