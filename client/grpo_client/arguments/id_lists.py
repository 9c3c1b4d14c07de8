"""Token ids as callers have them, to int32 arrays: what NumPy would quietly round, wrap or take for a number is refused.

`True` is 1 to Python, NumPy rounds 1.5 to 1 and wraps 2**32 to 0: none of that happens here. Every error is a
ProtocolError that names the entry. Ids that arrive as JSON are `wire_json.ids`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from grpo_client.arguments.readers import host_array, is_array, is_number, kind_of, plain, rows, wrong
from grpo_client.errors import ProtocolError
from grpo_client.masking import PAD

Ids32 = npt.NDArray[np.int32]
_MAX_ID: Final = 2**31 - 1


def id_vector(value: Any, name: str, lowest: int = 0) -> Ids32:
    """Token ids as (n,) int32. lowest: PAD where that may stand for no id."""
    value = host_array(value)
    if is_array(value) and value.dtype.kind != "O":
        return _checked(value, name, lowest)
    entries = rows(value, name, "token ids")
    if not set(map(type, entries)) <= {int}:  # type, not isinstance: True is no token id
        entries = [_id(entry, f"{name}[{at}]") for at, entry in enumerate(entries)]
    if entries and not (min(entries) >= lowest and max(entries) <= _MAX_ID):
        raise _out_of_range(name, entries, lowest)
    return np.array(entries, dtype=np.int32)


def id_matrix(value: Any, name: str, length: int) -> Ids32:
    """Asked ids as (length, k) int32: equally many for each of `length` positions, PAD for none."""
    value = host_array(value)
    if is_array(value) and value.dtype.kind != "O" and value.ndim == 2 and len(value) == length:
        return _checked(value.reshape(-1), name, PAD).reshape(value.shape)
    entries = rows(value, name, "lists of token ids, one per completion token")
    if len(entries) != length:
        raise wrong(
            name, f"must have one row of ids per completion token: got {len(entries)} for {length}", "length_mismatch"
        )
    vectors = [id_vector(entry, f"{name}[{t}]", PAD) for t, entry in enumerate(entries)]
    if len({len(vector) for vector in vectors}) > 1:
        raise wrong(name, "must have equally many ids at every position (fill up with -1)", "length_mismatch")
    return np.stack(vectors) if vectors else np.empty((0, 0), np.int32)


def group_completions(completions: Any) -> tuple[list[list[Any]], bool]:
    """The completions of each prompt, and whether they came flat: one completion a prompt, without a list around it.

    [[5], [6, 7]] is flat (two prompts with a completion each), [[[5], [6, 7]]] is not (one prompt with two). Which it is
    shows by the depth and has to be the same everywhere; an empty list is taken for what its neighbours are.
    """
    entries = rows(completions, "completions", "completions (token ids), one list of them per prompt")
    groups: list[list[Any]] = []
    flat: list[int] = []
    nested: list[int] = []
    for k, entry in enumerate(entries):
        name = f"completions[{k}]"
        if is_number(entry):
            raise wrong(
                name, f"is {kind_of(entry)}; each prompt has a completion, or a list of them: lists of token ids"
            )
        inside = rows(entry, name, "completions (token ids)")
        groups.append(inside)
        if inside:
            (flat if is_number(inside[0]) else nested).append(k)
    if flat and nested:
        raise wrong(
            f"completions[{flat[0]}]",
            f"is one completion, and completions[{nested[0]}] a list of them; give either one completion per prompt "
            "everywhere, or a list of them everywhere",
        )
    return ([[entry] for entry in entries], True) if flat else (groups, False)


def check_counts(prompts: int, completions: int, *, flat: bool) -> None:
    """As many entries of completions as prompts."""
    if prompts == completions:
        return
    hint = "; several completions of one prompt go into one list: [[completion, completion]]" if flat else ""
    raise wrong(
        "completions",
        f"must have one entry per group: got {completions} for {prompts} prompt{'s' * (prompts != 1)}{hint}",
        "length_mismatch",
    )


def read_wanted_ids(token_ids: Any, completions: Sequence[Sequence[Ids32]], *, flat: bool) -> list[tuple[Ids32, ...]]:
    """Ids to score beside the ones that are there, per group and completion (C, k). flat: as the completions were."""
    per_group = rows(token_ids, "token_ids", "lists of token ids, one per group")
    if len(per_group) != len(completions):
        raise wrong(
            "token_ids",
            f"must have one entry per group: got {len(per_group)} for {len(completions)}",
            "length_mismatch",
        )
    wanted: list[tuple[Ids32, ...]] = []
    for k, (entry, vectors) in enumerate(zip(per_group, completions, strict=True)):
        name = f"token_ids[{k}]"
        entries = [entry] if flat else rows(entry, name, "lists of token ids, one per completion")
        if len(entries) != len(vectors):
            raise wrong(
                name, f"must have one entry per completion: got {len(entries)} for {len(vectors)}", "length_mismatch"
            )
        wanted.append(
            tuple(
                id_matrix(ids, name if flat else f"{name}[{g}]", len(vector))
                for g, (ids, vector) in enumerate(zip(entries, vectors, strict=True))
            )
        )
    return wanted


def _id(value: Any, name: str) -> int:
    number = plain(value)
    if type(number) is not int:
        raise wrong(name, f"is {kind_of(number)}; token ids are whole numbers")
    return number


def _checked(values: npt.NDArray[Any], name: str, lowest: int) -> Ids32:
    if values.ndim != 1:
        raise wrong(name, f"must be a list of token ids (one dimension), got an array of shape {values.shape}")
    if values.size == 0:
        return np.empty(0, np.int32)
    if values.dtype.kind not in "iu":
        raise wrong(name, f"must hold whole numbers (token ids), got dtype {values.dtype}")
    if values.min() < lowest or values.max() > _MAX_ID:
        raise _out_of_range(name, values.tolist(), lowest)
    return values.astype(np.int32, copy=False)


def _out_of_range(name: str, ids: Sequence[int], lowest: int) -> ProtocolError:
    at = next(i for i, value in enumerate(ids) if not lowest <= value <= _MAX_ID)
    padding = "leave padding out" if lowest == 0 else f"{lowest} for none"
    shown = f"{ids[at]}" if abs(ids[at]) < 10**20 else "a number of more than twenty digits"
    return ProtocolError(
        f"{name}[{at}] is {shown}; token ids are from 0 to below the vocabulary size ({padding})",
        f"{name}[{at}]",
        code="id_out_of_range",
        status=422,
    )
