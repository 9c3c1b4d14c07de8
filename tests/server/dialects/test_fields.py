"""Every field of every dialect: what changes no figure is taken, what would is refused by its name, null is the default."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from bigram_engine import BigramEngine
from field_requests import (
    IDS,
    NEUTRAL,
    OPENAI_SHAPING,
    SHAPING,
    figures,
    legacy,
    openai,
    post,
    refused,
    sglang,
    sglang_top,
    vllm,
)
from server_fakes import VOCAB

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", [*NEUTRAL, "temperature", "best_of", "min_tokens", "logprob_token_ids"])
async def test_what_changes_nothing_is_taken(engine: BigramEngine, name: str) -> None:
    for dialect in (openai, vllm, sglang):
        plain = figures(await dialect(engine, {}))
        for value in [None, *NEUTRAL.get(name, [])]:
            assert figures(await dialect(engine, {name: value})) == plain, (dialect.__name__, value)


@pytest.mark.parametrize(("name", "value"), OPENAI_SHAPING.items())
async def test_openai_refuses_by_name_what_asks_for_other_figures(engine: BigramEngine, name: str, value: Any) -> None:
    refused(await openai(engine, {name: value}), name)
    assert not engine.batches


@pytest.mark.parametrize(("name", "value"), [*SHAPING.items(), ("flat_logprobs", True), ("min_tokens", 1)])
async def test_vllm_refuses_by_name_what_asks_for_other_figures(engine: BigramEngine, name: str, value: Any) -> None:
    refused(await vllm(engine, {name: value}), f"sampling_params.{name}")
    assert not engine.batches


@pytest.mark.parametrize(("name", "value"), [*SHAPING.items(), ("min_new_tokens", 1)])
async def test_sglang_refuses_by_name_what_asks_for_other_figures(engine: BigramEngine, name: str, value: Any) -> None:
    refused(await sglang(engine, {name: value}), f"sampling_params.{name}")
    assert not engine.batches


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream", True),
        ("input_embeds", [[0.5]]),
        ("image_data", "x.png"),
        ("lora_path", "x"),
        ("lora_path", ["x"]),
        ("custom_logit_processor", "x"),
        ("session_params", {"id": "x"}),
        ("multi_item_delimiter_indices", [1]),
        ("return_hidden_states", True),
        ("return_entropy", True),
        ("return_logprob", [True, False]),
    ],
)
async def test_sglang_refuses_other_input_other_weights_and_other_figures(
    engine: BigramEngine, name: str, value: Any
) -> None:
    refused(await sglang_top(engine, {name: value}), name)


async def test_truncation_says_nothing_where_the_best_token_is_asked_for(engine: BigramEngine) -> None:
    greedy = {"temperature": 0, "top_p": 0.5, "top_k": 1, "min_p": 0.2}
    for dialect in (openai, vllm, sglang):
        assert figures(await dialect(engine, greedy)) == figures(await dialect(engine, {"temperature": 0}))


@pytest.mark.parametrize(
    ("dialect", "names"),
    [
        (openai, ["model", "temperature", "return_token_ids", "return_tokens_as_token_ids", "add_special_tokens"]),
        (vllm, ["temperature", "detokenize", "logprobs", "prompt_logprob_token_ids", "prompt_logprob_start"]),
        (
            sglang_top,
            ["text", "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs", "stream", "lora_path"],
        ),
        (legacy, ["top_logprobs", "temperature", "response_format"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_null_is_the_default(engine: BigramEngine, dialect: Any, names: list[str]) -> None:
    plain = figures(await dialect(engine, {}))
    for name in names:
        assert figures(await dialect(engine, {name: None})) == plain, name


async def test_null_and_its_like_where_the_default_is_to_ask_for_nothing(engine: BigramEngine) -> None:
    refused(await sglang_top(engine, {"sampling_params": None}), "sampling_params.max_new_tokens")
    refused(await sglang_top(engine, {"return_logprob": None}), "return_logprob")
    refused(await openai(engine, {"echo": None, "prompt_logprobs": None, "max_tokens": 0}), "echo")
    refused(await openai(engine, {"max_tokens": None}), "max_tokens")
    assert figures(await sglang_top(engine, {"logprob_start_len": None}))["meta_info"]["input_token_logprobs"] == []
    for none in (None, False):
        [choice] = figures(await openai(engine, {"logprobs": none, "prompt_logprobs": none}))["choices"]
        assert choice["logprobs"] is None
        assert "prompt_logprobs" not in choice
    assert figures(await openai(engine, {"logprobs": True})) == figures(await openai(engine, {"logprobs": 1}))
    assert figures(await vllm(engine, {"prompt_logprobs": True})) == figures(await vllm(engine, {"prompt_logprobs": 1}))


async def test_minus_one_is_the_whole_vocabulary_where_the_server_gives_so_many(engine: BigramEngine) -> None:
    for name in ("prompt_logprobs", "logprobs"):
        message = refused(await openai(engine, {name: -1}, max_top_k=VOCAB - 1), name)
        assert str(VOCAB) in message
        assert "--max-top-k" in message
        refused(await openai(engine, {name: -2}), name, 400)
        refused(await openai(engine, {name: VOCAB + 1}), name)
    refused(await vllm(engine, {"prompt_logprobs": -1}, max_top_k=VOCAB - 1), "sampling_params.prompt_logprobs")
    [choice] = figures(await openai(engine, {"prompt_logprobs": -1, "logprobs": 1}, max_top_k=VOCAB))["choices"]
    answer = figures(await vllm(engine, {"prompt_logprobs": -1}, max_top_k=VOCAB))
    for positions in (choice["prompt_logprobs"], answer["prompt_logprobs"]):
        for t in range(1, len(IDS)):
            given = {int(i): entry["logprob"] for i, entry in positions[t].items()}
            assert given == dict(enumerate(engine.distribution(IDS[:t]).tolist()))
            assert sorted(entry["rank"] for entry in positions[t].values()) == list(range(1, VOCAB + 1))
    assert len(choice["logprobs"]["top_logprobs"][1]) <= 2
    [choice] = figures(await openai(engine, {"logprobs": -1, "prompt_logprobs": None}, max_top_k=VOCAB))["choices"]
    assert {len(top) for top in choice["logprobs"]["top_logprobs"][1:]} == {VOCAB}


async def test_ids_that_are_asked_for_after_the_prompt(engine: BigramEngine) -> None:
    asked = [7, 9, 3]
    after, best = engine.distribution(IDS), engine.best(IDS)
    wanted = {i: float(after[i]) for i in [best, *asked]}
    by_id = {"return_tokens_as_token_ids": True, "logprob_token_ids": asked, "logprobs": 1}
    for echo in (True, False):
        [choice] = figures(await openai(engine, {**by_id, "echo": echo}))["choices"]
        last = choice["logprobs"]["top_logprobs"][-1]
        assert {int(name.removeprefix("token_id:")): value for name, value in last.items()} == wanted
    [entry] = figures(await vllm(engine, {"logprobs": 1, "logprob_token_ids": asked}))["choices"][0]["logprobs"][
        "content"
    ]
    assert (entry["token"], entry["logprob"]) == (f"token_id:{best}", wanted[best])
    assert [(e["token"], e["logprob"]) for e in entry["top_logprobs"]] == [(f"token_id:{i}", wanted[i]) for i in asked]
    for start in (0, -1):
        meta = figures(await sglang_top(engine, {"token_ids_logprob": asked, "logprob_start_len": start}))["meta_info"]
        assert meta["output_token_ids_logprobs"] == [[[wanted[i], i, None] for i in asked]]
    refused(await openai(engine, {"logprob_token_ids": asked, "logprobs": None}), "logprob_token_ids")
    refused(await openai(engine, {"logprob_token_ids": asked, "max_tokens": 0}), "logprob_token_ids")
    refused(await openai(engine, {"logprob_token_ids": [VOCAB]}), "logprob_token_ids")
    refused(await openai(engine, {"logprob_token_ids": [1] * 200}), "logprob_token_ids")
    refused(await vllm(engine, {"logprob_token_ids": asked}), "sampling_params.logprob_token_ids")
    rows = {"prompt_logprob_token_ids": [7], "logprob_token_ids": asked, "logprobs": 0}
    refused(await vllm(engine, rows), "sampling_params.logprob_token_ids")


async def test_vllm_gives_the_best_after_the_sequence(engine: BigramEngine) -> None:
    [entry] = figures(await vllm(engine, {"logprobs": 2}))["choices"][0]["logprobs"]["content"]
    after = engine.distribution(IDS)
    best = (-after).argsort()[:2].tolist()
    assert [(e["token"], e["logprob"]) for e in entry["top_logprobs"]] == [
        (f"token_id:{i}", float(after[i])) for i in best
    ]
    refused(await vllm(engine, {"logprobs": 2, "max_tokens": 0}), "sampling_params.logprobs")


async def test_vllm_takes_one_row_of_ids_for_all_positions(engine: BigramEngine) -> None:
    for start in (0, 2):
        answer = figures(await vllm(engine, {"prompt_logprob_token_ids": [7, 9], "prompt_logprob_start": start}))
        matrix = np.load(io.BytesIO(base64.b64decode(answer["prompt_token_id_logprobs"])), allow_pickle=False)
        expected = [engine.distribution(IDS[:t])[[7, 9]] for t in range(start + 1, len(IDS))]
        np.testing.assert_array_equal(matrix, np.array(expected))


async def test_what_would_take_a_row_of_ids_at_every_position_is_priced_before_it_is_made(engine: BigramEngine) -> None:
    """Length times width of two long lists would be terabytes."""
    long, wide = [20] * 200_000, [5] * 200_000
    body = {"token_ids": long, "sampling_params": {"max_tokens": 0, "prompt_logprob_token_ids": wide}}
    refused(await post(engine, "/inference/v1/generate", body), "token_ids", 413)
    refused(
        await post(engine, "/inference/v1/generate", body | {"token_ids": IDS}),
        "sampling_params.prompt_logprob_token_ids",
    )
    refused(await sglang_top(engine, {"input_ids": long, "token_ids_logprob": wide}), "input_ids[0]", 413)
    refused(await sglang_top(engine, {"token_ids_logprob": wide}), "token_ids_logprob")
    refused(await openai(engine, {"prompt": long, "logprob_token_ids": wide}), "prompt[0]", 413)
    refused(await openai(engine, {"bad_words": long}), "bad_words")
    refused(await sglang_top(engine, {"stream": long}), "stream")
