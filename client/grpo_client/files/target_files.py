"""Distillation targets as a directory of parquet or arrow files: a row a completion, with the best tokens of each position.

Columns: `line` and `completion` (of the input, from 1 and from 0), `id` (as JSON), `prompt_ids`, `completion_ids`, `logprobs`,
`top_ids` and `top_logprobs` (lists of fixed-size lists of k), `tail_logprob`, `temperature`, `status`, `request` (a digest).
Row t of the lists predicts completion token t. For axolotl, in place of `logprobs` and the k best, columns as in `axolotl`.
The schema's metadata holds, under `grpo`, who scored: model, fingerprint, vocabulary, tokenizer, normalizer, temperatures, k.

A file is written beside its place and put there whole, and all completions of a line are in one file: what a crash left is
whole lines, and a resumed run adds files with those that are missing.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from grpo_client.files.arrow import pyarrow
from grpo_client.files.axolotl import NESTED, axolotl_columns
from grpo_client.files.rollouts import Rollout
from grpo_client.files.score_file import digest
from grpo_client.protocol import CompletionScores, IntArray, ReferenceInfo, ScoreRequest, ScoreResult

TargetFormat = Literal["parquet", "arrow", "axolotl"]
_METADATA: Final = b"grpo"


@dataclass(frozen=True, slots=True)
class _Row:
    """One completion and all that was said of it."""

    line: int
    place: int
    id: str | None
    prompt_ids: IntArray
    completion_ids: IntArray
    scores: CompletionScores
    temperature: float
    request: str


class TargetFiles:
    """Files in `directory`, of about `rows` rows each. done: input lines in them. fingerprint: of the reference in them."""

    def __init__(self, directory: Path, format: TargetFormat, *, resume: bool, rows: int) -> None:
        """resume: go on beside the files that are there, else delete them. Raises ValueError where they are of another run."""
        self.done: dict[int, str] = {}
        self.fingerprint: str | None = None
        self._tokenizer: dict[str, Any] | None = None
        self._pa = pyarrow()
        self._format: TargetFormat = format
        self._directory, self._limit = directory, rows
        self._suffix = ".arrow" if format == "arrow" else ".parquet"
        self._about: dict[str, Any] | None = None
        self._rows: list[_Row] = []
        self._next = 0
        directory.mkdir(exist_ok=True)
        for path in sorted(directory.glob("part-*")):
            if not resume or path.suffix == ".writing":
                path.unlink()
            else:
                self._note(path)

    @property
    def introduced(self) -> bool:
        """Whether it is known which tokenizer the ids are of, or that the server does not tell."""
        return self._tokenizer is not None

    def introduce(self, info: ReferenceInfo) -> None:
        """info: what `GET /v1/reference` tells of who scores, which answers to scoring do not repeat."""
        told = {"tokenizer_fingerprint": info.tokenizer_fingerprint, "tokens": info.tokens}
        self._tokenizer = {name: value for name, value in told.items() if value is not None}

    def check(self, rollout: Rollout) -> None:
        """Raises ValueError when what is there of this input line is of something else."""
        if self.done[rollout.line] != digest(rollout):
            raise ValueError(
                f"{self._directory} is of another run; at input line {rollout.line} the input or the settings differ. Take up "
                "that run as it was, or give another output directory, or --overwrite"
            )

    def append(self, rollout: Rollout, result: ScoreResult) -> None:
        """Take in the completions of one line; a file is written when there are enough."""
        about = _about(result, self._format)
        if self._about is not None and about != self._about:
            self._flush()
        self._about = about
        self._rows += _rows_of(rollout, result)
        if len(self._rows) >= self._limit:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()  # also when something went wrong: these are whole lines

    def _flush(self) -> None:
        if not self._rows or self._about is None:
            return
        table = self._table(self._rows, self._about)
        path = self._directory / f"part-{self._next:05d}{self._suffix}"
        beside = path.with_name(f"{path.name}.writing")
        if self._format == "arrow":
            with self._pa.OSFile(str(beside), "wb") as sink, pyarrow("ipc").new_file(sink, table.schema) as writer:
                writer.write_table(table)
        else:
            pyarrow("parquet").write_table(table, beside, compression="zstd")
        os.replace(beside, path)
        self._next += 1
        self._rows = []

    def _note(self, path: Path) -> None:
        self._next = max(self._next, int(path.stem.removeprefix("part-")) + 1)
        if path.suffix != self._suffix:
            raise ValueError(f"{path} is of another format; give another output directory, or --overwrite")
        if path.suffix == ".arrow":
            with self._pa.memory_map(str(path)) as source:
                table = pyarrow("ipc").open_file(source).read_all().select(["line", "request"])
        else:
            table = pyarrow("parquet").read_table(path, columns=["line", "request"])
        about = json.loads(dict[bytes, bytes](table.schema.metadata or {}).get(_METADATA, b"{}"))
        if about.get("format") != self._format or self.fingerprint not in (None, about["fingerprint"]):
            raise ValueError(f"{path} is of another format or reference; give another output directory, or --overwrite")
        self.fingerprint = about["fingerprint"]
        self.done.update(zip(table["line"].to_pylist(), table["request"].to_pylist(), strict=True))

    def _table(self, rows: list[_Row], about: dict[str, Any]) -> Any:
        pa = self._pa
        columns: dict[str, Any] = {
            "line": pa.array([row.line for row in rows], pa.int64()),
            "completion": pa.array([row.place for row in rows], pa.int32()),
            "id": pa.array([row.id for row in rows], pa.string()),
            "prompt_ids": self._lists([row.prompt_ids for row in rows]),
            "completion_ids": self._lists([row.completion_ids for row in rows]),
        }
        if self._format == "axolotl":
            theirs = [axolotl_columns(row.prompt_ids, row.completion_ids, row.scores) for row in rows]
            for name in theirs[0]:
                width = about["top_k"] if name in NESTED else 0
                columns[name] = self._lists([values[name] for values in theirs], width, fixed=False)
        else:
            columns["logprobs"] = self._lists([row.scores.logprobs for row in rows])
            for name in ("top_ids", "top_logprobs"):
                columns[name] = self._lists([np.asarray(row.scores.extras[name]) for row in rows], about["top_k"])
        if "top_tail" in rows[0].scores.extras:
            columns["tail_logprob"] = self._lists([np.asarray(row.scores.extras["top_tail"]) for row in rows])
        columns["temperature"] = pa.array([row.temperature for row in rows], pa.float32())
        columns["status"] = pa.array([row.scores.status.name.lower() for row in rows], pa.string())
        columns["request"] = pa.array([row.request for row in rows], pa.string())
        told = {**about, **(self._tokenizer or {}), "temperature": sorted({row.temperature for row in rows})}
        return pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(told)})

    def _lists(self, parts: list[npt.NDArray[Any]], width: int = 0, *, fixed: bool = True) -> Any:
        """A column of lists of numbers, or of lists of `width` numbers."""
        pa = self._pa
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
        values = pa.array(np.concatenate([part.reshape(-1) for part in parts]))
        if width and fixed:
            values = pa.FixedSizeListArray.from_arrays(values, width)
        elif width:
            values = pa.ListArray.from_arrays(np.arange(0, width * ends[-1] + 1, width, dtype=np.int32), values)
        return pa.ListArray.from_arrays(ends, values)


def _about(result: ScoreResult, format: TargetFormat) -> dict[str, Any]:
    info = result.reference
    return {
        "format": format,
        "model": info.model,
        "fingerprint": info.fingerprint,
        "vocab_size": info.vocab_size,
        "normalizer": result.normalizer,
        "top_k": int(result.extras["top_ids"].shape[1]),
        "tail": "top_tail" in result.extras,
    }


def _rows_of(rollout: Rollout, result: ScoreResult) -> list[_Row]:
    request = rollout.request
    prompts, completions = result.prompt_ids, result.completion_ids
    if isinstance(request, ScoreRequest):
        prompts = tuple(group.prompt for group in request.groups)
        completions = tuple(ids for group in request.groups for ids in group.completions)
    assert prompts is not None
    assert completions is not None
    name = None if rollout.id is None else json.dumps(rollout.id)
    return [
        _Row(rollout.line, i, name, prompts[0], ids, scores, float(result.temperature[0]), digest(rollout))
        for i, (ids, scores) in enumerate(zip(completions, result, strict=True))
    ]
