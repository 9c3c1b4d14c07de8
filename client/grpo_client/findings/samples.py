"""Sample records as columns: every completion of a file, their tokens side by side.

A record is one line and one group: `prompt_ids`, and `completion_ids`, `policy_logprobs`, `ref_logprobs` with a list per
completion; beside them whatever is known of

    step, temperature, normalizer, fingerprint, weights_step, precision      one a record
    sampler_logprobs, entropy, ref_entropy                                   a list per completion, nats
    ended, correct, advantage, rewards, completions (texts)                  one per completion
    prompt (text), end_ids, stop (strings)                                   one a record

`prompt` and `completions` may hold ids in place of text, as `grpo-client score` reads them. A null among log-probs is a
figure that is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from grpo_client.files.json_lines import numbered_lines

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PER_TOKEN: Final = ("policy_logprobs", "ref_logprobs", "sampler_logprobs", "entropy", "ref_entropy")
PER_COMPLETION: Final = ("ended", "correct", "advantage", "rewards")
_MISSING: Final = -1  # in place of an id that is not known


class SamplesError(ValueError):
    """A record is not what it should be; the message names line and field."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """G records with S completions and N tokens.

    ids: (N,), -1 where not known. columns: (N,) float64 by field name, nats, NaN where not known; a field that no record
    holds is not there. known: (S,) float64 likewise (true is 1). starts: (S + 1,), completion s has tokens starts[s] to
    starts[s + 1]. group: (S,), the record of each completion. step: (G,), -1 where not known. temperature: (G,).
    """

    records: Sequence[Mapping[str, Any]]
    prompts: Sequence[Ints | None]
    texts: Sequence[str | None]
    ids: Ints
    columns: Mapping[str, Floats]
    known: Mapping[str, Floats]
    starts: Ints
    group: Ints
    step: Ints
    temperature: Floats
    cut_lines: int = 0

    def __len__(self) -> int:
        return len(self.group)

    @property
    def lengths(self) -> Ints:
        """(S,) tokens of each completion."""
        return np.diff(self.starts)

    @property
    def sequence(self) -> Ints:
        """(N,) the completion of each token."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def position(self) -> Ints:
        """(N,) the place of each token in its completion."""
        return np.arange(len(self.ids)) - np.repeat(self.starts[:-1], self.lengths)

    def token_step(self) -> Ints:
        """(N,) the step of each token."""
        return self.step[self.group[self.sequence]]

    def places(self, tokens: Ints) -> list[tuple[int, int]]:
        """(completion, position) of tokens that are counted over the whole file."""
        sequence = np.searchsorted(self.starts, tokens, side="right") - 1
        return [(int(s), int(i - self.starts[s])) for s, i in zip(sequence, tokens, strict=True)]


def read_samples(path: Path) -> Samples:
    """A file of sample records, plain or gzip. A last line that was cut off is left out and counted.

    Raises SamplesError, NotReadable, OSError.
    """
    records: list[tuple[int, Mapping[str, Any]]] = []
    broken: tuple[int, str] | None = None
    for number, line in numbered_lines(path):
        if broken:
            raise SamplesError(f"{path} line {broken[0]}: not valid JSON ({broken[1]})")
        try:
            record = from_json(line)
        except ValueError as error:
            broken = number, str(error)
            continue
        if not isinstance(record, dict):
            raise SamplesError(f"{path} line {number}: must be a JSON object with a group's prompt and completions")
        records.append((number, cast(dict[str, Any], record)))
    return samples_of(records, cut_lines=int(broken is not None))


def samples_of(records: Iterable[tuple[int, Mapping[str, Any]]], *, cut_lines: int = 0) -> Samples:
    """Numbered records as columns. Raises SamplesError."""
    groups = [_Group(number, record) for number, record in records]
    per_token = {
        name: np.concatenate([g.column(name) for g in groups])
        for name in PER_TOKEN
        if any(name in g.record and g.record[name] is not None for g in groups)
    }
    per_completion = {
        name: np.concatenate([g.one_each(name) for g in groups])
        for name in PER_COMPLETION
        if any(g.record.get(name) is not None for g in groups)
    }
    lengths = np.array([n for g in groups for n in g.lengths], dtype=np.int64)
    return Samples(
        records=[g.record for g in groups],
        prompts=[g.prompt for g in groups],
        texts=[text for g in groups for text in g.texts],
        ids=np.concatenate([np.empty(0, np.int64), *(ids for g in groups for ids in g.ids)]),
        columns=per_token,
        known=per_completion,
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        group=np.repeat(np.arange(len(groups)), [len(g.lengths) for g in groups]),
        step=np.array([g.number("step", -1) for g in groups], dtype=np.int64),
        temperature=np.array([g.number("temperature", 1.0) for g in groups], dtype=np.float64),
        cut_lines=cut_lines,
    )


