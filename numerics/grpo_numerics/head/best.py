"""The k best tokens of rows whose logits arrive in vocabulary tiles; of equal logits, those with the lowest ids.

On a CPU few tokens are looked at: those that exceed a row's k-th best so far, k (1/2 + 1/3 + ...) of them over equal tiles in
any order. The maxima of groups of columns tell where they are. In the first tile, and where much exceeds what came before, the
k-th largest maximum is the bound. Candidates are merged as integers in the order of (logit, lower id), which numpy sorts by
vector instructions.

A GPU takes `topk` of each tile, since the host would have to wait to learn how many candidates there are; so does float64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NOTHING = np.iinfo(np.int64).min  # a place that no token has taken
_GROUP = 8
_AT_ONCE = 1 << 17  # best tokens of so many rows are merged at a time: a few MB of candidates
_ID_BITS = 32
_IDS = (1 << _ID_BITS) - 1

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]


def best_tokens(rows: int, k: int, *, dtype: torch.dtype, device: torch.device) -> BestByKeys | BestByTopk:
    """The way that suits this dtype and device."""
    if device.type == "cpu" and dtype == torch.float32:
        return BestByKeys(rows, k)
    return BestByTopk(rows, k, dtype=dtype, device=device)


class BestByTopk:
    """logits (M, n), best first, and ids (M, n) int64: n is k, or the columns seen so far where they are fewer."""

    def __init__(self, rows: int, k: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._k = k
        self.logits = torch.empty(rows, 0, dtype=dtype, device=device)
        self.ids = torch.empty(rows, 0, dtype=torch.int64, device=device)

    def take(self, z: Tensor, start: int) -> None:
        """Take in the (M, v) logits of the tokens from `start` on."""
        logits, local = z.topk(min(self._k, z.shape[1]), dim=-1)
        logits = torch.cat([self.logits, logits], 1)
        ids = torch.cat([self.ids, local + start], 1)
        logits, order = logits.sort(dim=-1, descending=True, stable=True)  # equal logits: the earlier tile's first
        self.logits, self.ids = logits[:, : self._k], ids.gather(1, order)[:, : self._k]


class BestByKeys:
    """The same in fp32 on a CPU. What is not known yet, or never will be since a row holds NaN, is -inf with id 0."""

    def __init__(self, rows: int, k: int) -> None:
        self._keys: _Ints = np.full((rows, k), _NOTHING)  # the best last
        self._seen = 0

    @property
    def logits(self) -> Tensor:
        """(M, k) fp32, best first."""
        return torch.from_numpy(_logits_of(self._keys[:, ::-1]))

    @property
    def ids(self) -> Tensor:
        """(M, k) int64."""
        keys = self._keys[:, ::-1]
        return torch.from_numpy(np.where(keys == _NOTHING, 0, _IDS - (keys & _IDS)))

    def take(self, z: Tensor, start: int) -> None:
        """Take in the (M, v) logits of the tokens from `start` on, contiguous."""
        rows = max(1, _AT_ONCE // self._keys.shape[1])
        for first in range(0, len(z), rows):
            self._merge(self._keys[first : first + rows], z[first : first + rows], start)
        self._seen += z.shape[1]

    def _merge(self, best: _Ints, z: Tensor, start: int) -> None:
        """Put what is better than the (m, k) keys in their place."""
        k = best.shape[1]
        rows, columns, logits = self._candidates(best, z)
        keys = _keys_of(logits, columns + start)
        counts = np.bincount(rows, minlength=len(z))
        places = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        # A row of many equal logits has many candidates. The rows beside it are not made as wide.
        crowded = counts > 4 * k
        for part in (crowded, ~crowded & (counts > 0)):
            mine, inside = np.flatnonzero(part), part[rows]
            if not len(mine):
                continue
            table = np.full((len(mine), k + int(counts[mine].max())), _NOTHING)
            table[:, :k] = best[mine]
            table[(np.cumsum(part) - 1)[rows[inside]], k + places[inside]] = keys[inside]
            table.sort(axis=1)
            best[mine] = table[:, -k:]

    def _candidates(self, best: _Ints, z: Tensor) -> tuple[_Ints, _Ints, _Floats]:
        """Rows, in order, columns and logits of all tokens that may be among the best."""
        k, width = best.shape[1], z.shape[1]
        size = math.gcd(width, _GROUP)
        floor = np.full(len(z), -np.inf, np.float32)
        if self._seen >= k:
            floor = np.nextafter(_logits_of(best[:, 0]), np.float32(np.inf))
            maxima = _group_maxima(z, size)
            if np.count_nonzero(maxima >= floor[:, None]) <= 2 * k * len(z):
                return _at_least(floor, z, maxima)
        size = _first_size(width, k)
        maxima = _group_maxima(z, size)
        if k <= maxima.shape[1]:
            floor = np.maximum(floor, np.partition(maxima, -k, axis=1)[:, -k])
        return _at_least(floor, z, maxima)


def best_bytes(rows: int, width: int, k: int) -> int:
    """Peak of `BestByKeys` beside the (rows, width) logits of a tile: the keys; the maxima of the groups with a bit each, and
    what is looked at of k groups (columns and logits) or, where groups are narrow, some 66 bytes a candidate until it is
    merged; or else the logits and ids that come out."""
    size = _first_size(width, k)
    merging = min(rows, max(1, _AT_ONCE // k)) * (5 * (width // size) + k * max(13 * size, 66))
    return 8 * rows * k + max(merging, 24 * rows * k)


def _first_size(width: int, k: int) -> int:
    """Columns of a group where the k-th largest maximum is the bound: there must be some times k groups."""
    size = math.gcd(width, _GROUP)
    while size > 1 and width < 4 * k * size:
        size //= 2
    return size


def _group_maxima(z: Tensor, size: int) -> _Floats:
    """(M, groups); column c is in group c % groups, so that vector instructions compare whole stretches of a row."""
    rows, width = z.shape
    return z.view(rows, size, width // size).amax(1).numpy()


def _at_least(floor: _Floats, z: Tensor, maxima: _Floats) -> tuple[_Ints, _Ints, _Floats]:
    """Rows, in order, columns and logits of what is not below its row's floor. maxima: of the groups of columns."""
    groups = maxima.shape[1]
    rows, group = np.divmod(np.flatnonzero(maxima >= floor[:, None]), groups)
    columns = group[:, None] + groups * np.arange(z.shape[1] // groups)
    logits: _Floats = z.numpy()[rows[:, None], columns]
    chosen = logits >= floor[rows, None]
    return np.broadcast_to(rows[:, None], chosen.shape)[chosen], columns[chosen], logits[chosen]


def _keys_of(logits: _Floats, ids: _Ints) -> _Ints:
    """Integers that are larger for a larger logit, and of equal ones for a lower id."""
    bits = (logits + np.float32(0.0)).view(np.int32)  # -0.0 is 0.0
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFF_FFFF))
    return (ordered.astype(np.int64) << _ID_BITS) | (_IDS - ids)


def _logits_of(keys: _Ints) -> _Floats:
    ordered = (keys >> _ID_BITS).astype(np.int32)
    bits = ordered ^ ((ordered >> 31) & np.int32(0x7FFF_FFFF))
    return np.where(keys == _NOTHING, np.float32(-np.inf), bits.view(np.float32))
