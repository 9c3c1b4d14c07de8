"""What both clients do between the caller and the connections, without doing any I/O: plan, send-with-what, read, join."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

from grpo_client.arguments.types import CompletionMask, WantedIds
from grpo_client.errors import FingerprintMismatch
from grpo_client.http.exchange import Call, Reply, drop_call, load_call, read_info, read_scores, score_call
from grpo_client.http.retry import RetryPolicy
from grpo_client.http.retry_log import RetryLog
from grpo_client.moving import Move, Steps, alone, dropped, loaded, together
from grpo_client.protocol import Extra, Normalizer, ReferenceInfo, ScoreResult, TopDtype
from grpo_client.settings import ClientSettings, check_given
from grpo_client.splitting import merge, split
from grpo_client.text import AnyRequest
from grpo_client.validation.request import check_structure
from grpo_client.validation.request_values import check_values

FIRST = "first"  # the pin that is set by whoever answers first


class TextScoreOptions(TypedDict, total=False):
    """How to score, all optional; `score_text` spells them out.

    temperature: one, or one per group (1.0); logits are divided by it. normalizer: "softmax" or "stablemax".
    extras: any of "entropy", "logsumexp", "rank", "tail", "hidden". top_k: so many best tokens a position (0).
    top_dtype: of the log-probs of best and asked tokens, "float32" or "float16".
    """

    temperature: float | Sequence[float]
    normalizer: Normalizer
    extras: Sequence[Extra]
    top_k: int
    top_dtype: TopDtype


class ScoreOptions(TextScoreOptions, total=False):
    """The same for `score` and `submit`, and token_ids: `[group][completion][position][k]` ids to score as well;
    completion_mask: `[group][completion][position]`, 0 for tokens that are not scored."""

    token_ids: WantedIds | None
    completion_mask: CompletionMask | None


class FingerprintPin:
    """That all the numbers a run uses come from one reference.

    None: no pin. "first": whoever answers first is the one. Anything else: that fingerprint. Thread-safe.
    """

    def __init__(self, pin: str | None) -> None:
        self._take_first = pin == FIRST
        self._fingerprint = None if self._take_first else pin
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str | None:
        """What a request must ask for, as far as it is known."""
        return self._fingerprint

    def move(self, reference: ReferenceInfo) -> None:
        """This one is pinned from now on, where one is."""
        with self._lock:
            if self._fingerprint is not None or self._take_first:
                self._fingerprint = reference.fingerprint

    def check(self, reference: ReferenceInfo) -> None:
        """Raises FingerprintMismatch when another reference answered than the pinned one."""
        with self._lock:
            if self._take_first and self._fingerprint is None:
                self._fingerprint = reference.fingerprint
            pinned = self._fingerprint
        if pinned is not None and reference.fingerprint != pinned:
            raise FingerprintMismatch(
                f"reference {reference.fingerprint} ({reference.model}) answered, but {pinned} is pinned; "
                "point the client at the right server, or build a new client if the change is meant"
            )


class ClientCore:
    """The state that a client has beside its connections: settings, balancer, pin, and what was said of failures.

    before: the core of the process that forked this one; what is known of the reference stays known.
    """

    def __init__(self, settings: ClientSettings, before: ClientCore | None = None) -> None:
        self.settings = settings
        self.balancer = settings.balancer()
        self.log = RetryLog(clock=settings.retry.clock)
        self._pin = FingerprintPin((before.told() if before else settings).fingerprint)

    def told(self) -> ClientSettings:
        """The settings, with what is known by now of the reference: what a copy of this client is made from."""
        return self.settings.pinned(self._pin.fingerprint)

    def until_ready(self, timeout: float | None) -> RetryPolicy:
        """How long, from now on, a server is waited for. timeout: seconds; None: as long as for any request."""
        return self.settings.retry.for_goal(f"{' or '.join(self.settings.urls)} to be ready", timeout, "timeout")

    def plan(self, request: AnyRequest) -> Sequence[AnyRequest]:
        """Check the request and cut it. Raises ProtocolError before anything is sent."""
        self.settings.check_key()
        check_structure(check_values(request))
        return split(request, self.settings.max_request_tokens)

    def call(self, part: AnyRequest) -> Call:
        """The call for one part, pinned as far as the fingerprint is known by now."""
        asked = part if part.model else replace(part, model=self.settings.model)
        of_ours = asked.model == self.settings.model
        pinned = asked if asked.fingerprint or not of_ours else replace(asked, fingerprint=self._pin.fingerprint)
        return score_call(pinned, self.settings.encoding)

    def scores(self, reply: Reply, part: AnyRequest) -> ScoreResult:
        """The answer to a part. Raises what `read_scores` raises, and FingerprintMismatch."""
        result = read_scores(reply, part)
        if part.model in (None, self.settings.model):
            self._pin.check(result.reference)
        FingerprintPin(part.fingerprint).check(result.reference)
        return result

    def info(self, reply: Reply) -> ReferenceInfo:
        """Who answers. Raises FingerprintMismatch when it is not the pinned reference."""
        info = read_info(reply)
        self._pin.check(info)
        return info

    @property
    def model(self) -> str | None:
        """The name of the reference that is asked; None: the server's default."""
        return self.settings.model

    def accepted(self, reply: Reply) -> ReferenceInfo:
        """Who answers, pinned from now on."""
        info = read_info(reply)
        self._pin.move(info)
        return info

    def steps(self, move: Move) -> Steps:
        """How the servers are moved. Raises InvalidSetting for a model that is empty."""
        self.settings.check_key()
        check_given(model=move.model)
        urls = list(dict.fromkeys(self.settings.urls))
        return alone(move, urls[0]) if len(urls) == 1 else together(move, urls)

    def load_steps(
        self, name: str, source: str, revision: str | None, base: str | None, admin_key: str | None
    ) -> Steps:
        """How the servers come to host a further reference. Raises InvalidSetting for a text that is empty."""
        self.settings.check_key()
        check_given(name=name, source=source, base=base)
        return loaded(list(dict.fromkeys(self.settings.urls)), load_call(name, source, revision, base, admin_key))

    def drop_steps(self, name: str, admin_key: str | None) -> Steps:
        """How they let go of it. Raises InvalidSetting for a text that is empty."""
        self.settings.check_key()
        check_given(name=name)
        return dropped(list(dict.fromkeys(self.settings.urls)), drop_call(name, admin_key))

    def moved(self, infos: Sequence[ReferenceInfo]) -> ReferenceInfo:
        """Who answers from now on, which is pinned where the one before was."""
        self._pin.move(infos[0])
        return infos[0]

    def join(self, request: AnyRequest, results: Sequence[ScoreResult]) -> ScoreResult:
        """The answers to all parts as one."""
        return merge(request, results)

    def __repr__(self) -> str:
        return ", ".join(self.settings.urls)
