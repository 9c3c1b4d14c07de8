"""Which of the two encodings a request is in, and which one its answer should be in (RFC 9110, section 12)."""

from __future__ import annotations

from email.message import Message
from functools import lru_cache

from grpo_client.protocol import MEDIA_JSON, MEDIA_TENSORS

from grpo_server.errors import ErrorCode, ServiceError

MEDIA_TYPES = (MEDIA_JSON, MEDIA_TENSORS)


def media_of(content_type: str | None) -> str:
    """The encoding of a body. Raises ServiceError (415) for any other."""
    media = _parse(content_type or "")[0]
    if media not in MEDIA_TYPES:
        raise ServiceError(
            ErrorCode.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type is {content_type or 'missing'}; send {' or '.join(MEDIA_TYPES)}",
            param="Content-Type",
        )
    return media


def preferred(accept: str | None, default: str) -> str:
    """The encoding of the answer: what Accept ranks highest, `default` (that of the request) among equals.

    Raises ServiceError (406) when Accept allows neither.
    """
    if not accept or not accept.strip():
        return default
    ranges = [_parse(part) for part in accept.split(",") if part.strip()]
    candidates = sorted(MEDIA_TYPES, key=lambda media: media != default)
    best = max(candidates, key=lambda media: _quality(media, ranges))
    if _quality(best, ranges) <= 0:
        raise ServiceError(
            ErrorCode.NOT_ACCEPTABLE,
            f"Accept is {accept!r}; this route answers in {' or '.join(MEDIA_TYPES)}",
            param="Accept",
        )
    return best


def _quality(media: str, ranges: list[tuple[str, float]]) -> float:
    """The q of the most specific range that covers this type; 0 when none does."""
    main = media.split("/")[0]
    for pattern in (media, f"{main}/*", "*/*"):
        matching = [q for given, q in ranges if given == pattern]
        if matching:
            return max(matching)
    return 0.0


@lru_cache(maxsize=64)  # clients send the same few for as long as they live
def _parse(value: str) -> tuple[str, float]:
    """(type/subtype in lower case, q) of one media range, by the standard library's header parser."""
    message = Message()
    message["content-type"] = value.strip() or "missing"
    quality = str(message.get_param("q", "1"))
    try:
        q = float(quality)
    except ValueError:
        q = 0.0
    return value.partition(";")[0].strip().lower(), q if 0 <= q <= 1 else 0.0
