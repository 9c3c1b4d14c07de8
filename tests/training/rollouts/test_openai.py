"""Rollouts over HTTP: ids and log-probs as they were sampled, refusals that say why, whole runs, weights that follow."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from grpo_training.config import ConfigError, RolloutConfig, RolloutError, TrainConfig
from grpo_training.report.metrics import read_records
from grpo_training.rollouts.generation import sample
from grpo_training.rollouts.openai import OpenAISampler
from grpo_training.run.loop import train
from transformers import LlamaForCausalLM

from ..completions_server import PATIENCE, CompletionsServer
from ..conftest import EOS

MakeConfig = Callable[..., TrainConfig]
PROMPTS = [[5, 6, 7, 8], [12], [13, 14, 15], [9, 9]]
ENDS = frozenset({EOS, *range(20, 35)})
VOCAB = 80
CPU = torch.device("cpu")
# Three ids that a mocked server answers with, one of them no end.
GOOD = {"index": 0, "token_ids": [7, 8, 20], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0, -2, -0.5]}}


@pytest.fixture
def server(tiny_path: Path) -> Iterator[CompletionsServer]:
    with CompletionsServer(tiny_path, ENDS) as running:
        yield running


def options(url: str = "http://server", **fields: Any) -> RolloutConfig:
    values = {"backend": "openai", "base_url": url, "model": "tiny", "group_size": 3, "max_new_tokens": 9}
    return RolloutConfig.model_validate(values | fields)


def sampler(config: RolloutConfig, **more: Any) -> OpenAISampler:
    return OpenAISampler(config, eos_ids=ENDS, vocab_size=VOCAB, device=CPU, **more)


def mocked(*answers: httpx.Response, **fields: Any) -> tuple[OpenAISampler, list[float]]:
    """A sampler whose server gives these answers in turn, and the seconds that it waited between them."""
    left, waited = list(answers), []
    transport = httpx.MockTransport(lambda _: left.pop(0))
    config = options(**{"group_size": 1, "max_wait": 60} | fields)
    return sampler(config, transport=transport, sleep=waited.append), waited


def says(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json={"choices": [GOOD | changes]})


@pytest.mark.parametrize("ids", ["token_ids", "tokens"])
def test_what_was_sampled_comes_through(server: CompletionsServer, tiny: LlamaForCausalLM, ids: Any) -> None:
    server.ids = ids
    with sampler(options(f"{server.url}/v1/", temperature=0.8)) as remote:
        rollout = remote.sample(PROMPTS, seed=11)
        again = remote.sample(PROMPTS, seed=11)
        other = remote.sample(PROMPTS, seed=12)
    assert rollout.prompts == PROMPTS
    for prompt, group in zip(PROMPTS, rollout.completions(), strict=True):
        [asked] = [r for r in server.requests[:4] if r["prompt"] == [prompt]]
        drawn = sample(
            tiny, [prompt], group_size=3, max_new_tokens=9, temperature=0.8, eos_ids=ENDS, seed=asked["seed"]
        )
        assert group == drawn.completions()[0]
    rows = [row for group in rollout.completions() for row in group]
    for i, row in enumerate(rows):
        prompt = PROMPTS[i // 3]
        logits = tiny(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].detach().double() / 0.8
        wanted = logits.log_softmax(-1)[torch.arange(len(row)), row]
        # fp32 sums in another order: some units in the last place of logits of size 10.
        torch.testing.assert_close(rollout.logprobs[i, : len(row)].double(), wanted, atol=3e-5, rtol=0)
        assert bool(rollout.ended[i]) == (row[-1] in ENDS)
    assert rollout.lengths.tolist() == [len(row) for row in rows]
    assert rollout.entropy is None
    assert not rollout.ids[~rollout.mask].any()
    assert again.completions() == rollout.completions() != other.completions()
    assert len({r["seed"] for r in server.requests[:4]}) == 4
    assert rollout.portions(2)[1].completions() == rollout.completions()[2:]


def test_the_request_leaves_nothing_to_the_servers_taste(server: CompletionsServer) -> None:
    with sampler(options(server.url, stop=["\n"], temperature=0.5)) as remote:
        remote.sample([[5]], seed=0)
    asked = server.requests[0]
    assert {k: asked[k] for k in ("model", "prompt", "n", "max_tokens", "temperature", "stop", "logprobs")} == {
        "model": "tiny",
        "prompt": [[5]],
        "n": 3,
        "max_tokens": 9,
        "temperature": 0.5,
        "stop": ["\n"],
        "logprobs": 1,
    }
    assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
    assert asked["return_token_ids"]
    assert asked["return_tokens_as_token_ids"]


def test_prompts_are_asked_at_once(server: CompletionsServer) -> None:
    """No request is answered before four are there: with fewer under way this would end in a broken barrier."""
    together = threading.Barrier(4)
    server.before_answer = lambda _: together.wait(PATIENCE) and None
    with sampler(options(server.url, concurrency=4)) as remote:
        assert remote.sample(PROMPTS, seed=0).prompts == PROMPTS
    assert not together.broken


def test_an_end_that_only_the_policy_knows_cuts() -> None:
    remote, _ = mocked(says(token_ids=[7, 21, 8], finish_reason="length"))
    with remote:
        rollout = remote.sample([[5]], seed=0)
    assert rollout.completions() == [[[7, 21]]]
    assert rollout.logprobs.tolist() == [[-1.0, -2.0]]
    assert rollout.ended.tolist() == [True]


def test_cut_and_stopped() -> None:
    remote, _ = mocked(
        says(token_ids=[7, 8, 9], finish_reason="length"), says(token_ids=[7, 8, 9], finish_reason="stop"), stop=["x"]
    )
    with remote:
        assert remote.sample([[5]], seed=0).ended.tolist() == [False]
        assert remote.sample([[5]], seed=0).ended.tolist() == [True]  # a stop string over two tokens


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"token_ids": None}, r"no token ids: .*return_token_ids.*return_tokens_as_token_ids"),
        ({"token_ids": None, "logprobs": {"tokens": ["token:7", "eight"], "token_logprobs": [-1, -1]}}, "no token ids"),
        ({"token_ids": [7, 8.0, 20]}, "no token ids"),
        ({"logprobs": None}, "does not honour the option logprobs"),
        ({"logprobs": {"token_logprobs": [-1.0, -2.0]}}, "3 token ids came with 2 log-probs"),
        ({"logprobs": {"token_logprobs": [-1.0, None, -1.0]}}, "is None, which is not a finite number"),
        ({"logprobs": {"token_logprobs": [-1.0, -9999.0, -1.0]}}, "which is not a finite number"),
        ({"token_ids": [7, VOCAB, 20]}, f"id {VOCAB} is outside the policy's vocabulary of {VOCAB}"),
        ({"token_ids": [7, -1, 20]}, "id -1 is outside"),
        ({"token_ids": [7] * 10, "logprobs": {"token_logprobs": [-1.0] * 10}}, "has 10 ids, asked for were 1 to 9"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "has 0 ids"),
        ({"token_ids": [7, 8, 9]}, "stopped without one of the policy's end-of-sequence ids"),
        ({"finish_reason": "abort"}, "finish_reason 'abort'"),
        ({"prompt_token_ids": [1, 5]}, "another prompt than the ids it was sent"),
        ({"index": 1}, r"asked for n=1 completions of one prompt, got choices \[1\]"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes: dict[str, Any], error: str) -> None:
    remote, waited = mocked(says(**changes))
    with remote, pytest.raises(RolloutError, match=error):
        remote.sample([[5]], seed=0)
    assert waited == []


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices": 3}', b'{"choices": [1]}'])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    remote, _ = mocked(httpx.Response(200, content=body))
    with remote, pytest.raises(RolloutError, match=r"http://server/v1/completions: the answer"):
        remote.sample([[5]], seed=0)


def test_a_full_server_is_asked_again_when_it_says() -> None:
    full = httpx.Response(429, headers={"Retry-After": "7"}, json={"error": {"message": "full"}})
    remote, waited = mocked(full, httpx.Response(503), says())
    with remote:
        assert remote.sample([[5]], seed=0).completions() == [[[7, 8, 20]]]
    assert len(waited) == 2
    assert 7 <= waited[0] < 8


def test_a_server_that_stays_away_or_refuses_ends_it() -> None:
    remote, _ = mocked(httpx.Response(503), max_wait=0)
    with remote, pytest.raises(RolloutError, match="HTTP 503"):
        remote.sample([[5]], seed=0)
    refused = httpx.Response(400, json={"error": {"message": "max_tokens is too large"}})
    remote, waited = mocked(refused)
    with remote, pytest.raises(RolloutError, match="max_tokens is too large"):
        remote.sample([[5]], seed=0)
    assert waited == []


def test_the_key_is_sent_and_never_shown(
    server: CompletionsServer,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rollout = remote_rollout(server, api_key_env="ROLLOUT_KEY")
    config = make_config(loss={"beta": 0.0}, rollout=rollout, trainer={"steps": 1})
    with pytest.raises(ConfigError, match=r"rollout\.api_key_env: the environment has no variable ROLLOUT_KEY"):
        train(config)
    monkeypatch.setenv("ROLLOUT_KEY", "secret-1234")
    with caplog.at_level(logging.DEBUG):
        train(config)
    assert set(server.authorizations) == {"Bearer secret-1234"}
    shown = caplog.text + "".join(capfd.readouterr())
    written = [p.read_bytes() for p in config.trainer.output.rglob("*") if p.is_file()]
    assert "secret-1234" not in shown
    assert not any(b"secret-1234" in content for content in written)


def records(config: TrainConfig) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in r.items() if not k.startswith("time/") and k != "reference/latency_s"}
        for r in read_records(config.trainer.output / "metrics.jsonl")
    ]


def remote_rollout(server: CompletionsServer, **fields: Any) -> dict[str, Any]:
    server.eos_ids = frozenset({EOS})
    return {"backend": "openai", "base_url": server.url, "model": "tiny", **fields}


def test_a_run_against_a_frozen_server_drifts_from_it_and_corrects(
    server: CompletionsServer, reference_server, make_config: MakeConfig, varied_task: dict[str, Any]
) -> None:
    config = make_config(
        reference_server.url, task=varied_task, rollout=remote_rollout(server), eval={"every": 4, "prompts": 4}
    )
    train(config)
    found = records(config)
    assert found[0]["policy/sampler_gap"] < 1e-4  # the same weights
    assert found[0]["rollout/weight"] == pytest.approx(1.0, abs=1e-3)
    assert found[-1]["policy/sampler_gap"] > 1e-3  # lr 1e-3, and the server knows nothing of it
    assert found[-1]["rollout/weight"] != pytest.approx(1.0, abs=1e-4)
    assert all(0 < r["policy/entropy"] < np.log(VOCAB) for r in found)
    assert found[-1]["kl"] > 1e-6


def test_a_killed_run_goes_on_bit_for_bit(server: CompletionsServer, make_config: MakeConfig, tmp_path: Path) -> None:
    """Against a server that answers the same to the same seed; a real one may not."""

    def config(name: str, steps: int) -> TrainConfig:
        trainer = {"steps": steps, "checkpoint_every": 2, "output": str(tmp_path / name)}
        return make_config(loss={"beta": 0.0}, rollout=remote_rollout(server), trainer=trainer)

    train(config("calm", 4))
    train(config("cut", 2))
    train(config("cut", 4), resume=True)
    assert records(config("cut", 4)) == records(config("calm", 4))


def test_the_weights_follow_where_a_command_brings_them(
    server: CompletionsServer, make_config: MakeConfig, varied_task: dict[str, Any], tmp_path: Path
) -> None:
    call = (
        "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), "
        "{'Content-Type': 'application/json'})).read()"
    )
    command = [sys.executable, "-c", call, f"{server.url}/reload", json.dumps({"model_path": "{path}"})]
    rollout = remote_rollout(server, sync_every=2, sync_command=command)
    config = make_config(loss={"beta": 0.0}, task=varied_task, rollout=rollout)
    train(config)
    gaps = [r["policy/sampler_gap"] for r in records(config)]
    assert [Path(p).name for p in server.loaded] == ["step-000000", "step-000002"]
    assert [p.name for p in (tmp_path / "run" / "served").iterdir()] == ["step-000002"]
    assert gaps[0] < 1e-4  # brought before steps 0 and 2
    assert gaps[2] < 1e-4
    assert gaps[1] > 1e-4  # a step behind
    assert gaps[3] > 1e-4


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["no-such-program", "{path}"], "there is no program 'no-such-program'"),
        ([sys.executable, "-c", "raise SystemExit('no room')", "{path}"], "ended with status 1: no room"),
    ],
)
def test_a_command_that_fails_ends_the_run(
    server: CompletionsServer, make_config: MakeConfig, command: list[str], error: str
) -> None:
    rollout = remote_rollout(server, sync_every=1, sync_command=command)
    with pytest.raises(RolloutError, match=error):
        train(make_config(loss={"beta": 0.0}, rollout=rollout))


@pytest.mark.parametrize("scaled", [True, False])
def test_log_probs_of_another_temperature_are_noticed(
    server: CompletionsServer, make_config: MakeConfig, scaled: bool
) -> None:
    server.scaled = scaled
    rollout = remote_rollout(server, temperature=0.7)
    config = make_config(loss={"beta": 0.0}, rollout=rollout, trainer={"steps": 1})
    if scaled:
        assert train(config)["steps"] == 1
    else:
        with pytest.raises(RolloutError, match="--logprobs-mode processed_logprobs"):
            train(config)


def test_the_kl_in_the_reward_is_the_policys_and_not_the_stale_servers(
    server: CompletionsServer, reference_server, make_config: MakeConfig, varied_task: dict[str, Any]
) -> None:
    config = make_config(
        reference_server.url,
        task=varied_task,
        loss={"kl_in": "reward", "kl": "k1", "beta": 0.5},
        rollout=remote_rollout(server),
        trainer={"steps": 3},
    )
    train(config)
    # The server holds the reference's weights: by its own log-probs the KL would be 0 for ever.
    assert abs(records(config)[2]["kl"]) > 1e-4


def test_a_server_that_is_away_is_spoken_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many prompts wait for it: who, why, for how long; and that it is back."""
    away = 8

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal away
        with lock:
            away -= 1
            return httpx.Response(503) if away >= 0 else says()

    lock = threading.Lock()
    config = options(group_size=1, max_wait=60)
    with (
        caplog.at_level(logging.INFO, logger="grpo_client"),
        sampler(config, transport=httpx.MockTransport(answer), sleep=lambda _: None) as remote,
    ):
        remote.sample(PROMPTS, seed=0)
    said = [record.getMessage() for record in caplog.records if record.name == "grpo_client"]
    assert len(said) == 2
    assert "http://server" in said[0]
    assert "503" in said[0]
    assert "trying again for up to 60 s" in said[0]
    assert "answers again" in said[1]
