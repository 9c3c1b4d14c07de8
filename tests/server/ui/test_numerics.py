"""POST /ui/api/numerics: the hard cases of docs/stability.md, in the spelling that JSON can carry."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest
import torch
from grpo_numerics import collapse_free_log_softmax, entmax15, softmax, sparsemax, stablemax
from server_fakes import FakeEngine, create_app, make_config, running, serving

DTYPES = ("float16", "bfloat16", "float32")
TENSES = [1.2, 4.7, 3.1, 0.5, 2.9]
URL = "/ui/api/numerics"


async def ask(client: httpx.AsyncClient, logits: list[Any], **more: Any) -> dict[str, Any]:
    answer = await client.post(URL, json={"logits": logits, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def value(spelled: float | str) -> float:
    return float(spelled)


@pytest.mark.anyio
async def test_values_are_the_float32_of_grpo_numerics(engine: FakeEngine) -> None:
    x = torch.tensor(TENSES)
    async with serving(engine) as client:
        found = await ask(client, TENSES, temperature=0.7, target=2)
    z = x / 0.7
    expected = {"softmax": softmax(z), "stablemax": stablemax(z), "sparsemax": sparsemax(z), "entmax15": entmax15(z)}
    assert set(found["distributions"]) == set(expected)
    for name, p in expected.items():
        assert torch.tensor(found["distributions"][name]["p"]).tolist() == p.tolist()
    logprobs = torch.tensor(found["distributions"]["softmax"]["logprobs"])
    torch.testing.assert_close(logprobs, collapse_free_log_softmax(z), rtol=1e-6, atol=1e-7)
    gradient = torch.tensor(found["distributions"]["softmax"]["gradient"])
    torch.testing.assert_close(gradient, softmax(z) - torch.eye(5)[2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        torch.tensor(found["distributions"]["softmax"]["logit_gradient"]), gradient / 0.7, rtol=1e-6, atol=1e-7
    )
    assert found["distributions"]["sparsemax"]["support"] == 1
    assert found["target"] == 2
    assert found["temperature"] == 0.7


@pytest.mark.anyio
async def test_ninety_two_is_nan_naively_and_one_hot_otherwise(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        found = await ask(client, [1, 92, 3, 0, 2], target=2)
    for dtype in DTYPES:
        assert found["naive"][dtype]["p"] == [0, "nan", 0, 0, 0]
        assert found["naive"][dtype]["terms"][1] == "inf"
        assert found["naive"][dtype]["loss"] == "inf"
        assert found["stable"][dtype]["loss"] == 89
        assert found["stable"][dtype]["p"][1] == 1
        assert found["stable"][dtype]["gradient"] == pytest.approx([0, 1, -1, 0, 0], abs=1e-30)


@pytest.mark.anyio
async def test_the_types_differ_where_their_ranges_do(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        twelve = await ask(client, [0, 12])
        far = await ask(client, [-1000, -1001, -1002])
        fine = await ask(client, [0.1, 0.2, 0.3])
    assert [twelve["naive"][d]["p"][1] for d in DTYPES] == ["nan", 1, pytest.approx(1, abs=1e-5)]
    assert all(far["naive"][d]["p"] == ["nan"] * 3 for d in DTYPES)
    assert value(far["stable"]["float32"]["p"][0]) == pytest.approx(0.6652, abs=1e-4)
    assert [fine["naive"][d]["logits"][0] for d in DTYPES] == [0.099975586, 0.100097656, 0.1]
    exact = [math.exp(x) / sum(map(math.exp, (0.1, 0.2, 0.3))) for x in (0.1, 0.2, 0.3)]
    errors = [max(abs(a - b) for a, b in zip(fine["stable"][d]["p"], exact, strict=True)) for d in DTYPES]
    assert errors[2] < errors[0] < errors[1]


@pytest.mark.anyio
async def test_masked_tokens_and_the_masked_row(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        by_mask = await ask(client, [1, 9, 3, 0, 2], mask=[1, 0, 1, 1, 1])
        by_word = await ask(client, [1, "-inf", 3, 0, 2])
        void = await ask(client, [1, 2], mask=[0, 0], target=0)
    assert by_mask["distributions"] == by_word["distributions"]
    assert by_mask["logits"] == [1, "-inf", 3, 0, 2]
    assert by_mask["distributions"]["softmax"]["p"][1] == 0
    assert by_mask["distributions"]["softmax"]["logprobs"][1] == "-inf"
    assert by_mask["distributions"]["softmax"]["support"] == 4
    for name in ("softmax", "stablemax", "sparsemax", "entmax15"):
        assert void["distributions"][name]["p"] == ["nan", "nan"], name
    assert void["naive"]["float32"]["p"] == void["stable"]["float32"]["p"] == ["nan", "nan"]


@pytest.mark.anyio
async def test_a_sure_token_has_no_gradient_naively_and_one_here(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        found = await ask(client, [0, 40], target=1)
    assert found["stable"]["float32"]["gradient"][1] == 0
    assert found["stable"]["float32"]["loss"] == 0
    assert found["distributions"]["softmax"]["gradient"][1] == pytest.approx(-math.exp(-40), rel=1e-6)
    assert found["distributions"]["softmax"]["loss"] == pytest.approx(math.exp(-40), rel=1e-6)


@pytest.mark.anyio
@pytest.mark.parametrize("normalizer", ["softmax", "stablemax", "sparsemax", "entmax15"])
async def test_every_normalizer_is_written_out(engine: FakeEngine, normalizer: str) -> None:
    async with serving(engine) as client:
        found = await ask(client, TENSES, normalizer=normalizer)
    assert found["normalizer"] == normalizer
    assert found["naive"]["float32"]["p"] == pytest.approx(found["distributions"][normalizer]["p"], abs=1e-5)
    assert found["stable"]["float32"]["p"] == pytest.approx(found["distributions"][normalizer]["p"], abs=1e-5)


@pytest.mark.anyio
async def test_it_answers_while_the_model_loads() -> None:
    app = create_app(make_config(), lambda: FakeEngine())
    async with running(app, loaded=False) as client:
        assert (await ask(client, [0, 0]))["distributions"]["softmax"]["p"] == [0.5, 0.5]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "logits"),
        ({"logits": []}, 400, "logits"),
        ({"logits": [0.0] * 65}, 400, "logits"),
        ({"logits": [None]}, 400, "logits[0]"),
        ({"logits": [True]}, 400, "logits[0]"),
        ({"logits": ["1"]}, 400, "logits[0]"),
        ({"logits": [1], "softmax": 1}, 400, "softmax"),
        ({"logits": [1], "normalizer": "argmax"}, 400, "normalizer"),
        ({"logits": [1], "target": -1}, 400, "target"),
        ({"logits": [1], "target": 1}, 422, "target"),
        ({"logits": [1], "temperature": 0}, 422, "temperature"),
        ({"logits": [1], "temperature": -1}, 422, "temperature"),
        ({"logits": [1], "mask": [1, 1]}, 422, "mask"),
        ({"logits": [1], "mask": [2]}, 400, "mask[0]"),
    ],
)
async def test_bad_questions_name_the_field(engine: FakeEngine, body: Any, status: int, param: str) -> None:
    async with serving(engine) as client:
        answer = await client.post(URL, json=body)
    assert answer.status_code == status, answer.text
    assert (answer.json()["error"]["param"] or "").startswith(param)


@pytest.mark.anyio
async def test_a_large_body_is_refused_unread(engine: FakeEngine) -> None:
    async with serving(engine) as client:
        answer = await client.post(URL, content=b"[" * 70_000)
    assert answer.status_code == 413


@pytest.mark.anyio
async def test_it_is_behind_the_key(engine: FakeEngine) -> None:
    async with serving(engine, api_key="sesame") as client:
        assert (await client.post(URL, json={"logits": [1]})).status_code == 401
        allowed = await client.post(URL, json={"logits": [1]}, headers={"Authorization": "Bearer sesame"})
    assert allowed.status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("normalizer", ["softmax", "stablemax", "sparsemax", "entmax15"])
async def test_no_row_is_too_strange(engine: FakeEngine, normalizer: str) -> None:
    rows: list[list[Any]] = [
        ["nan", 1],
        ["inf", 1],
        ["inf", "-inf"],
        ["-inf"],
        [1e300, -1e300],
        [0],
        [3.0e38] * 64,
        [65520, 0],
    ]
    async with serving(engine) as client:
        for row in rows:
            for temperature in (1e-30, 1.0, 1e30):
                await ask(client, row, target=0, normalizer=normalizer, temperature=temperature)
