"""Masks over completions: where anything is asked, one 0 or 1 for each token. Callers' values and JSON's are read alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_client.arguments.readers import host_array, is_array, kind_of, plain, rows, wrong
from grpo_client.masking import Mask


def mask_vector(value: Any, name: str, length: int) -> Mask:
    """Zeros and ones, or truth values, for `length` tokens, as (length,) bool. Raises ProtocolError."""
    value = host_array(value)
    if is_array(value) and value.dtype.kind != "O":
        if value.ndim != 1:
            raise wrong(name, f"must be a list of 0 and 1 (one dimension), got an array of shape {value.shape}")
        entries = value
    else:
        entries = rows(value, name, "0 and 1, one per completion token")
    if len(entries) != length:
        raise wrong(
            name, f"must have one entry per completion token: got {len(entries)} for {length}", "length_mismatch"
        )
    if is_array(entries):
        values = entries
    else:
        plains = [plain(entry) for entry in entries]
        values = np.array([entry if type(entry) in (int, bool, float) else -1 for entry in plains], dtype=np.float64)
    values = values.reshape(length)
    right = (values == 0) | (values == 1)
    if not right.all():
        at = int(np.flatnonzero(~right)[0])
        raise wrong(f"{name}[{at}]", f"is {kind_of(entries[at])}; a mask is 1 where a token is asked and 0 elsewhere")
    return values == 1


def read_completion_mask(value: Any, lengths: Sequence[Sequence[int]], *, flat: bool) -> list[tuple[Mask, ...]]:
    """`[k][g][position]`, or `[k][position]` with flat, per group and completion. lengths: tokens of each completion."""
    per_group = rows(value, "completion_mask", "lists of 0 and 1, one per group")
    _expect(len(per_group), len(lengths), "completion_mask", "group")
    masks: list[tuple[Mask, ...]] = []
    for k, (entry, sizes) in enumerate(zip(per_group, lengths, strict=True)):
        name = f"completion_mask[{k}]"
        entries = [entry] if flat else rows(entry, name, "lists of 0 and 1, one per completion")
        _expect(len(entries), len(sizes), name, "completion")
        masks.append(
            tuple(
                mask_vector(mask, name if flat else f"{name}[{g}]", size)
                for g, (mask, size) in enumerate(zip(entries, sizes, strict=True))
            )
        )
    return masks


def _expect(got: int, wanted: int, name: str, per: str) -> None:
    if got != wanted:
        raise wrong(name, f"must have one entry per {per}: got {got} for {wanted}", "length_mismatch")
