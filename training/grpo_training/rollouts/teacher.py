"""The teachers, seen from a training step: rollouts are sent off as soon as they are sampled, and collected when needed.

    lessons = teachers.submit(portions, names)     returns at once; the servers work
    ... rewards, the policy's own forward ...
    scores = lessons[0].collect()                  waits for what is still missing

Each group goes to the teacher of its row, one request a teacher and portion. What comes back is put together in the
rollout's order. A completion that a teacher could not score is not usable, and none of its numbers is used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from grpo_client import (
    GrpoClientError,
    NotFound,
    ReferenceClient,
    ReferenceInfo,
    RequestRefused,
    RetryPolicy,
    ScoreResult,
    Status,
)
from grpo_client.protocol import Extra, Normalizer
from torch import Tensor

from grpo_training.config import DistillConfig, TeacherError
from grpo_training.rollouts.rollout import Rollout
from grpo_training.rollouts.support import TeacherTokens, teachable, tokens_of


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """Of one portion, S completions of up to C tokens.

    logprobs: (S, C) fp32 of what was sampled, 0 outside `loss_mask`; None where they are of another temperature than it was
    sampled with. usable: (S,) bool. tokens: of the tokens in `loss_mask`, row by row; None where the teacher is asked about the
    sampled tokens alone.
    """

    logprobs: Tensor | None
    usable: Tensor
    tokens: TeacherTokens | None


class Asked(NamedTuple):
    """What one teacher was asked of a portion. groups: their places in it."""

    name: str
    groups: list[int]
    future: Future[ScoreResult]


class Lesson:
    """A portion's scores, under way."""

    def __init__(
        self, rollout: Rollout, asked: Sequence[Asked], options: DistillConfig, vocab: int, *, comparable: bool = True
    ) -> None:
        """vocab: ids of the policy lie below it. comparable: whether teacher and sampler have one temperature."""
        self._rollout, self._asked = rollout, asked
        self._options, self._vocab, self._comparable = options, vocab, comparable
        self._sent = time.perf_counter()
        self.latency_s = 0.0
        for one in asked:
            one.future.add_done_callback(self._arrived)

    def _arrived(self, _: Future[ScoreResult]) -> None:
        self.latency_s = max(self.latency_s, time.perf_counter() - self._sent)

    def collect(self) -> TeacherScores:
        """Wait for the answers. Raises TeacherError where a teacher stays away, is another one, or answers another question."""
        rollout, device = self._rollout, self._rollout.ids.device
        lengths = rollout.lengths.cpu().numpy()
        starts = np.concatenate([[0], lengths.cumsum()])
        size = rollout.group_size
        usable = np.zeros(len(lengths), dtype=np.bool_)
        figures: dict[str, np.ndarray[Any, Any]] = {}
        for name, groups, future in self._asked:
            with _named(name):
                result = future.result()
            rows = [k * size + g for k in groups for g in range(size)]
            places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
            usable[rows] = result.status == Status.OK
            for figure, values in {"logprobs": result.logprobs, **result.extras}.items():
                if figure not in figures:
                    figures[figure] = np.zeros((int(starts[-1]), *values.shape[1:]), dtype=values.dtype)
                figures[figure][places] = values
        mask = rollout.loss_mask
        written = mask[rollout.mask].cpu().numpy()  # of all tokens those that the policy wrote
        told = {name: torch.from_numpy(values[written]).to(device) for name, values in figures.items()}
        known = torch.from_numpy(usable).to(device)
        tokens = None
        if self._options.kind != "sampled":
            student = None if rollout.top_ids is None else rollout.top_ids[mask].long()
            if self._options.ids_from == "sampled":
                student = rollout.ids[mask][:, None]
            tokens = tokens_of(self._options.ids_from, told, student, self._vocab)
            known = known & teachable(tokens, mask, self._options)
        if not self._comparable:
            return TeacherScores(None, known, tokens)
        logprobs = torch.zeros(mask.shape, device=device).masked_scatter(mask, told["logprobs"].nan_to_num(nan=0.0))
        return TeacherScores(logprobs.where(known[:, None], 0.0), known, tokens)


