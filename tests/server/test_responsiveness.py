"""What one client sends holds up no other: by what runs where and how much of it, never by the clock."""

from __future__ import annotations

import asyncio
import json
import pkgutil
import threading
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from grpo_server import routes
from grpo_server.app import create_app
from grpo_server.routes import native
from grpo_server.text.tokenizing import LONGEST_TOKEN, TURN_TEXTS
from server_fakes import MAX_LENGTH, PATIENCE, FakeEngine, FakeTokenizer, make_config, running, serving

pytestmark = pytest.mark.anyio

IDS = {"groups": [{"prompt": [1, 2], "completions": [[3, 4], [5]]}]}
TEXT = {"groups": [{"prompt": "a", "completions": ["b"]}]}


class HeldTokenizer(FakeTokenizer):
    """Waits inside until it is let go; remembers what it was asked."""

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), list[str]()
        self.inside = threading.Semaphore(0)

    def __call__(self, text: str | list[str], *, add_special_tokens: bool) -> dict[str, Any]:
        assert isinstance(text, str)
        self.asked.append(text)
        self.inside.release()
        assert self.go.wait(PATIENCE)
        return super().__call__(text, add_special_tokens=add_special_tokens)


async def test_ids_are_answered_while_the_tokenizer_is_busy(engine: FakeEngine) -> None:
    engine.tokenizer = held = HeldTokenizer()
    async with serving(engine) as client:
        slow = asyncio.create_task(client.post("/v1/logprobs", json=TEXT))
        assert await asyncio.to_thread(held.inside.acquire, timeout=PATIENCE)
        assert (await client.post("/v1/logprobs", json=IDS)).status_code == 200
        assert not slow.done()
        held.go.set()
        assert (await slow).status_code == 200


async def test_small_bodies_are_answered_while_a_large_one_is_decoded(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)
    decode = native.WIRES["application/json"].decode_request

    class Held:
        result_chunks = staticmethod(native.WIRES["application/json"].result_chunks)

        @staticmethod
        def decode_request(body: bytes, limits: Any) -> Any:
            if len(body) > native.SMALL_BODY:
                assert threading.current_thread() is not threading.main_thread()
                inside.release()
                assert go.wait(PATIENCE)
            return decode(body, limits)

    monkeypatch.setitem(native.WIRES, "application/json", Held)  # type: ignore[arg-type]
    async with serving(engine) as client:
        large = {"groups": [{"prompt": [1, 2], "completions": [[3, 4]] * 5000}]}
        slow = asyncio.create_task(client.post("/v1/logprobs", json=large))
        assert await asyncio.to_thread(inside.acquire, timeout=PATIENCE)
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post("/v1/logprobs", json=IDS)).status_code == 200
        go.set()
        assert (await slow).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/logprobs", {"groups": [{"prompt": "TEXT", "completions": ["b"]}]}, "groups[0].prompt"),
        ("/v1/logprobs", {"groups": [{"prompt": "a", "completions": ["b", "TEXT"]}]}, "groups[0].completions[1]"),
        (
            "/v1/logprobs",
            {"groups": [{"messages": [{"role": "user", "content": "TEXT"}], "completions": ["b"]}]},
            "groups[0].messages",
        ),
        ("/v1/completions", {"prompt": ["TEXT"], "max_tokens": 0, "prompt_logprobs": 0}, "prompt[0]"),
        (
            "/generate",
            {"text": "TEXT", "return_logprob": True, "sampling_params": {"max_new_tokens": 0}, "logprob_start_len": 0},
            "text[0]",
        ),
        ("/tokenize", {"prompt": "TEXT"}, "prompt"),
    ],
)
async def test_a_text_that_cannot_fit_is_refused_unread(
    engine: FakeEngine, path: str, body: dict[str, Any], param: str
) -> None:
    engine.tokenizer = held = HeldTokenizer()
    held.go.set()
    sent = json.dumps(body).replace("TEXT", "x" * (MAX_LENGTH * LONGEST_TOKEN + 1))
    async with serving(engine) as client:
        refused = await client.post(path, content=sent, headers={"Content-Type": "application/json"})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (413, "context_length_exceeded", param)
    assert len(error["message"]) < 300
    assert [text for text in held.asked if len(text) > 10] == []


