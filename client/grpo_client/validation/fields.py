"""The fields of a request that are one value each, whatever encoding they came in; each broken rule an error that names the
field and the remedy."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from grpo_client.errors import ProtocolError
from grpo_client.protocol import EXTRAS, HIDDEN, NORMALIZERS, TOP_DTYPES, Extra, Normalizer, TopDtype
from grpo_client.validation.words import describe


def read_temperature(value: object, param: str) -> float:
    """A temperature as every encoding carries it: finite, above zero, rounded to fp32 so that encodings agree."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"{param} must be a number, got {describe(value)}", param, code="wrong_type")
    try:
        with np.errstate(over="ignore", under="ignore"):
            temperature = float(np.float32(float(value)))
    except OverflowError:  # a whole number of hundreds of digits
        temperature = math.inf
    if not math.isfinite(temperature) or temperature <= 0.0:
        raise ProtocolError(
            f"{param} is {describe(value)}; it must be finite and above 0 in fp32, since logits are divided by it "
            "(for greedy sampling, score at temperature 1)",
            param,
            code="invalid_temperature",
            status=422,
        )
    return temperature


def read_normalizer(value: object) -> Normalizer:
    """One of NORMALIZERS."""
    if value not in NORMALIZERS:
        raise ProtocolError(
            f"normalizer is {describe(value)}; it must be one of {', '.join(NORMALIZERS)}",
            "normalizer",
            code="unknown_normalizer",
        )
    return value


def read_top_dtype(value: object) -> TopDtype:
    """One of TOP_DTYPES."""
    if value not in TOP_DTYPES:
        raise ProtocolError(
            f"top_dtype is {describe(value)}; it must be one of {', '.join(TOP_DTYPES)}", "top_dtype", "unknown_dtype"
        )
    return value


def read_extras(value: object) -> frozenset[Extra]:
    """A list of distinct EXTRAS, or "hidden"; what "return" holds."""
    if not isinstance(value, list):
        raise ProtocolError(f"return must be a list of names, got {describe(value)}", "return", code="wrong_type")
    names = cast("list[object]", value)
    for i, name in enumerate(names):
        if name not in (*EXTRAS, HIDDEN):
            raise ProtocolError(
                f"return[{i}] is {describe(name)}; choose from {', '.join((*EXTRAS, HIDDEN))} (log-probs always come)",
                f"return[{i}]",
                code="unknown_extra",
            )
        if name in names[:i]:
            raise ProtocolError(
                f"return[{i}] names {name!r} a second time; give each once", f"return[{i}]", code="duplicate_extra"
            )
    return frozenset(cast("list[Extra]", names))


def read_top_k(value: object) -> int:
    """A whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProtocolError(f"top_k must be a whole number, got {describe(value)}", "top_k", code="wrong_type")
    if value < 0:
        raise ProtocolError(
            f"top_k is {describe(value)}; it must be 0 (none) or more", "top_k", code="invalid_top_k", status=422
        )
    return value


def read_model(value: object) -> str | None:
    """The name of a reference, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ProtocolError(
            "model must be one of the names that GET /v1/models lists, or null for the default one",
            "model",
            code="invalid_model",
        )
    return value


def read_fingerprint(value: object) -> str | None:
    """A string, or None."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ProtocolError(
            "fingerprint must be the string that GET /v1/reference shows, or null for no pin",
            "fingerprint",
            code="invalid_fingerprint",
        )
    return value
