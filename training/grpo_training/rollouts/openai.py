"""Rollouts sampled by another engine: any server with the OpenAI completions API that takes and returns token ids.

One request a prompt, `concurrency` of them under way at once, answers in the prompts' order whatever order they come in.
The connections, what is tried again and for how long (tenacity, `Retry-After`) are those of the reference client. The
server samples with its own weights: see `weight_sync` for how they follow the policy's, and `rollout_correction` for what
is done about the difference.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from typing import Self

import numpy as np
import torch
from grpo_client import GrpoClientError, RetryPolicy
from grpo_client.http.exchange import Call, raise_for_status
from grpo_client.http.retry_log import RetryLog
from grpo_client.http.transport import BaseTransport, SyncTransport, TransportSettings
from torch import Tensor

from grpo_training.config import RolloutConfig, RolloutError
from grpo_training.rollouts.conversation import converse
from grpo_training.rollouts.environment import Asked, Environments
from grpo_training.rollouts.policy import Policy
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.wire import Border, Sampled, read_answer, request_body

ROUTE = "/v1/completions"


class OpenAISampler:
    """A `Sampler` over HTTP. A context manager: closing it ends the waiting for a server that is away."""

    def __init__(
        self,
        options: RolloutConfig,
        *,
        eos_ids: frozenset[int],
        vocab_size: int,
        device: torch.device,
        api_key: str | None = None,
        bring_weights: Callable[[int], None] | None = None,
        environments: Environments | None = None,
        transport: BaseTransport | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """eos_ids, vocab_size: of the policy. api_key: sent as a bearer token, never shown. bring_weights: called ahead of
        each step with its number. environments: what answers in completions of several turns. transport, sleep: for tests,
        as in the reference client.
        """
        assert options.base_url is not None
        self._options = options
        self._base = options.base_url
        self._border = Border(options.group_size, options.max_new_tokens, vocab_size, eos_ids, stops=bool(options.stop))
        self._device = device
        self._bring_weights = bring_weights
        self._environments = environments
        self._retry = RetryPolicy(max_wait=options.max_wait, limit="rollout.max_wait")
        self._log = RetryLog()  # shared, so that a server which is away is spoken of once and not for each prompt
        headers = {"User-Agent": f"grpo-train/{version('grpo-refserver')}"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._line = SyncTransport(TransportSettings(options.timeout, options.concurrency, headers), transport)
        self._threads = ThreadPoolExecutor(options.concurrency, "grpo-rollout")
        self._closed = threading.Event()
        self._sleep = sleep or self._wait_unless_closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._threads.shutdown(cancel_futures=True)
        self._line.close()

    @property
    def foreign(self) -> bool:
        return True

    def keep_below(self, vocab_size: int) -> None:
        self._border = replace(self._border, vocab_size=vocab_size)

    def update_weights(self, step: int) -> None:
        if self._bring_weights:
            self._bring_weights(step)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, seed: int, rows: Tensor | None = None, asked: Sequence[Asked] = ()
    ) -> Rollout:
        """One process samples all, whatever `rows`.

        Raises RolloutError when the server refuses, stays away for `max_wait` seconds, or answers what cannot be used."""
        size, most = self._options.group_size, self._options.max_new_tokens
        if self._environments is None or not asked:
            return self._drawn(prompts, group_size=size, seed=seed)
        return converse(
            self._drawn,
            self._environments,
            prompts,
            asked,
            group_size=size,
            max_new_tokens=most,
            seed=seed,
            device=self._device,
        )

    def _drawn(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        places: Tensor | None = None,
        limits: Sequence[int] | None = None,
    ) -> Rollout:
        """One turn; see `conversation.Draw`."""
        at = range(len(contexts)) if places is None else places.tolist()
        room = [self._border.max_new_tokens] * len(contexts) if limits is None else limits
        asked = [
            self._threads.submit(
                self._ask,
                context,
                _prompt_seed(seed, place),
                replace(self._border, group_size=group_size, max_new_tokens=most),
            )
            for context, place, most in zip(contexts, at, room, strict=True)
        ]
        try:
            sampled = [row for future in asked for row in future.result()]
        finally:
            for future in asked:
                future.cancel()
        return _rollout(contexts, group_size, sampled, self._device)

    def check_temperature(self, policy: Policy, rollout: Rollout) -> None:
        """Raise RolloutError if the server's log-probs are those of temperature 1 while it samples at another.

        vLLM does that unless it is told otherwise; the correction and the sampler's gap would be wrong without a word.
        """
        if self._options.temperature == 1.0:
            return
        plain = copy.copy(policy)
        plain.temperature = 1.0
        with torch.no_grad():
            asked, unscaled = (
                float((p.logprobs(rollout) - rollout.logprobs).abs().sum() / rollout.loss_mask.sum())
                for p in (policy, plain)
            )
        if unscaled < asked:
            raise RolloutError(
                f"{self._base}: the log-probs are not of temperature {self._options.temperature:g} but of 1 (mean distance "
                f"from the policy's {unscaled:.3g} against {asked:.3g}): start vLLM with "
                f"--logprobs-mode processed_logprobs, or set rollout.temperature=1"
            )

    def _ask(self, prompt: Sequence[int], seed: int, border: Border) -> list[Sampled]:
        body = request_body(prompt, self._options, border, seed=seed)
        call = Call("POST", ROUTE, {"Content-Type": "application/json", "Accept": "application/json"}, body)

        def once() -> bytes:
            reply = self._line.send(call, self._base)
            raise_for_status(reply)
            self._log.answered(reply.url)
            return bytes(reply.body)

        retrying = self._retry.retrying(self._sleep, lambda: False, self._closed.is_set, self._log)
        try:
            answer: bytes = retrying(once)
        except GrpoClientError as error:
            raise RolloutError(f"the rollout server failed: {error}") from error
        try:
            return read_answer(answer, prompt, border)
        except RolloutError as error:
            raise RolloutError(f"{self._base}{ROUTE}: {error}") from error

    def _wait_unless_closed(self, seconds: float) -> None:
        self._closed.wait(seconds)


def _prompt_seed(seed: int, place: int) -> int:
    """30 bits, which every server takes, also after it has added a completion's number to them."""
    return int(np.random.SeedSequence((seed, place)).generate_state(1, np.uint32)[0] >> np.uint32(2))


def _rollout(
    prompts: Sequence[Sequence[int]], group_size: int, rows: Sequence[Sampled], device: torch.device
) -> Rollout:
    width = max(len(row.ids) for row in rows)
    lengths = torch.tensor([len(row.ids) for row in rows], device=device)
    return Rollout(
        [list(p) for p in prompts],
        group_size,
        torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows], device=device),
        torch.arange(width, device=device) < lengths[:, None],
        torch.tensor([row.logprobs + [0.0] * (width - len(row.ids)) for row in rows], device=device),
        None,
        torch.tensor([row.ended for row in rows], device=device),
    )
