"""How long a server asked to wait: `Retry-After` in both its forms (RFC 9110, section 10.2.3), or `Retry-After-Ms`.

The latter is milliseconds, as OpenAI's and Azure's servers send it; it is the finer of the two and goes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# More than this is a mistake of somebody's: a server set aside for a year would never be asked again.
LONGEST = 3600.0
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?", re.ASCII)


def asked_wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response's headers (lower-case names) ask to wait, 0 to LONGEST; None when they do not ask."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000.0, LONGEST)
    return parse_retry_after(headers.get("retry-after"))


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait, 0 to LONGEST; None when the header is missing or makes no sense. now: for tests."""
    if value is None:
        return None
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return min(float(text), LONGEST)
    try:
        when = parsedate_to_datetime(text)
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
        seconds = (when - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST)
