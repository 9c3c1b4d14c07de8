"""A reference that could see is asked about text alone: what stands for an image is refused by name, whatever the dialect."""

from __future__ import annotations

import pytest
from grpo_client import ScoreRequest, wire_json
from grpo_client.protocol import MEDIA_JSON, ROUTE_LOGPROBS
from grpo_server.engine.contract import Hosted
from server_fakes import FakeEngine, serving

pytestmark = pytest.mark.anyio

IMAGE = 23


class SeeingEngine(FakeEngine):
    @property
    def hosted(self) -> Hosted:
        return Hosted(self.info, self.tokenizer, {IMAGE: "image"})


@pytest.mark.parametrize(
    ("prompt", "completions", "where"),
    [([20, IMAGE], [[21]], "groups[0].prompt"), ([20], [[21], [22, 21, IMAGE]], "groups[0].completions[1]")],
)
async def test_an_image_token_is_refused_by_name(prompt: list[int], completions: list[list[int]], where: str) -> None:
    engine = SeeingEngine()
    request = ScoreRequest.of([prompt], [completions])
    async with serving(engine) as client:
        body = wire_json.encode_request(request)
        answer = await client.post(ROUTE_LOGPROBS, content=body, headers={"Content-Type": MEDIA_JSON})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["param"] == where
    assert f"{where} holds the id {IMAGE}, which stands for an image" in error["message"]
    assert not engine.batches


async def test_text_of_such_a_reference_is_scored_and_dialects_refuse_alike() -> None:
    engine = SeeingEngine()
    async with serving(engine) as client:
        plain = {"model": engine.info.model, "max_tokens": 0, "echo": True, "logprobs": 1}
        scored = await client.post("/v1/completions", json={**plain, "prompt": [20, 21, 22]})
        refused = await client.post("/v1/completions", json={**plain, "prompt": [20, 21, IMAGE, 22]})
    assert scored.status_code == 200
    assert refused.status_code == 422
    assert "stands for an image" in refused.json()["error"]["message"]
