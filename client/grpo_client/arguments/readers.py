"""Lists, figures and names that callers hand over, read without letting Python guess. Token ids: see `id_lists`.

Taken: lists, tuples, NumPy arrays, tensors of any framework (on any device; the framework is not imported for it).
Refused: what would mean something else than the caller meant; a string, for one, is a sequence of strings to Python.
Every error is a ProtocolError that names the entry.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Set
from numbers import Real
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

from grpo_client.errors import ProtocolError

_TEXT: Final = (str, bytes, bytearray)


def rows(value: Any, name: str, of: str) -> list[Any]:
    """The entries of a list. name: what it is called. of: what it should hold, for the error."""
    value = host_array(value)
    if is_array(value):
        if value.ndim == 0:
            raise wrong(name, f"must be a list of {of}, got the single value {value.item()!r:.40}")
        return list(value)
    if isinstance(value, _TEXT):
        remedy = "text goes to score_text" if "token ids" in of else "put it into a list"
        raise wrong(name, f"must be a list of {of}, got {kind_of(value)} ({value!r:.40}); {remedy}")
    if value is None or is_mapping(value) or _is_set(value) or not hasattr(value, "__iter__"):
        raise wrong(name, f"must be a list of {of}, got {kind_of(value)}")
    return list(value)


def host_array(value: Any) -> Any:
    """Array-likes as NumPy arrays in this process's memory; anything else as it is."""
    here = value
    if isinstance(value, (np.ndarray, np.generic, list, tuple, *_TEXT)):
        return here
    if callable(getattr(here, "detach", None)) and callable(getattr(here, "cpu", None)):  # a torch tensor
        here = here.detach().cpu()
    elif hasattr(here, "__cuda_array_interface__") and callable(getattr(here, "get", None)):  # a CuPy array
        here = here.get()
    if not hasattr(here, "__array__"):
        return here
    try:
        return np.asarray(here)
    except (TypeError, RuntimeError):  # bfloat16 and the like are no types of NumPy's
        return np.asarray(here.tolist())


def is_array(value: Any) -> TypeGuard[npt.NDArray[Any]]:
    """Whether this is a NumPy array."""
    return isinstance(value, np.ndarray)


def is_mapping(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether this is a mapping, such as a chat message."""
    return isinstance(value, Mapping)


def is_number(value: Any) -> bool:
    """Whether this is one figure, of whatever type, and not a list of them."""
    return isinstance(value, Real | np.bool_) or (hasattr(value, "__array__") and getattr(value, "ndim", 1) == 0)


def plain(value: Any) -> Any:
    """One figure of NumPy's or a framework's as Python's own; anything else as it is."""
    here = host_array(value)
    return here.item() if isinstance(value, np.generic) or (is_array(here) and here.ndim == 0) else here


def read_temperatures(value: Any, groups: int) -> list[float]:
    """One temperature per group, from one for all or a list. What a temperature may be is `validation`'s to say."""
    if is_number(value):
        return [_figure(value, "temperature")] * groups
    entries = rows(value, "temperature", "numbers, one per group (or be one number for all)")
    if len(entries) != groups:
        raise wrong(
            "temperature", f"must have one entry per group: got {len(entries)} for {groups} groups", "length_mismatch"
        )
    return [_figure(entry, f"temperature[{k}]") for k, entry in enumerate(entries)]


def read_names(value: Any, name: str) -> frozenset[Any]:
    """A list of names. Which names there are is `validation`'s to say."""
    names = sorted(value, key=str) if _is_set(value) else rows(value, name, "names")
    for i, entry in enumerate(names):
        if not isinstance(entry, str):
            raise wrong(f"{name}[{i}]", f"must be a name, got {kind_of(entry)}")
    return frozenset(names)


def read_count(value: Any, name: str) -> int:
    """A whole number of any integer type."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise wrong(name, f"must be a whole number, got {kind_of(number)}")
    return operator.index(number)


def kind_of(value: Any) -> str:
    """Words for a value that should have been something else."""
    otherwise = f"a value of type {_type_name(value)}"
    if is_number(value):
        figure = plain(value)
        return "true or false" if isinstance(figure, bool) else f"the number {figure!r:.40}"
    words: tuple[tuple[type, str], ...] = (
        (str, "a string"), (bytes, "bytes"), (type(None), "None"), (Mapping, "a mapping"), (Set, "a set"),
        (list, "a list"), (np.ndarray, "an array"),
    )  # fmt: skip
    return next((word for base, word in words if isinstance(value, base)), otherwise)


def wrong(name: str, words: str, code: str = "wrong_type") -> ProtocolError:
    """The error for an argument: its name, then what is wrong with it."""
    return ProtocolError(f"{name} {words}", name, code)


def _type_name(value: object) -> str:
    return type(value).__name__


def _is_set(value: Any) -> TypeGuard[Set[Any]]:
    return isinstance(value, Set)


def _figure(value: Any, name: str) -> float:
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise wrong(name, f"must be a number, got {kind_of(number)}")
    try:
        return float(number)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf
