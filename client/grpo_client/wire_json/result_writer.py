"""`ScoreResult` to JSON, in short steps: see `writer`. Back: `result`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from grpo_client.masking import asked_rows
from grpo_client.protocol import IntArray, ScoreResult, Status
from grpo_client.wire_json.writer import STEP, entries, in_steps, json_chunks, runs, short_floats

_STATUS_NAMES: Final = {int(status): status.name.lower() for status in Status}


def encode_result(result: ScoreResult) -> bytes:
    """An answer as JSON bytes."""
    return b"".join(result_chunks(result))


def result_chunks(result: ScoreResult) -> Iterator[bytes]:
    """The same in chunks, made one after the other."""
    return json_chunks({**_frame(result), "groups": _Groups(result).in_steps(), "usage": result.usage.model_dump()})


def result_object(result: ScoreResult) -> dict[str, Any]:
    """An answer as the JSON object that it travels as; non-finite figures are still floats."""
    groups = _Groups(result).objects(range(len(result.group_sizes)))
    return {**_frame(result), "groups": groups, "usage": result.usage.model_dump()}


def _frame(result: ScoreResult) -> dict[str, Any]:
    temperatures = short_floats(result.temperature).tolist()
    return {
        "reference": {**result.reference.model_dump(), "normalizer": result.normalizer},
        "temperature": temperatures[0] if len(set(temperatures)) == 1 else temperatures,
        **({"top_dtype": "float16"} if any(values.dtype == np.float16 for values in result.extras.values()) else {}),
    }


class _Groups:
    """An answer's groups as JSON objects, all at once or so many at a time as take no long to write."""

    def __init__(self, result: ScoreResult) -> None:
        self._result = result
        mask = result.completion_mask
        self._columns = {"logprobs": result.logprobs, **asked_rows(result.extras, mask)}
        # Completion i has the tokens from _tokens[i] to _tokens[i + 1], group k the completions from _rows[k] to _rows[k + 1].
        self._tokens: list[int] = [0, *np.cumsum(result.completion_lengths, dtype=np.int64).tolist()]
        # and of the tokens that were asked those from _asked[i] to _asked[i + 1], which is what the extras are of
        self._asked = self._tokens
        if mask is not None:
            self._columns["completion_mask"] = mask.view(np.uint8)
            self._asked = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[self._tokens].tolist()
        self._rows: list[int] = [0, *np.cumsum(result.group_sizes, dtype=np.int64).tolist()]
        self._width = sum(int(np.prod(values.shape[1:])) for values in self._columns.values())

    def objects(self, groups: range) -> list[dict[str, Any]]:
        rows = range(self._rows[groups.start], self._rows[groups.stop])
        columns = {name: self._lists(name, values, rows) for name, values in self._columns.items()}
        return [self._object(k, columns, rows.start) for k in groups]

    def in_steps(self) -> Iterator[Any]:
        """For `json_chunks`: groups that are small together, and each large one by its completions."""
        for groups in runs(self._weight(k) for k in range(len(self._rows) - 1)):
            if len(groups) == 1 and self._weight(groups.start) > STEP:
                yield self._large(groups.start)
            else:
                yield entries(self.objects(groups))

    def _weight(self, k: int) -> int:
        first, last = self._rows[k], self._rows[k + 1]
        tokens = self._tokens[last] - self._tokens[first]
        result = self._result
        prompt = 0 if result.prompt_ids is None else len(result.prompt_ids[k])
        ids = 0 if result.completion_ids is None else tokens
        return 8 + 4 * (last - first) + tokens * self._width + prompt + ids

    def _large(self, k: int) -> dict[str, Any]:
        rows = range(self._rows[k], self._rows[k + 1])
        result = self._result
        group: dict[str, Any] = {name: self._parts(name, values, rows) for name, values in self._columns.items()}
        group["status"] = in_steps(map(_STATUS_NAMES.__getitem__, result.status[rows.start : rows.stop].tolist()))
        if result.prompt_ids is not None:
            group["prompt"] = result.prompt_ids[k]
        if result.completion_ids is not None:
            group["completions"] = self._ids(result.completion_ids[rows.start : rows.stop])
        return group

    @staticmethod
    def _ids(lists: Sequence[IntArray]) -> Iterator[Any]:
        for part in runs(1 + len(ids) for ids in lists):
            some = lists[part.start : part.stop]
            yield some[0] if len(some) == 1 else entries([ids.tolist() for ids in some])

    def _parts(self, name: str, values: npt.NDArray[Any], rows: range) -> Iterator[Any]:
        width, ends = int(np.prod(values.shape[1:])), self._ends(name)
        for part in runs(1 + width * (ends[i + 1] - ends[i]) for i in rows):
            first, last = rows.start + part.start, rows.start + part.stop
            if len(part) == 1:
                yield values[ends[first] : ends[last]]
            else:
                yield entries(self._lists(name, values, range(first, last)))

    def _ends(self, name: str) -> list[int]:
        return self._tokens if name in ("logprobs", "completion_mask") else self._asked

    def _lists(self, name: str, values: npt.NDArray[Any], rows: range) -> list[list[Any]]:
        """Figures, one row a token, as one list per completion."""
        ends = self._ends(name)[rows.start : rows.stop + 1]
        start = ends[0]
        flat = cast("list[Any]", short_floats(values[start : ends[-1]]).tolist())
        return [flat[first - start : last - start] for first, last in pairwise(ends)]

    def _object(self, k: int, columns: Mapping[str, list[list[Any]]], start: int) -> dict[str, Any]:
        result = self._result
        first, last = self._rows[k], self._rows[k + 1]
        group: dict[str, Any] = {name: column[first - start : last - start] for name, column in columns.items()}
        group["status"] = [_STATUS_NAMES[s] for s in result.status[first:last].tolist()]
        if result.prompt_ids is not None:
            group["prompt"] = result.prompt_ids[k].tolist()
        if result.completion_ids is not None:
            group["completions"] = [ids.tolist() for ids in result.completion_ids[first:last]]
        return group
