"""Sizes as people write them: `256MiB`, `1.5GB`, `64k`, `4096`. One reader for every option that is a size.

Prefixes are those of SI and IEC, in either case: k, M, G, T are powers of 1000 and Ki, Mi, Gi, Ti powers of 1024, as
Kubernetes and pydantic read them.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?))?(b?)\s*", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """The number that a size stands for. Raises ValueError for what is none, and for a fraction of a byte."""
    if (match := _SIZE.fullmatch(text)) is None:
        raise ValueError(f"must be a size such as 256MiB, 1GB, 64k or a whole number, got {text!r:.40}")
    digits, prefix, binary, _ = match.groups()
    # In decimals, for 1.1GB is a whole number of bytes and 1.1 * 1e9 in floating point is not.
    size = Decimal(digits) * (1024 if binary else 1000) ** _POWERS[(prefix or "").lower()]
    if size != int(size):
        raise ValueError(f"{text.strip()} is not a whole number of bytes; give one that is")
    return int(size)


def read_size(value: Any) -> Any:
    """`parse_size` for a string, and anything else as it is: a validator to go before a field's own."""
    return parse_size(value) if isinstance(value, str) else value


def read_size_or_auto(value: Any) -> Any:
    """As `read_size`, with None for "auto"."""
    return None if isinstance(value, str) and value.strip().lower() == "auto" else read_size(value)