async def test_of_a_long_text_only_the_beginning_is_tokenized(engine: FakeEngine) -> None:
    engine.tokenizer = held = HeldTokenizer()
    held.go.set()
    text = "x" * (MAX_LENGTH * LONGEST_TOKEN)
    async with serving(engine) as client:
        refused = await client.post("/v1/logprobs", json={"groups": [{"prompt": text, "completions": ["b"]}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (413, "groups[0].prompt")
    assert [len(asked) for asked in held.asked] == [8 * MAX_LENGTH]


async def test_a_small_text_waits_for_one_turn_of_a_large_request(engine: FakeEngine) -> None:
    engine.tokenizer = held = HeldTokenizer()
    many = {"groups": [{"prompt": "a", "completions": ["b"] * (4 * TURN_TEXTS)}]}
    async with serving(engine) as client:
        slow = asyncio.create_task(client.post("/v1/logprobs", json=many))
        assert await asyncio.to_thread(held.inside.acquire, timeout=PATIENCE)
        quick = asyncio.create_task(
            client.post("/v1/logprobs", json={"groups": [{"prompt": "c", "completions": ["d"]}]})
        )
        for _ in range(20):  # until it waits behind the turn that is under way
            await asyncio.sleep(0)
        held.go.set()
        assert {(await slow).status_code, (await quick).status_code} == {200}
    assert TURN_TEXTS <= held.asked.index("c") <= 2 * TURN_TEXTS


async def test_texts_that_are_too_many_together_are_refused_before_all_are_read(engine: FakeEngine) -> None:
    engine.tokenizer = held = HeldTokenizer()
    held.go.set()
    body = {"groups": [{"prompt": "a" * 40, "completions": ["b" * 20] * 2000}]}
    async with serving(engine, max_queue_tokens=10_000, max_batch_tokens=1000) as client:
        refused = await client.post("/v1/logprobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
    assert len(held.asked) < 1000


def test_no_route_lets_the_framework_parse_a_body_on_the_event_loop() -> None:
    for router in routes.routers():
        for route in router.routes:
            if isinstance(route, APIRoute):
                assert route.body_field is None, route.path


BOMBS = {
    "lists": b'{"x": [' + b"[]," * 400_000 + b"[]]}",
    "depth": b'{"x": ' + b"[" * 500_000,
    "digits": b'{"x": ' + b"9" * 2**25 + b"}",
    "no object": b"7",
    "broken": b'{"x": [' + b"1," * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_every_route_that_takes_json_refuses_a_bomb_in_a_few_words(engine: FakeEngine, bomb: str) -> None:
    config = make_config(admin_key="root")
    paths = [
        "/v1/logprobs",
        "/v1/completions",
        "/inference/v1/generate",
        "/generate",
        "/get_sequence_logprobs/",
        "/v2/models/fake/infer",
        "/tokenize",
        "/detokenize",
        "/admin/reference",
        "/admin/reference/ema",
    ]
    headers = {"Content-Type": "application/json", "Authorization": "Bearer root"}
    async with running(create_app(config, lambda: engine)) as client:
        for path in paths:
            refused: httpx.Response = await client.post(path, content=BOMBS[bomb], headers=headers)
            assert refused.status_code in (400, 413), path
            assert len(refused.content) < 1000, path


MANY = 600
LARGE: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "native": ("/v1/logprobs", {"groups": [{"prompt": [1], "completions": [[2]] * MANY}]}, []),
    "OpenAI": (
        "/v1/completions",
        {"prompt": [[1, 2]] * MANY, "max_tokens": 0, "prompt_logprobs": 1},
        ["_sequences.check_sequences", "_sequences._grouped", "_sequences._answers", "_strings.ids_shown"],
    ),
    "SGLang": (
        "/generate",
        {"input_ids": [[1, 2]] * MANY, "return_logprob": True, "sampling_params": {"max_new_tokens": 0}},
        ["sglang._plans", "_sequences.check_sequences", "_sequences._grouped", "_sequences._answers"],
    ),
    "TRL": (
        "/get_sequence_logprobs/",
        {"sequences": [[1, 2]] * MANY, "prompt_lengths": [1] * MANY, "top_logprobs": 1},
        ["_sequences.check_sequences", "_sequences._grouped", "_sequences._answers"],
    ),
}


@pytest.mark.parametrize("dialect", LARGE)
async def test_a_large_request_is_looked_over_beside_the_event_loop(
    engine: FakeEngine, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, body, places = LARGE[dialect]
    seen: dict[str, bool] = {}

    def note(place: str) -> None:
        work = pkgutil.resolve_name(place)

        def noting(*args: Any, **kwargs: Any) -> Any:
            seen[place] = threading.current_thread() is threading.main_thread()
            return work(*args, **kwargs)

        monkeypatch.setattr(place, noting)

    every = [f"grpo_server.routes.dialects.{place}" for place in places] or ["grpo_server.scoring.check_request"]
    for place in every:
        note(place)
    async with serving(engine, max_queue_tokens=10**6) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert seen == dict.fromkeys(every, False)
