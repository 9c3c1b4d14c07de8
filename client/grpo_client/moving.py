"""One reference for several servers, replaced on all of them or on none: brought up beside the hosted one everywhere, and only
when it is the same everywhere, told to serve. Nothing is sent here; both clients carry the steps out.

    look > hold at each > (the same?) > commit at each

Up to the first commit anything that goes wrong ends it on all. From then on it goes forward: a server that lost what it held,
as by a restart, brings it up again, and one that is away is waited for.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from grpo_client.errors import FingerprintMismatch, GrpoClientError, NotFound
from grpo_client.http.exchange import (
    Call,
    Reply,
    cancel_call,
    code_of,
    commit_call,
    info_call,
    move_call,
    raise_for_status,
    read_info,
)
from grpo_client.protocol import ReferenceInfo

NOT_HELD = "not_held"


@dataclass(frozen=True, slots=True)
class Round:
    """Calls to make at once, by server. patient: what fails for lack of a server is tried again, as scoring is."""

    calls: Mapping[str, Call]
    patient: bool = False


Answers = Mapping[str, Reply | GrpoClientError]
Steps = Generator[Round, Answers, list[ReferenceInfo]]


@dataclass(frozen=True, slots=True)
class Move:
    """What all are to host: a model that each can read; or with decay, decay * hosted + (1 - decay) * model. reference: under
    which name; None: the default one."""

    model: str
    decay: float | None = None
    revision: str | None = None
    admin_key: str | None = None
    reference: str | None = None

    def call(self, version: int | None = None) -> Call:
        """The call that has one server host it. version: bring it up as this one, and hold it."""
        return move_call(
            self.model,
            self.decay,
            self.admin_key,
            revision=self.revision,
            version=version,
            reference=self.reference,
        )


def alone(move: Move, url: str) -> Steps:
    """The same for one server, which needs no word."""
    answers = yield Round({url: move.call()})
    return [_info(answers[url])]


def together(move: Move, urls: Sequence[str]) -> Steps:
    """Returns who is hosted from now on by every server. Raises what the first that failed said, when none has moved."""
    answers = yield Round({url: info_call(move.reference) for url in urls})
    try:
        hosted = [_info(answers[url]) for url in urls]
    except NotFound as error:
        if move.reference is None:  # not a grpo-server
            raise
        raise _nothing_moved(error, move, urls, answers) from error
    if move.decay is not None:
        _check_same(urls, hosted, "host different references, whose averages would differ: move all to one model first")
    version = max(info.version for info in hosted) + 1
    answers = yield Round({url: move.call(version) for url in urls})
    try:
        held = [_info(answers[url]) for url in urls]
        _check_same(urls, held, f"make different references of {move.model}: their files or their arithmetic differ")
    except GrpoClientError:
        # those that hold it, and those whose answer was lost; who refused may be busy with somebody else's
        ours = [url for url in urls if not isinstance(answers[url], Reply) or code_of(answers[url]) is None]
        if ours:
            yield Round({url: cancel_call(move.admin_key, move.reference) for url in ours})
        raise
    return (yield from _forward(move, version, urls))


def _forward(move: Move, version: int, urls: Sequence[str]) -> Steps:
    """There is no way back from the first word on."""
    moved: dict[str, ReferenceInfo] = {}
    while left := [url for url in urls if url not in moved]:
        answers = yield Round({url: commit_call(version, move.admin_key, move.reference) for url in left}, patient=True)
        lost = [url for url in left if code_of(answers[url]) == NOT_HELD]
        moved |= {url: _info(answers[url]) for url in left if url not in lost}
        if lost:
            answers = yield Round({url: move.call(version) for url in lost}, patient=True)
            for url in lost:
                _info(answers[url])
    return [moved[url] for url in urls]


def advance_move(steps: Steps, answers: Answers | None) -> Round | list[ReferenceInfo]:
    """The next round, or who is hosted in the end. answers: to the round before; None: there was none."""
    try:
        return next(steps) if answers is None else steps.send(answers)
    except StopIteration as end:
        return end.value


def not_away(reply: Reply) -> Reply:
    """The reply of a server that is there, whatever it says. Raises Unavailable for one that is not, or not ready."""
    if reply.status in (429, 502, 503, 504) or code_of(reply) == "swap_under_way":
        raise_for_status(reply)
    return reply


def _raise(answer: Reply | GrpoClientError) -> Reply:
    if isinstance(answer, GrpoClientError):
        raise answer
    raise_for_status(answer)
    return answer


def _info(answer: Reply | GrpoClientError) -> ReferenceInfo:
    return read_info(_raise(answer))


def loaded(urls: Sequence[str], call: Call) -> Steps:
    """A further reference on every server: who that is. Raises FingerprintMismatch where they differ."""
    answers = yield Round(dict.fromkeys(urls, call))
    _raise_any(answers, "hosts it by now")
    infos = [_info(answers[url]) for url in urls]
    _check_same(urls, infos, "host different references under one name")
    return infos


def dropped(urls: Sequence[str], call: Call) -> Steps:
    """No such reference on any server."""
    answers = yield Round(dict.fromkeys(urls, call))
    _raise_any(answers, "has let go of it")
    return []


def _raise_any(answers: Answers, done: str) -> None:
    """Raises what the first that failed said, and who is done, for whoever says it again to the others."""
    failed: list[GrpoClientError] = []
    there: list[str] = []
    for url, answer in answers.items():
        try:
            _raise(answer)
            there.append(url)
        except GrpoClientError as error:
            failed.append(error)
    if failed:
        raise failed[0].also(", ".join(f"{url} {done}" for url in there)) if there else failed[0]


def _nothing_moved(error: NotFound, move: Move, urls: Sequence[str], answers: Answers) -> NotFound:
    """Who lacks the reference, and what to type."""
    lacking = [url for url in urls if isinstance(answer := answers[url], Reply) and answer.status == 404]
    at = " ".join(f"--url {url}" for url in lacking)
    return error.also(
        f"no server has moved: load it where it is missing (grpo-client load {move.reference} SOURCE {at}), or leave "
        f"{'that server' if len(lacking) == 1 else 'those servers'} out"
    )


def _check_same(urls: Sequence[str], infos: Sequence[ReferenceInfo], what: str) -> None:
    if len({info.fingerprint for info in infos}) > 1:
        told = ", ".join(f"{url}: {info.fingerprint[:16]}" for url, info in zip(urls, infos, strict=True))
        raise FingerprintMismatch(f"the servers {what} ({told})")
