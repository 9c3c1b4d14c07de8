"""POST /v1/logprobs: the same answer in both encodings, text and chat, extras, pins, and who answered."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest
from grpo_client import Group, ScoreRequest, TextScoreRequest, wire_json, wire_tensors
from grpo_client.protocol import EXTRA_ARRAYS, EXTRAS, MEDIA_JSON, MEDIA_TENSORS, ROUTE_LOGPROBS, Status
from server_fakes import CURSED, FakeEngine, FakeTokenizer, ask, expected, fingerprint, ids, serving, tokens

pytestmark = pytest.mark.anyio

WIRES = {MEDIA_JSON: wire_json, MEDIA_TENSORS: wire_tensors}


def rich_request(engine: FakeEngine) -> ScoreRequest:
    """Two groups with everything that can be asked for. (Both temperatures are exact in fp32, which is how they travel.)"""
    groups = tuple(
        Group(
            tokens(3 + k),
            tuple(tokens(n, start=k) for n in (4, 0, 2)),
            temperature,
            tuple(np.tile(ids(7, 8), (n, 1)) for n in (4, 0, 2)),
        )
        for k, temperature in enumerate((0.5, 1.75))
    )
    return ScoreRequest(groups, "stablemax", frozenset(EXTRAS), top_k=3, fingerprint=engine.info.fingerprint)


@pytest.mark.parametrize("media_in", WIRES)
@pytest.mark.parametrize("media_out", WIRES)
async def test_every_encoding_asks_and_answers_the_same(engine: FakeEngine, media_in: str, media_out: str) -> None:
    request = rich_request(engine)
    async with serving(engine) as client:
        response = await client.post(
            ROUTE_LOGPROBS,
            content=WIRES[media_in].encode_request(request),
            headers={"Content-Type": media_in, "Accept": media_out},
        )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == media_out
    result = WIRES[media_out].decode_result(response.content)
    np.testing.assert_array_equal(result.logprobs, expected(request, engine.info.fingerprint))
    assert set(result.extras) == set(EXTRA_ARRAYS)
    assert result.extras["top_ids"].shape == (12, 3)
    assert result.extras["token_logprobs"].shape == (12, 2)
    assert result.normalizer == "stablemax"
    np.testing.assert_array_equal(result.temperature, np.array([0.5, 1.75], np.float32))
    assert result.reference.fingerprint == fingerprint("fake")
    assert result.usage.prompt_tokens == 7
    assert result.usage.completion_tokens == 12


@pytest.mark.parametrize("media", WIRES)
async def test_not_finite_is_a_status_and_an_empty_completion_is_legal(engine: FakeEngine, media: str) -> None:
    request = ScoreRequest((Group(ids(1), (ids(2, CURSED), ids(), ids(3))),))
    async with serving(engine) as client:
        response = await client.post(
            ROUTE_LOGPROBS, content=WIRES[media].encode_request(request), headers={"Content-Type": media}
        )
    assert response.status_code == 200
    result = WIRES[media].decode_result(response.content)
    assert result.status.tolist() == [Status.NONFINITE, Status.OK, Status.OK]
    assert [len(row) for row in result.ragged()] == [2, 0, 1]
    assert np.isnan(result.logprobs).tolist() == [False, True, False]
    if media == MEDIA_JSON:
        assert response.json()["groups"][0]["logprobs"][0][1] is None


async def test_text_is_tokenized_here_and_the_ids_come_back(engine: FakeEngine) -> None:
    request = TextScoreRequest.of(["ab", [{"role": "user", "content": "hi"}]], [["c", ""], ["de"]], temperature=0.5)
    async with serving(engine) as client:
        response = await client.post(
            ROUTE_LOGPROBS, content=wire_json.encode_request(request), headers={"Content-Type": MEDIA_JSON}
        )
    assert response.status_code == 200, response.text
    result = wire_json.decode_result(response.content)
    tokenizer = FakeTokenizer()
    assert result.prompt_ids is not None
    assert result.completion_ids is not None
    assert result.prompt_ids[0].tolist() == tokenizer("ab", add_special_tokens=True)["input_ids"]
    # The template writes its own special tokens: none are added in front.
    assert result.prompt_ids[1].tolist() == tokenizer("<user>hi>", add_special_tokens=False)["input_ids"]
    assert [c.tolist() for c in result.completion_ids] == [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("c", "", "de")
    ]
    same = ScoreRequest(
        (
            Group(result.prompt_ids[0], result.completion_ids[:2], 0.5),
            Group(result.prompt_ids[1], result.completion_ids[2:], 0.5),
        )
    )
    np.testing.assert_array_equal(result.logprobs, expected(same, engine.info.fingerprint))


async def test_text_without_a_tokenizer_is_refused_and_ids_still_score(engine: FakeEngine) -> None:
    engine.tokenizer = None
    async with serving(engine) as client:
        text = await client.post(ROUTE_LOGPROBS, json={"groups": [{"prompt": "a", "completions": ["b"]}]})
        numbers = await client.post(ROUTE_LOGPROBS, json={"groups": [{"prompt": [1], "completions": [[2]]}]})
        info = await client.get("/tokenizer_info")
    assert (text.status_code, numbers.status_code, info.status_code) == (422, 200, 422)
    assert "token ids" in text.json()["error"]["message"]


async def test_text_is_scored_by_the_reference_whose_tokenizer_read_it(engine: FakeEngine) -> None:
    """A swap that falls between tokenizing and scoring makes the text be tokenized again."""

    class Swapping(FakeTokenizer):
        calls = 0

        def __call__(self, text: str | list[str], *, add_special_tokens: bool) -> dict[str, list[int]]:
            Swapping.calls += 1
            if Swapping.calls == 1:
                engine.swap("other")
                engine.tokenizer = FakeTokenizer()
                return {"input_ids": [99]}
            return super().__call__(text, add_special_tokens=add_special_tokens)

    engine.tokenizer = Swapping()
    async with serving(engine) as client:
        response = await client.post(ROUTE_LOGPROBS, json={"groups": [{"prompt": "a", "completions": ["b"]}]})
    result = wire_json.decode_result(response.content)
    assert result.reference.version == 2
    assert result.prompt_ids is not None
    assert result.prompt_ids[0].tolist() == FakeTokenizer()("a", add_special_tokens=True)["input_ids"]


async def test_a_pin_that_holds_answers_and_one_that_does_not_is_not_worth_retrying(engine: FakeEngine) -> None:
    async with serving(engine) as client:

        async def ask_pinned(print_: str) -> int:
            body = wire_tensors.encode_request(ask(2, 1, fingerprint=print_))
            response = await client.post(ROUTE_LOGPROBS, content=body, headers={"Content-Type": MEDIA_TENSORS})
            if response.status_code == 409:
                assert response.headers["x-should-retry"] == "false"
                assert engine.info.fingerprint in response.json()["error"]["message"]
            return response.status_code

        assert await ask_pinned(engine.info.fingerprint) == 200
        assert await ask_pinned("0" * 64) == 409


async def test_who_answers(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        reference = (await client.get("/v1/reference")).json()
        models = (await client.get("/v1/models")).json()
    assert reference == engine.info.model_dump() | {"server_version": version("grpo-refserver")}
    assert models["object"] == "list"
    assert [m["id"] for m in models["data"]] == ["fake"]
    assert models["data"][0]["max_model_len"] == engine.info.max_length


async def test_the_schema_describes_both_encodings_and_the_errors(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        schema = (await client.get("/openapi.json")).json()
    route = schema["paths"][ROUTE_LOGPROBS]["post"]
    assert set(route["requestBody"]["content"]) == {MEDIA_JSON, MEDIA_TENSORS}
    assert {MEDIA_JSON, MEDIA_TENSORS} <= set(route["responses"]["200"]["content"])
    request = schema["components"]["schemas"]["LogprobsRequest"]
    assert set(request["properties"]) == {
        "groups",
        "temperature",
        "normalizer",
        "return",
        "top_k",
        "top_dtype",
        "token_ids",
        "completion_mask",
        "fingerprint",
    }
    assert request["examples"]
    for path in schema["paths"].values():
        for operation in path.values():
            assert {"4XX", "5XX"} <= set(operation["responses"])
            assert "422" not in operation["responses"]  # FastAPI's own shape, which this service never sends
    _check_references(schema)


def _check_references(schema: dict) -> None:
    """Every $ref of the schema leads somewhere."""

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(ref := node.get("$ref"), str):
                target: object = schema
                for part in ref.removeprefix("#/").split("/"):
                    assert isinstance(target, dict)
                    assert part in target, ref
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(schema)


async def test_the_examples_of_the_schema_are_answered(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        schema = (await client.get("/openapi.json")).json()
        for example in schema["components"]["schemas"]["LogprobsRequest"]["examples"]:
            response = await client.post(ROUTE_LOGPROBS, json=example)
            assert response.status_code == 200, response.text
