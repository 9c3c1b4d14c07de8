"""Several teachers behind one call: each prompt scored by its own, or all of them mixed into one.

    with client.teachers({"math": "http://a:8000", "code": ["http://b:8000", "http://c:8000"]}) as teachers:
        teachers.score(prompts, completions, teacher=["math", "code", "math"], token_ids=ids)
        teachers.score(prompts, completions, mixture={"math": 0.5, "code": 0.5}, token_ids=ids)

A mixture is of probabilities: log p = logsumexp over the teachers of log w + log p. All must score the same tokens for that, so
a mixture has log-probs of the completion and of `token_ids`, and no best tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, Unpack

import numpy as np
import numpy.typing as npt

from grpo_client.arguments.types import Completions, Prompts
from grpo_client.core import ScoreOptions
from grpo_client.errors import ProtocolError
from grpo_client.protocol import ReferenceInfo, ScoreRequest, ScoreResult, Usage, rounded
from grpo_client.tokenizers import Vocabulary, check_tokenizers, local_identity

_MIXED: Final = ("token_logprobs", "token_tail")


@dataclass(frozen=True, repr=False, eq=False)
class TeacherResult(ScoreResult):
    """As `ScoreResult`, in the caller's order; `reference` is of the first teacher that was asked.

    references: who answered, by teacher. teacher: (K,) which scored each group; all names where they were mixed.
    """

    references: Mapping[str, ReferenceInfo] = field(default_factory=lambda: {})
    teacher: tuple[str, ...] = ()


class Teacher(Protocol):
    """What is needed of a client."""

    def submit_request(self, request: ScoreRequest) -> Future[ScoreResult]: ...

    def info(self) -> ReferenceInfo: ...

    def close(self) -> None: ...


class Teachers:
    """clients: a client for each teacher. default: who scores groups of no teacher; None: each must have one.

    tokenizer: "same" compares the teachers' tokenizers before the first score; a tokenizer of transformers (the student's)
    compares them with that one. Closes its clients. Raises ProtocolError for no teachers and for a default that is none of
    them.
    """

    def __init__(
        self,
        clients: Mapping[str, Teacher],
        *,
        default: str | None = None,
        tokenizer: Literal["same"] | Vocabulary | None = None,
    ) -> None:
        if not clients:
            raise ProtocolError("teachers is empty; name at least one", "teachers", "no_teachers")
        self._clients, self._default = dict(clients), default
        self._compare, self._local = tokenizer is not None, local_identity(tokenizer)
        if default is not None:
            self._known(default, "default")

    def score(
        self,
        prompts: Prompts,
        completions: Completions,
        *,
        teacher: str | Sequence[str | None] | None = None,
        mixture: Mapping[str, float] | None = None,
        **options: Unpack[ScoreOptions],
    ) -> TeacherResult:
        """Score each group by its teacher, all teachers at once, or every group by all of a mixture.

        teacher: one name, or one per prompt; None: the default. mixture: teachers and their weights, which add up to 1.
        Options: as `ReferenceClient.score` has them. Raises what that raises, and ProtocolError for an unknown teacher.
        """
        request = ScoreRequest.of(prompts, completions, **options)
        if self._compare:
            self.check_tokenizers()
        if mixture is None:
            return self._routed(request, self._names(teacher, len(request.groups)))
        if teacher is not None:
            raise ProtocolError("give either teacher or mixture, not both", "mixture", "wrong_value")
        return self._mixed(request, mixture)

    def check_tokenizers(self) -> None:
        """Raises InvalidResponse, with both sizes, unless all teachers have the same tokens under the same ids, which are
        the local tokenizer's where one was given."""
        infos = {name: client.info() for name, client in self._clients.items()}
        check_tokenizers(infos, self._local)
        self._compare = False

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, name: object, param: str) -> str:
        if not isinstance(name, str) or name not in self._clients:
            raise ProtocolError(
                f"{param} names {name!r:.60}, which is no teacher here; there are {', '.join(self._clients)}",
                param,
                "unknown_teacher",
                422,
            )
        return name

    def _names(self, teacher: str | Sequence[str | None] | None, groups: int) -> list[str]:
        named = [teacher] * groups if teacher is None or isinstance(teacher, str) else list(teacher)
        if len(named) != groups:
            raise ProtocolError(
                f"teacher has {len(named)} entries for {groups} prompts; give one name, or one per prompt",
                "teacher",
                "length_mismatch",
            )
        return [self._known(self._default if n is None else n, f"teacher[{k}]") for k, n in enumerate(named)]

    def _routed(self, request: ScoreRequest, names: list[str]) -> TeacherResult:
        members = {name: [k for k, n in enumerate(names) if n == name] for name in dict.fromkeys(names)}
        futures = {
            name: self._clients[name].submit_request(replace(request, groups=tuple(request.groups[k] for k in places)))
            for name, places in members.items()
        }
        results = {name: future.result() for name, future in futures.items()}
        order = [k for places in members.values() for k in places]
        return _in_order(request, order, results, tuple(names))

    def _mixed(self, request: ScoreRequest, mixture: Mapping[str, float]) -> TeacherResult:
        for name in mixture:
            self._known(name, "mixture")
        weights = [float(weight) for weight in mixture.values()]
        if not all(weight > 0 for weight in weights) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
            raise ProtocolError(
                f"mixture has the weights {weights}; they must be above 0 and add up to 1",
                "mixture",
                "wrong_value",
                422,
            )
        if request.top_k or request.extras - {"tail"}:
            raise ProtocolError(
                "a mixture has log-probs of tokens that all its teachers score; ask for token_ids and tail, not for top_k "
                "or other figures",
                "mixture",
                "wrong_value",
                422,
            )
        futures = {name: self._clients[name].submit_request(request) for name in mixture}
        results = {name: future.result() for name, future in futures.items()}
        first = next(iter(results.values()))

        def mixed(of: Callable[[ScoreResult], npt.NDArray[Any]]) -> npt.NDArray[Any]:
            parts = [
                of(result).astype(np.float64) + math.log(weight)
                for result, weight in zip(results.values(), weights, strict=True)
            ]
            return rounded(np.logaddexp.reduce(parts, axis=0).astype(np.float32), of(first).dtype)

        return _result(
            first,
            results,
            tuple(mixture),
            logprobs=mixed(lambda result: result.logprobs),
            status=np.max([result.status for result in results.values()], axis=0),
            extras={name: mixed(lambda result, n=name: result.extras[n]) for name in _MIXED if name in first.extras},
        )


def _in_order(
    request: ScoreRequest, order: Sequence[int], results: Mapping[str, ScoreResult], names: tuple[str, ...]
) -> TeacherResult:
    """order: the groups as the results have them one after another."""
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

    parts = list(results.values())
    return _result(
        parts[0],
        results,
        names,
        temperature=placed([p.temperature for p in parts], order),
        group_sizes=sizes,
        completion_lengths=lengths,
        logprobs=placed([p.logprobs for p in parts], tokens),
        status=placed([p.status for p in parts], rows),
        extras={name: placed([p.extras[name] for p in parts], tokens) for name in parts[0].extras},
        completion_mask=request.completion_mask,
    )


def _result(first: ScoreResult, results: Mapping[str, ScoreResult], names: tuple[str, ...], **of: Any) -> TeacherResult:
    usages = [result.usage for result in results.values()]
    usage = Usage.model_validate({name: sum(getattr(u, name) for u in usages) for name in Usage.model_fields})
    references = {name: result.reference for name, result in results.items()}
    fields: dict[str, Any] = {**vars(first), "usage": usage, **of}
    return TeacherResult(**fields, references=references, teacher=names)