class _Group:
    """One record, read and checked."""

    def __init__(self, line: int, record: Mapping[str, Any]) -> None:
        self.line, self.record = line, record
        self.prompt = self._prompt()
        completions = record.get("completion_ids")
        texts = record.get("completions")
        if completions is None and _holds_ids(texts):
            completions, texts = texts, None
        per_token = next((record[name] for name in PER_TOKEN if record.get(name) is not None), None)
        shape = next((v for v in (completions, per_token, texts) if v is not None), None)
        if not isinstance(shape, list):
            raise self._wrong("completion_ids", "must be there: a list of token ids per completion")
        count = len(cast(list[Any], shape))
        self.ids = self._ids(completions, per_token, count)
        self.lengths = [len(ids) for ids in self.ids]
        self.texts: list[str | None] = [None] * count if texts is None else self._texts(texts, count)

    def column(self, name: str) -> Floats:
        """(tokens of the group,) float64."""
        value = self.record.get(name)
        if value is None:
            return np.full(sum(self.lengths), np.nan)
        rows = self._list(name, value, len(self.lengths))
        for g, (row, length) in enumerate(zip(rows, self.lengths, strict=True)):
            if row is not None and (not isinstance(row, list) or len(cast(list[Any], row)) != length):
                got = f"{len(cast(list[Any], row))} entries" if isinstance(row, list) else type(row).__name__
                raise self._wrong(f"{name}[{g}]", f"has {got} where the completion has {length} tokens")
        parts = [
            np.full(length, np.nan) if row is None else self._floats(f"{name}[{g}]", row)
            for g, (row, length) in enumerate(zip(rows, self.lengths, strict=True))
        ]
        return np.concatenate([np.empty(0), *parts])

    def one_each(self, name: str) -> Floats:
        """(completions of the group,) float64."""
        value = self.record.get(name)
        if value is None:
            return np.full(len(self.lengths), np.nan)
        return self._floats(name, self._list(name, value, len(self.lengths)))

    def number(self, name: str, default: float) -> float:
        value = self.record.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self._wrong(name, f"must be a number, got {value!r:.40}")
        return value

    def _prompt(self) -> Ints | None:
        value = self.record.get("prompt_ids")
        if value is None and isinstance(self.record.get("prompt"), list):
            value = self.record["prompt"]
        return None if value is None else self._int_array("prompt_ids", value)

    def _ids(self, completions: Any, per_token: Any, count: int) -> list[Ints]:
        if completions is not None:
            rows = self._list("completion_ids", completions, count)
            return [self._int_array(f"completion_ids[{g}]", row) for g, row in enumerate(rows)]
        lengths = [len(cast(list[Any], row)) if isinstance(row, list) else 0 for row in per_token or [None] * count]
        return [np.full(length, _MISSING, dtype=np.int64) for length in lengths]

    def _texts(self, value: Any, count: int) -> list[str | None]:
        return [text if isinstance(text, str) else None for text in self._list("completions", value, count)]

    def _list(self, name: str, value: Any, count: int) -> list[Any]:
        if not isinstance(value, list) or len(cast(list[Any], value)) != count:
            raise self._wrong(name, f"must be a list with one entry for each of the {count} completions")
        return cast(list[Any], value)

    def _floats(self, name: str, values: list[Any]) -> Floats:
        try:
            return np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self._wrong(name, "must hold numbers or null") from error

    def _int_array(self, name: str, values: Any) -> Ints:
        array = np.array(values if isinstance(values, list) else None)
        if array.ndim != 1 or (array.size and array.dtype.kind != "i") or (array.size and array.min() < 0):
            raise self._wrong(name, "must be a list of token ids")
        return array.astype(np.int64)

    def _wrong(self, name: str, what: str) -> SamplesError:
        return SamplesError(f"line {self.line}: {name} {what}")


def _holds_ids(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(row, list) for row in cast(list[Any], value))