class Teachers:
    """All teachers of a run over HTTP. Made once each is ready; `info` says who they are."""

    def __init__(
        self,
        options: DistillConfig,
        *,
        temperature: float,
        normalizer: Normalizer,
        vocab_size: int,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        """temperature: of the rollouts. vocab_size: of the policy. fingerprints: of the teachers that a resumed run began with;
        with a teacher's `pin` another one is refused.

        Waits for each up to its max_wait seconds. Raises TeacherError, whose cause is the client's error.
        """
        self._options, self._vocab = options, vocab_size
        self._temperature = temperature if options.temperature is None else options.temperature
        self._comparable = self._temperature == temperature
        self._normalizer: Normalizer = normalizer
        self._clients: dict[str, ReferenceClient] = {}
        self.info: dict[str, ReferenceInfo] = {}
        with ExitStack() as undo:
            for name, where in options.teachers.items():
                began = (fingerprints or {}).get(name)
                client = ReferenceClient(
                    where.urls,
                    api_key=where.api_key.get_secret_value() if where.api_key else None,
                    timeout=where.timeout,
                    retry=RetryPolicy(max_wait=where.max_wait, limit=f"distillation.teachers.{name}.max_wait"),
                    fingerprint=(began or "first") if where.pin else None,
                    model=where.model,
                )
                self._clients[name] = undo.enter_context(client)
                with _named(name):
                    self.info[name] = client.wait_ready()
            self._close = undo.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    @property
    def fingerprints(self) -> dict[str, str]:
        """By name."""
        return {name: info.fingerprint for name, info in self.info.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._clients)

    def spelt(self, name: str, ids: Sequence[int]) -> str | None:
        """The text of ids by the teacher's own tokenizer; None where it tells of none."""
        with _named(name):
            try:
                return self._clients[name].detokenize(ids)
            except (NotFound, RequestRefused):
                return None

    def keep_below(self, vocab_size: int) -> None:
        """From here on the policy's ids lie below this."""
        self._vocab = min(self._vocab, vocab_size)

    def submit(self, portions: Sequence[Rollout], names: Sequence[str]) -> list[Lesson]:
        """Send every portion off. names: the teacher of each group, over all portions."""
        lessons: list[Lesson] = []
        first = 0
        for portion in portions:
            mine = names[first : first + len(portion.prompts)]
            first += len(portion.prompts)
            by_name: dict[str, list[int]] = {}
            for k, name in enumerate(mine):
                by_name.setdefault(name, []).append(k)
            asked = [Asked(name, groups, self._ask(name, portion.chosen(groups))) for name, groups in by_name.items()]
            lessons.append(Lesson(portion, asked, self._options, self._vocab, comparable=self._comparable))
        return lessons

    def _ask(self, name: str, rollout: Rollout) -> Future[ScoreResult]:
        what: dict[str, Any] = {}
        if self._options.kind != "sampled":
            extras: tuple[Extra, ...] = ("tail",) if self._options.tail == "bucket" else ()
            what["extras"] = extras
            if self._options.ids_from != "sampled":
                what["top_k"] = min(self._options.top_k, self.info[name].vocab_size)
            if self._options.ids_from != "teacher":
                what["token_ids"] = _by_group(
                    rollout, rollout.ids[..., None] if rollout.top_ids is None else rollout.top_ids
                )
        if rollout.by_policy is not None:
            what["completion_mask"] = _by_group(rollout, rollout.by_policy)
        return self._clients[name].submit(
            rollout.prompts,
            rollout.completions(),
            temperature=self._temperature,
            normalizer=self._normalizer,
            **what,
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says which teacher it was."""
    try:
        yield
    except GrpoClientError as error:
        raise TeacherError(f"teacher {name} (distillation.teachers): {error}") from error


def _by_group(rollout: Rollout, values: Tensor) -> list[list[Any]]:
    """(S, C, ...) as an array for each completion, without padding, group by group."""
    rows = [row[:n] for row, n in zip(values.cpu().numpy(), rollout.lengths.tolist(), strict=True)]
    return [rows[k : k + rollout.group_size] for k in range(0, len(rows), rollout.group_size)]
