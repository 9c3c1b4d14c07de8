"""What is sent and what came back, as values: the request builder and the reply reader of both clients."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from grpo_client import errors, wire_json, wire_tensors
from grpo_client.http.retry_after import asked_wait_of
from grpo_client.protocol import (
    MEDIA_JSON,
    MEDIA_TENSORS,
    ROUTE_LOGPROBS,
    ROUTE_REFERENCE,
    ROUTE_REFERENCES,
    ReferenceInfo,
    ScoreRequest,
    ScoreResult,
)
from grpo_client.ring import PROMPT_KEY, prompt_key, write_key
from grpo_client.text import AnyRequest
from grpo_client.validation.answers import check_answer
from grpo_client.validation.words import as_object

Encoding = Literal["tensors", "json"]
ROUTE_READY = "/readyz"
ROUTE_ADMIN = "/admin/reference"
_LONGEST_MESSAGE = 2000  # characters of what a server says that go into an error


# 409s that say nothing of who answers.
_PASSING_CONFLICTS = frozenset({"not_held", "swap_under_way", "upload_busy", "upload_offset"})
# The request changed on the way.
_DIGEST_MISMATCH = "digest_mismatch"


def _new_request_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, whichever server gets it. Its id stays the same over retries, to be found in every log. key: of the
    prompt that it is about."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    headers: Mapping[str, str] = field(default_factory=lambda: {})
    body: bytes | None = field(default=None, repr=False)
    request_id: str = field(default_factory=_new_request_id)
    key: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP response, read to its end. Header names are lower case. request_id: of the call that it answers."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray = field(repr=False)
    url: str
    request_id: str | None = None

    @property
    def named_id(self) -> str | None:
        """The id to look for in the server's log: the one it named, else the one it was sent."""
        return self.headers.get("x-request-id") or self.request_id


def score_call(request: AnyRequest, encoding: Encoding) -> Call:
    """The call that asks for scores. Text travels as JSON whatever the encoding; the answer comes in `encoding`. Its
    key is that of its first prompt, also where it asks about several.

    Raises ProtocolError for a chat message that JSON cannot hold.
    """
    accept = MEDIA_TENSORS if encoding == "tensors" else MEDIA_JSON
    if encoding == "tensors" and isinstance(request, ScoreRequest):
        content, body = MEDIA_TENSORS, wire_tensors.encode_request(request)
    else:
        content, body = MEDIA_JSON, _json(request)
    headers = {"Content-Type": content, "Accept": accept}
    key = prompt_key(request.groups[0].prompt) if request.groups else None
    if key is not None:
        headers[PROMPT_KEY] = write_key(key)
    return Call("POST", ROUTE_LOGPROBS, headers, body, key=key)


def _json(request: AnyRequest) -> bytes:
    try:
        return wire_json.encode_request(request)
    except (ValueError, TypeError) as error:  # a chat message holds what it likes
        raise errors.ProtocolError(f"the request cannot be written as JSON: {error}", "groups", "not_json") from error


def info_call(model: str | None = None) -> Call:
    """The call that asks who answers, under this name or by default."""
    which = "" if model is None else f"?model={quote(model, safe='')}"
    return Call("GET", f"{ROUTE_REFERENCE}{which}", {"Accept": MEDIA_JSON})


def ready_call() -> Call:
    """The call that asks whether requests are taken now."""
    return Call("GET", ROUTE_READY)


def move_call(
    model: str,
    decay: float | None,
    admin_key: str | None,
    *,
    revision: str | None = None,
    version: int | None = None,
    reference: str | None = None,
) -> Call:
    """The call that hosts a model that the server can read, or mixes it into the hosted one. admin_key: None: the client's
    own. version: that it gets; it then waits for `commit_call`. reference: whose place it takes; None: the default one's."""
    asked: dict[str, Any] = {"model": model}
    if decay is not None:
        asked["decay"] = decay
    if revision is not None:
        asked["revision"] = revision
    if version is not None:
        asked |= {"version": version, "hold": True}
    if reference is not None:
        asked["reference"] = reference
    return _admin_call("POST", ROUTE_ADMIN if decay is None else f"{ROUTE_ADMIN}/ema", admin_key, asked)


def commit_call(version: int, admin_key: str | None, reference: str | None = None) -> Call:
    """The call that lets serve what was brought up as this version."""
    asked = {"version": version} | ({} if reference is None else {"reference": reference})
    return _admin_call("POST", f"{ROUTE_ADMIN}/commit", admin_key, asked)


def cancel_call(admin_key: str | None, reference: str | None = None) -> Call:
    """The call that ends what is under way, if it is of this reference; None: whatever it is."""
    which = "" if reference is None else f"?reference={quote(reference, safe='')}"
    return _admin_call("DELETE", f"{ROUTE_ADMIN}{which}", admin_key, None)


