"""The rules over HTTP: the same findings as `grpo_client.findings.check` gives, with or without asking the reference again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from grpo_client.findings import check, samples_of
from server_fakes import FakeEngine, serving


def records(groups: int = 40, shift: float = 0.0) -> list[dict[str, Any]]:
    """Groups of two completions with log-probs drawn from a small distribution, t off r by `shift`."""
    rng = np.random.default_rng(3)
    made = []
    for k in range(groups):
        ids = [rng.integers(20, 60, 8).tolist() for _ in range(2)]
        r = [(-rng.exponential(1.0, 8)).tolist() for _ in range(2)]
        made.append(
            {
                "step": k // 4,
                "prompt_ids": [20, 21, 22 + k % 8],
                "completion_ids": ids,
                "ref_logprobs": r,
                "policy_logprobs": [[x + shift for x in row] for row in r],
                "rewards": [0.0, 1.0],
            }
        )
    return made


def lines(made: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in made)


@pytest.mark.anyio
async def test_the_findings_are_those_of_the_client(engine: FakeEngine) -> None:
    made = records(shift=-1.0)
    async with serving(engine) as client:
        answer = await client.post("/ui/api/findings", content=lines(made))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["groups"], body["completions"], body["tokens"], body["cut_lines"]) == (40, 80, 640, 0)
    wanted = check(samples_of(enumerate(made, 1)))
    assert [(f["name"], f["verdict"], f["says"], f["n"]) for f in body["findings"]] == [
        (f.name, f.verdict.value, f.says, f.n) for f in wanted
    ]
    assert body["findings"][0]["verdict"] == "check"
    assert [tuple(place) for place in body["findings"][0]["tokens"]] == list(wanted[0].tokens)


@pytest.mark.anyio
async def test_asked_again_the_reference_fills_in_and_explains(engine: FakeEngine) -> None:
    made = [{k: v for k, v in record.items() if k != "ref_logprobs"} | {"step": 0} for record in records(8)]
    async with serving(engine) as client:
        answer = await client.post("/ui/api/findings", params={"rescore": True}, content=lines(made))
    assert answer.status_code == 200, answer.text
    found = {f["name"]: f for f in answer.json()["findings"]}
    assert found["explain"]["verdict"] == "needs_data"  # the policy's figures are noise: no change explains them
    assert "no change that was tried explains the gap" in found["explain"]["says"]
    assert found["noise_floor"]["verdict"] in ("check", "look")
    assert len(engine.batches) > 10


@pytest.mark.anyio
async def test_a_cut_last_line_is_counted_and_a_broken_one_in_the_middle_refused(engine: FakeEngine) -> None:
    whole = lines(records(3))
    async with serving(engine) as client:
        cut = await client.post("/ui/api/findings", content=whole[:-40])
        assert (cut.status_code, cut.json()["groups"], cut.json()["cut_lines"]) == (200, 2, 1)
        for content, says in (
            (b"{nonsense\n" + whole, "line 1: not valid JSON"),
            (b"[]\n" + whole, "line 1: must be a JSON object"),
            (b"", "no records"),
            (b'{"completion_ids": "x"}\n', "completion_ids"),
        ):
            refused = await client.post("/ui/api/findings", content=content)
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "records")
            assert says in refused.json()["error"]["message"]


@pytest.mark.anyio
async def test_ids_outside_the_vocabulary_are_refused_with_a_sentence(engine: FakeEngine) -> None:
    made = [{"prompt_ids": [20], "completion_ids": [[99_999]], "policy_logprobs": [[-1.0]]}]
    async with serving(engine) as client:
        answer = await client.post("/ui/api/findings?rescore=true", content=lines(made))
    assert answer.status_code == 422
    assert "vocabulary" in answer.json()["error"]["message"]
