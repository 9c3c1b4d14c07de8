"""The frozen reference, seen from a training step: scoring is sent off first and collected when it is needed.

    pending = reference.submit(portions)     returns at once; the server works
    ... rewards, the policy's own forward ...
    logprobs = pending[0].collect()          waits for what is still missing

Which reference answered is part of the result of a run: its fingerprint is pinned at the start, and again when the run itself
moves it, so that a server that comes back from a restart with another model ends the run instead of bending it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from grpo_client import (
    NotFound,
    ReferenceClient,
    ReferenceInfo,
    RequestRefused,
    RetryPolicy,
    ScoreResult,
    Status,
)
from grpo_client.addresses import read_key
from grpo_client.protocol import Normalizer
from torch import Tensor

from grpo_training.config import ReferenceConfig
from grpo_training.rollouts.rollout import Rollout

logger = logging.getLogger(__name__)

ADMIN_KEY_VARIABLE = "GRPO_ADMIN_KEY"
SECONDS_BETWEEN_LINES = 10.0


@dataclass(slots=True)
class Pending:
    """Scores of one portion, under way."""

    rollout: Rollout
    future: Future[ScoreResult]
    submitted: float = field(default_factory=time.perf_counter)
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        self.future.add_done_callback(self._arrived)

    def _arrived(self, _: Future[ScoreResult]) -> None:
        self.latency_s = time.perf_counter() - self.submitted

    def collect(self) -> tuple[Tensor, Tensor]:
        """Log-probs (S, C) fp32, 0 outside `loss_mask`, and (S,) bool: which completions may be used.

        A completion that the reference could not score (a NaN or infinite log-prob) may not.
        """
        result = self.future.result()
        mask = self.rollout.loss_mask
        logprobs, _ = result.padded(length=mask.shape[1])
        usable = torch.from_numpy(result.status == Status.OK).to(mask.device)
        scores = torch.from_numpy(np.nan_to_num(logprobs, nan=0.0, posinf=0.0, neginf=0.0)).to(mask.device)
        return scores.where(mask, 0.0), usable


@dataclass(slots=True)
class _Told:
    """Says every so often how far an upload is. since: seconds, when that was said last."""

    since: float

    def __call__(self, there: int, total: int) -> None:
        if (now := time.monotonic()) - self.since >= SECONDS_BETWEEN_LINES:
            logger.info("the reference's next weights: %d of %d MB are there", there // 10**6, total // 10**6)
            self.since = now


class Reference:
    """Scores rollouts against the reference over HTTP. Made once the server is ready; `info` says who answers."""

    def __init__(
        self,
        config: ReferenceConfig,
        *,
        temperature: float,
        normalizer: Normalizer,
        fingerprint: str | None = None,
    ) -> None:
        """fingerprint: of the reference that a resumed run began with; with config.pin another one is refused.

        Waits for the server up to config.max_wait seconds. Raises the client's errors: FingerprintMismatch,
        NotAuthorized, DeadlineExceeded.
        """
        self._temperature = temperature
        self._normalizer: Normalizer = normalizer
        self._admin_key = read_key(
            config.admin_key.get_secret_value() if config.admin_key else os.environ.get(ADMIN_KEY_VARIABLE)
        )
        self._uploads = config.sync_by == "http"
        self._client = ReferenceClient(
            config.urls,
            api_key=config.api_key.get_secret_value() if config.api_key else None,
            timeout=config.timeout,
            retry=RetryPolicy(max_wait=config.max_wait, limit="reference.max_wait"),
            fingerprint=(fingerprint or "first") if config.pin else None,
            model=config.model,
        )
        try:
            self.info: ReferenceInfo = self._client.wait_ready()
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def spelt(self, ids: Sequence[int]) -> str | None:
        """The text of ids by the server's own tokenizer; None where it tells of none."""
        try:
            return self._client.detokenize(ids)
        except (NotFound, RequestRefused):
            return None

    def move(self, model: Path, alpha: float) -> None:
        """Have the server host alpha * model + (1 - alpha) * reference from now on: `info` is another then, and pinned.

        model: a directory, which the server must be able to read where it is not uploaded. Raises the client's errors:
        RequestRefused, NotAuthorized.
        """
        decay = None if alpha == 1.0 else 1.0 - alpha
        source = str(model)
        if self._uploads:
            source = self._client.upload(model, on_progress=_Told(time.monotonic()), admin_key=self._admin_key)
        self.info = self._client.move(source, decay=decay, admin_key=self._admin_key)

    def submit(self, portions: Sequence[Rollout]) -> list[Pending]:
        """Send every portion off as a request of its own, all in flight at once."""
        return [
            Pending(
                portion,
                self._client.submit(
                    portion.prompts,
                    portion.completions(),
                    temperature=self._temperature,
                    normalizer=self._normalizer,
                    completion_mask=portion.written(),
                ),
            )
            for portion in portions
        ]
