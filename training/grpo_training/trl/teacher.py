"""TRL's DistillationTrainer with its teacher over HTTP: any k, the student's own best tokens, and the mass outside them.

TRL's trainer for a served teacher takes the teacher's best tokens at beta 0 and a single one beyond, since its server "cannot
score arbitrary student-selected tokens". This one sends the student's ids where beta is not 0. Where the teacher's are compared
the request is out before the student's forward begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple

import torch
from grpo_client import ReferenceClient, ScoreResult, Status
from grpo_numerics.head import score_rows
from grpo_numerics.head.chosen import fused_chosen_logprobs
from grpo_numerics.model_parts import head_spec
from torch import Tensor
from trl import DistillationConfig  # pyright: ignore[reportAttributeAccessIssue]

from grpo_training.losses.distillation import Support, Tail, distillation_terms
from grpo_training.trl.private import DistillationSeams
from grpo_training.trl.served import ServedReference


class RemoteTeacherTrainer(DistillationSeams):
    """DistillationTrainer(model, args, ..., teacher=url).

    args: a DistillationConfig; beta 0 is the forward KL, 1 the reverse, between them the Jensen-Shannon divergence as in TRL.
    teacher: URL, URLs of servers that host the same teacher, or a ReferenceClient of your own (then you close it). With a URL
    the first fingerprint that answers is pinned. reference_model: the teacher's name, where its server hosts several; NotFound,
    with the names that are there, for another. top_k: ids at each position; at the vocabulary's size the loss is TRL's own.
    support: whose ids; None takes the teacher's at beta 0 and else the student's. tail: as in `distillation_terms`.

    Metrics beside TRL's: `teacher_mass`, `student_mass`, `teacher_unscored` (completions for which the teacher had no finite
    log-prob; they are left out). Raises ReferenceUnusable for a teacher of another vocabulary, ValueError for a model that sees
    images, and TrlChanged under a TRL whose private members have moved.
    """

    def __init__(
        self,
        model: Any,
        args: DistillationConfig | None = None,
        *,
        teacher: str | Sequence[str] | ReferenceClient,
        reference_model: str | None = None,
        top_k: int = 64,
        support: Literal["teacher", "student"] | None = None,
        tail: Tail = "bucket",
        **kwargs: Any,
    ) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if kwargs.pop("teacher_model", None) is not None:
            raise ValueError("teacher_model is loaded into this process: give either it or teacher, a server's URL")
        super().__init__(model=model, teacher_model=None, args=args, **kwargs)
        if self.sees_images:
            raise ValueError("the teacher's service scores text alone: no images")
        vocab = self.model.config.get_text_config().vocab_size
        self.teacher = ServedReference.at(teacher, reference_model, temperature=self.temperature, vocab_size=vocab)
        self._k = min(top_k, vocab)
        self._tail: Tail = tail
        self._support = support or ("student" if self.beta > 0 else "teacher")

    def loss_of(
        self, student: Any, inputs: dict[str, Any], items: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = _Batch.of(inputs)
        asked = self._ask(batch, None) if self._support == "teacher" else None
        ids, attention = (
            torch.cat([inputs[f"prompt_{what}"], inputs[f"completion_{what}"]], dim=1) for what in ("ids", "mask")
        )
        hidden = self.hidden_states(student, ids, attention, inputs["completion_ids"].size(1))[batch.trained]
        layer = student.get_output_embeddings()
        spec = head_spec(student, student.base_model, layer)
        seen = score_rows(
            hidden.detach(),
            layer.weight.detach(),
            inputs["completion_ids"][batch.trained],
            spec=spec,
            temperature=self.temperature,
            top_k=self._k if asked is None else 0,
            want={"entropy"},
        )
        assert seen.entropy is not None
        told, usable = batch.read(asked or self._ask(batch, seen.top_ids), seen.top_ids)
        under = {"spec": spec, "temperature": self.temperature}
        at = fused_chosen_logprobs(hidden, layer.weight, told.ids, **under)
        terms = distillation_terms(at, told, "jsd", tail=self._tail, beta=self.beta)
        count = usable.sum()
        loss = terms.divergence.where(usable, 0.0).sum() / (items if items is not None else count.clamp(min=1))
        for name, figure in (("teacher_mass", terms.teacher_mass), ("student_mass", terms.student_mass)):
            self.tell(name, (figure.where(usable, 0.0).sum() / count.clamp(min=1)))
        self.tell("teacher_unscored", batch.untold(usable))
        return loss, seen.entropy.where(usable, 0.0).sum(), count

    def _ask(self, batch: _Batch, student: Tensor | None) -> Future[ScoreResult]:
        what: dict[str, Any] = {"top_k": self._k} if student is None else {"token_ids": batch.by_token(student)}
        if self._tail == "bucket":
            what["extras"] = ("tail",)
        return self.teacher.client.submit(
            batch.prompts,
            batch.completions,
            temperature=self.temperature,
            completion_mask=batch.asked,
            **what,
        )


class _Batch(NamedTuple):
    """trained: (B, C) bool, N tokens of it. asked: the same without padding. The N tokens stand row by row."""

    prompts: list[list[int]]
    completions: list[list[int]]
    asked: list[list[bool]]
    trained: Tensor

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> _Batch:
        there = inputs["completion_mask"].bool()
        trained = there & inputs["tool_mask"].bool() if "tool_mask" in inputs else there
        prompts = [
            row[mask].tolist() for row, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"].bool(), strict=True)
        ]
        rows = [
            (ids[mask].tolist(), wanted[mask].tolist())
            for ids, mask, wanted in zip(inputs["completion_ids"], there, trained, strict=True)
        ]
        return cls(prompts, [ids for ids, _ in rows], [wanted for _, wanted in rows], trained)

    def by_token(self, ids: Tensor) -> list[list[list[int]]]:
        """(N, k) ids as a list per completion and token; -1 for tokens of which nothing is asked."""
        rest, nothing = iter(ids.tolist()), [-1] * ids.shape[1]
        return [[next(rest) if wanted else nothing for wanted in row] for row in self.asked]

    def read(self, future: Future[ScoreResult], student: Tensor | None) -> tuple[Support, Tensor]:
        """What the teacher told of the N tokens, and (N,) bool: of which completions it may be used."""
        result, device = future.result(), self.trained.device
        asked = torch.tensor([wanted for row in self.asked for wanted in row], dtype=torch.bool)
        figures = {name: torch.from_numpy(values)[asked].to(device) for name, values in result.extras.items()}
        ok = torch.from_numpy(result.status == Status.OK).to(device)
        usable = ok[:, None].expand_as(self.trained)[self.trained]
        kind = "top" if student is None else "token"
        ids = figures["top_ids"].long() if student is None else student.long()
        logprobs = figures[f"{kind}_logprobs"]
        if student is not None:  # a token without any mass there would make a reverse KL infinite
            impossible = torch.zeros_like(self.trained).masked_scatter(self.trained, (logprobs == -torch.inf).any(1))
            usable = usable & ~impossible.any(1)[:, None].expand_as(self.trained)[self.trained]
        tail = figures.get(f"{kind}_tail", torch.zeros_like(usable, dtype=torch.float32))
        # No id is known where nothing may be used, so that nothing that stands there is.
        return Support(ids.masked_fill(~usable[:, None], -1), logprobs, tail.masked_fill(~usable, -torch.inf)), usable

    def untold(self, usable: Tensor) -> Tensor:
        """How many completions have a token that may not be used."""
        return torch.zeros_like(self.trained).masked_scatter(self.trained, ~usable).any(1).sum()
