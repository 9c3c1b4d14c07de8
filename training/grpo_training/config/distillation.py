"""A teacher that the policy is drawn to, beside the task's reward or in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from .model import ReferenceConfig
from .section import Section

TeacherKind = Literal["sampled", "forward", "reverse", "jsd", "skew_forward", "skew_reverse"]
TeacherSupport = Literal["teacher", "student", "union", "sampled"]
TeacherTail = Literal["bucket", "none", "renormalise"]

_OWN_SUPPORT: Mapping[TeacherKind, TeacherSupport] = {
    "sampled": "sampled",
    "reverse": "student",
    "skew_reverse": "student",
}
_DIVERGENCES = tuple(kind for kind in get_args(TeacherKind) if kind != "sampled")
_OF_KIND: Mapping[str, tuple[TeacherKind, ...]] = {
    "beta": ("jsd",),
    "alpha": ("skew_forward", "skew_reverse"),
    "top_k": _DIVERGENCES,
    "tail": _DIVERGENCES,
}


class DistillConfig(Section):
    """What the policy is taught, and by whom. The section is there to switch it on."""

    teachers: Mapping[str, ReferenceConfig] = Field(default_factory=dict)
    """A URL, or several servers of one teacher as a list; or teachers by name, `{math: http://a:8000, code: http://b:8000}`,
    each a URL, a list, or a section with the fields of `reference`."""
    targets: Path | None = None
    """In place of teachers: files that `grpo-client score --top-k 64 --tail --format parquet` has written, a directory or one
    of them. A step trains on the next rollout.prompts_per_step rows, and samples nothing. Needs the extra `data`."""
    column: str = "teacher"
    """With several teachers: the column of the task's rows that names a row's. The teacher called `default` has the rows
    that name none."""
    kind: TeacherKind = "sampled"
    """`sampled`: log p - log q of each sampled token is added to its advantage (the reverse KL as a reward a token). Else a
    divergence between the two distributions at each position is added to the loss: `forward` KL(p || q), `reverse`
    KL(q || p), `jsd` between the two, `skew_forward` and `skew_reverse` against a mixture; p is the teacher."""
    support: TeacherSupport | None = None
    """The ids on which a divergence compares the two: the teacher's top_k, the student's (taken as it samples), both, or the
    sampled token alone. None: the student's for the reverse kinds, else the teacher's."""
    top_k: int = Field(default=64, ge=1, le=1024)
    """How many ids of teacher or student; the server's --max-top-k allows for it."""
    tail: TeacherTail = "bucket"
    """The mass outside the support: one more outcome (`bucket`, a lower bound of the full divergence), left out (`none`), or
    both sides scaled to the support (`renormalise`, blind to mass that leaves it)."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """jsd: the teacher's share of the mixture. 0 is the forward KL and 1 the reverse; near them the gradient goes to 0."""
    alpha: float = Field(default=0.1, ge=0, lt=1)
    """skew_forward, skew_reverse: share of the compared distribution in the mixture."""
    temperature: float | None = Field(default=None, gt=0)
    """Of a divergence: logits of both sides are divided by it. None: rollout.temperature."""
    coef: float = Field(default=1.0, gt=0)
    """Weight of the teacher's term."""
    task_reward: bool = False
    """Train on the task's reward as well. Off: it is measured and logged, and no part of the loss."""
    clip: float | None = Field(default=None, gt=0)
    """sampled: the largest size of a difference, in nats."""
    starts_equal: bool = False
    """The policy starts as its teacher, to prove the way from one to the other: a run whose first loss is not 0 (below 1e-6, or
    1e-3 where one of them computes in 16 bits) ends before it begins."""

    @property
    def ids_from(self) -> TeacherSupport:
        """What `support` stands for."""
        return self.support or _OWN_SUPPORT.get(self.kind, "teacher")

    @property
    def student_top_k(self) -> int:
        """How many ids the sampler keeps a position; 0 where nothing looks at them."""
        return 0 if self.ids_from == "sampled" else self.top_k

    @field_validator("teachers", mode="before")
    @classmethod
    def _a_url_is_a_teacher(cls, value: Any) -> Any:
        if isinstance(value, str | list | tuple):
            return {"default": {"urls": value}}
        if not isinstance(value, Mapping):
            return {} if value is None else value
        return {name: {"urls": of} if isinstance(of, str | list | tuple) else of for name, of in value.items()}

    @field_validator("teachers")
    @classmethod
    def _names_for_metrics(cls, value: Mapping[str, ReferenceConfig]) -> Mapping[str, ReferenceConfig]:
        if bad := [name for name in value if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"{bad[0]!r} becomes part of a metric's name: use letters, digits, _, - and .")
        for name, teacher in value.items():
            if "urls" not in teacher.model_fields_set:
                raise ValueError(f"{name} has no urls: say where it is served")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.teachers) == bool(self.targets):
            raise ValueError(
                "give either teachers (a URL, or several by name) or targets (files that hold what one said); null takes away "
                "what the file gives"
            )
        if self.targets is None:
            return self
        if self.kind == "sampled":
            raise ValueError(
                "kind=sampled judges what the policy samples, and targets are of other tokens: set kind=forward"
            )
        if self.ids_from != "teacher":
            raise ValueError(
                f"support={self.ids_from} (kind={self.kind}) needs a teacher that can be asked, and targets hold its own best "
                f"ids: set support=teacher"
            )
        if self.task_reward:
            raise ValueError("task_reward is of completions that the policy samples, and targets are not: leave it out")
        if self.starts_equal:
            raise ValueError("starts_equal is tried on a rollout, and with targets none is sampled: leave it out")
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if self.kind == "sampled":
            if self.ids_from != "sampled":
                raise ValueError(f"kind=sampled speaks of the sampled token alone: leave support={self.support} out")
            if self.temperature is not None:
                raise ValueError("kind=sampled compares at rollout.temperature: leave temperature out")
        elif self.clip is not None:
            raise ValueError("clip is of kind=sampled: clipped terms of a divergence have gradients of the wrong sign")
        one_id = self.ids_from == "sampled" or (self.top_k == 1 and self.ids_from != "union")
        if self.tail == "renormalise" and one_id:
            raise ValueError("tail=renormalise over one id is 1 on both sides, a loss of 0: set tail=bucket")
        # By value, since a config.json that is trained from again gives every field.
        for name, kinds in _OF_KIND.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is of kind {', '.join(kinds)} and has no effect with {self.kind}: leave it out"
                )
        return self