def references_call() -> Call:
    """The call that asks who answers under which name."""
    return Call("GET", ROUTE_REFERENCES, {"Accept": MEDIA_JSON})


def load_call(name: str, source: str, revision: str | None, base: str | None, admin_key: str | None) -> Call:
    """The call that hosts a further reference."""
    asked = {"name": name, "source": source, "revision": revision, "base": base}
    given = {field: value for field, value in asked.items() if value is not None}
    return _admin_call("POST", ROUTE_REFERENCES, admin_key, given)


def drop_call(name: str, admin_key: str | None) -> Call:
    """The call that lets go of one."""
    return _admin_call("DELETE", f"{ROUTE_REFERENCES}/{quote(name, safe='')}", admin_key, None)


def _admin_call(
    method: Literal["POST", "DELETE"], path: str, admin_key: str | None, asked: dict[str, Any] | None
) -> Call:
    headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
    if asked is None:
        return Call(method, path, headers)
    return Call(method, path, headers | {"Content-Type": MEDIA_JSON}, to_json(asked))


def read_scores(reply: Reply, request: AnyRequest) -> ScoreResult:
    """The answer, checked to be one to this request. Raises APIError's kin, FingerprintMismatch, InvalidResponse."""
    raise_for_status(reply)
    tensors = reply.headers.get("content-type", "").lower().startswith(MEDIA_TENSORS)
    try:
        result = wire_tensors.decode_result(reply.body) if tensors else wire_json.decode_result(reply.body)
        check_answer(result, request)
    except errors.InvalidResponse as error:
        raise errors.InvalidResponse(f"{error.message} ({reply.url})", error.param, reply.named_id) from error
    return result


def read_info(reply: Reply) -> ReferenceInfo:
    """Who answers."""
    raise_for_status(reply)
    try:
        return ReferenceInfo.model_validate_json(reply.body, strict=True)
    except ValidationError as error:
        raise errors.InvalidResponse(
            f"{reply.url} did not describe a reference: {error}", request_id=reply.named_id
        ) from error


def read_references(reply: Reply) -> dict[str, ReferenceInfo]:
    """Who answers, by name, the default one first."""
    raise_for_status(reply)
    try:
        told = _References.model_validate_json(reply.body)
    except ValidationError as error:
        raise errors.InvalidResponse(
            f"{reply.url} did not describe its references: {error}", request_id=reply.named_id
        ) from error
    return {info.model: info for info in told.references}


class _References(BaseModel):
    references: list[ReferenceInfo]


def raise_for_status(reply: Reply) -> None:
    """Nothing for 2xx; else the exception that says what kind of failure it is, with the server's own words."""
    if 200 <= reply.status < 300:
        return
    detail = _error_object(reply.body)
    said = str(detail.get("message") or _first_line(reply.body) or "no message")
    message = f"{said[:_LONGEST_MESSAGE]} ({reply.url})"
    code, param = (value if isinstance(value := detail.get(name), str) else None for name in ("code", "param"))
    if reply.status == 409 and code not in _PASSING_CONFLICTS:
        raise errors.FingerprintMismatch(
            message, status=reply.status, code=code, param=param, request_id=reply.named_id
        )
    raise _kind_of(reply.status, code)(
        message,
        status=reply.status,
        code=code,
        param=param,
        request_id=reply.named_id,
        retry_after=asked_wait_of(reply.headers),
        url=reply.url,
    )


def code_of(answer: Reply | errors.GrpoClientError) -> str | None:
    """The `code` with which a server refused, else its status; None where it did not refuse, or did not answer."""
    if isinstance(answer, errors.APIError):
        return answer.code
    if isinstance(answer, errors.GrpoClientError) or answer.status < 400:
        return None
    return str(_error_object(answer.body).get("code") or answer.status)


def _kind_of(status: int, code: str | None) -> type[errors.APIError]:
    match status:
        case 400 if code == _DIGEST_MISMATCH:
            return errors.Unavailable
        case 400 | 413 | 415 | 422:
            return errors.RequestRefused
        case 401 | 403:
            return errors.NotAuthorized
        case 404:
            return errors.NotFound
        case 408 | 409 | 429 | 502 | 503 | 504:
            return errors.Unavailable
        case _:
            return errors.ServerFailed


def _error_object(body: bytes | bytearray) -> dict[str, Any]:
    """The {"error": {...}} of an OpenAI-shaped error; empty for what a proxy or another program says."""
    try:
        message = as_object(from_json(body)) or {}
    except ValueError:
        return {}
    return as_object(message.get("error")) or {}


def _first_line(body: bytes | bytearray) -> str:
    return body[:200].decode("utf-8", "replace").strip().partition("\n")[0]
