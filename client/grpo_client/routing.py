"""Which teacher is asked what, and their answers as one: without any I/O, so that both clients share it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError
from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult, Usage


@dataclass(frozen=True, repr=False, eq=False)
class TeacherResult(ScoreResult):
    """As `ScoreResult`, in the caller's order; `reference` is of the first teacher that was asked.

    references: who answered, by teacher. teacher: (K,) which scored each group; all names where they were mixed.
    """

    references: Mapping[str, ReferenceInfo] = field(default_factory=lambda: {})
    teacher: tuple[str, ...] = ()


Results = Mapping[str, ScoreResult]
# Yields what is to be asked, by teacher and of all at once; is sent their answers; returns the answer to the whole.
Plan = Generator[Mapping[str, ScoreRequest], Results, TeacherResult]


def known(name: object, teachers: Mapping[str, Any], param: str) -> str:
    """The name, if it is a teacher's. Raises ProtocolError."""
    if not isinstance(name, str) or name not in teachers:
        raise ProtocolError(
            f"{param} names {name!r:.60}, which is no teacher here; there are {', '.join(teachers)}",
            param,
            "unknown_teacher",
            422,
        )
    return name


def names_of(
    teacher: str | Sequence[str | None] | None, teachers: Mapping[str, Any], default: str | None, groups: int
) -> list[str]:
    """The teacher of each group. Raises ProtocolError for one that is unknown and for other than one a group."""
    named = [teacher] * groups if teacher is None or isinstance(teacher, str) else list(teacher)
    if len(named) != groups:
        raise ProtocolError(
            f"teacher has {len(named)} entries for {groups} prompts; give one name, or one per prompt",
            "teacher",
            "length_mismatch",
        )
    return [known(default if n is None else n, teachers, f"teacher[{k}]") for k, n in enumerate(named)]


def routed(request: ScoreRequest, names: Sequence[str]) -> Plan:
    """Each group by its teacher, of whom each is asked once."""
    members = {name: [k for k, n in enumerate(names) if n == name] for name in dict.fromkeys(names)}
    results = yield {
        name: replace(request, groups=tuple(request.groups[k] for k in places)) for name, places in members.items()
    }
    order = [k for places in members.values() for k in places]
    sizes, lengths = request.group_sizes, request.completion_lengths
    completion: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
    token: list[int] = [0, *np.cumsum(lengths, dtype=np.int64).tolist()]
    rows: list[int] = [i for k in order for i in range(completion[k], completion[k + 1])]
    tokens: list[int] = [t for i in rows for t in range(token[i], token[i + 1])]

    def placed(values: Sequence[npt.NDArray[Any]], at: Sequence[int]) -> npt.NDArray[Any]:
        given = np.concatenate([v for v in values if len(v)] or values[:1])
        out = np.empty_like(given)
        out[np.array(at, dtype=np.int64)] = given
        return out

    parts = [results[name] for name in members]
    return joined(
        [results],
        tuple(names),
        temperature=placed([p.temperature for p in parts], order),
        group_sizes=sizes,
        completion_lengths=lengths,
        logprobs=placed([p.logprobs for p in parts], tokens),
        status=placed([p.status for p in parts], rows),
        extras={name: placed([p.extras[name] for p in parts], tokens) for name in parts[0].extras},
        completion_mask=request.completion_mask,
    )


def joined(rounds: Sequence[Results], names: tuple[str, ...], **figures: Any) -> TeacherResult:
    """These figures, by whom all rounds were answered and at what cost."""
    usages = [result.usage for results in rounds for result in results.values()]
    usage = Usage.model_validate({name: sum(getattr(u, name) for u in usages) for name in Usage.model_fields})
    references = {name: result.reference for name, result in rounds[0].items()}
    fields: dict[str, Any] = {**vars(next(iter(rounds[0].values()))), "usage": usage, **figures}
    return TeacherResult(**fields, references=references, teacher=names)
