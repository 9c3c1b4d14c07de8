"""The output of a scoring run: one JSON object a line, so that a run that died can be taken up again.

A line counts once its newline is on disk; what a crash left of the last one is cut off. Each record says which input line it
scores, a digest of what was asked for it (ids or text, temperature, normalizer, extras), and which reference answered. So a
file needs nothing beside it, and a resumed run neither repeats work nor mixes two: what is there is compared with what would
be asked now.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np
from pydantic_core import from_json, to_json

from grpo_client.files.json_lines import PIPE, is_regular, one_line
from grpo_client.files.rollouts import Rollout
from grpo_client.protocol import EXTRAS, ScoreResult
from grpo_client.validation.words import as_object
from grpo_client.wire_json.request import encode_request
from grpo_client.wire_json.result_writer import result_object


@dataclass(frozen=True, slots=True)
class Scored:
    """What a record says of how it was made. top_k: None where nothing was scored that could show it."""

    request: str
    temperature: float
    normalizer: str
    extras: tuple[str, ...]
    top_k: int | None


class ScoreFile:
    """A file of scores, open for appending. done: input lines that it holds. fingerprint: of the reference in it."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """path: ends in .gz for gzip; `-` is standard output. resume: go on after the records that are there.

        Raises ValueError when the file holds something else, records of several references, or cannot be resumed.
        """
        if path.suffix in (".zst", ".xz", ".bz2"):
            raise ValueError(f"{path}: scores are written plain or as .gz; pipe them: --output - | zstd > {path}")
        self.done: dict[int, Scored] = {}
        self.fingerprint: str | None = None
        self._path = path
        regular = is_regular(path)
        if resume and not regular and (path == PIPE or path.exists()):
            raise ValueError(f"{path} is a pipe or a device, which holds nothing to resume")
        self._file = self._resumed() if resume and regular else self._new()

    def _new(self) -> IO[bytes]:
        if self._path == PIPE:
            return sys.stdout.buffer
        return cast(IO[bytes], gzip.open(self._path, "wb")) if self._path.suffix == ".gz" else self._path.open("wb")

    def _resumed(self) -> IO[bytes]:
        """The file, cut after its whole records. Gzip cannot be cut, so it is written anew beside the old and put in its
        place.
        """
        if self._path.suffix != ".gz":
            end = sum(len(line) for line in self._records(self._path.open("rb")))
            file = self._path.open("r+b")
            file.truncate(end)
            file.seek(end)
            return file
        beside = self._path.with_name(f"{self._path.name}.part")
        file = cast(IO[bytes], gzip.open(beside, "wb"))  # noqa: SIM115  # stays open
        try:
            for line in self._records(cast(IO[bytes], gzip.open(self._path, "rb"))):  # noqa: SIM115  # closed there
                file.write(line)
            file.flush()
        except BaseException:
            file.close()
            beside.unlink()
            raise
        os.replace(beside, self._path)
        return file

    def _records(self, file: IO[bytes]) -> Iterator[bytes]:
        """The whole records of a file, noted on the way."""
        with file:
            lines = enumerate(file, start=1)
            while True:
                try:
                    number, line = next(lines)
                except (StopIteration, EOFError, zlib.error, gzip.BadGzipFile):  # the end, or what a crash left of it
                    return
                if not line.endswith(b"\n"):
                    return
                self._note(number, line)
                yield line

    def _note(self, number: int, line: bytes) -> None:
        record = _record(line)
        if record is None or record["line"] in self.done:
            raise ValueError(
                f"{self._path}, line {number}: not a record of a scoring run; give another output file, or --overwrite"
            )
        if record["fingerprint"] != (self.fingerprint or record["fingerprint"]):
            raise ValueError(
                f"{self._path}, line {number}: scored under reference {record['fingerprint']}, those before it under "
                f"{self.fingerprint}; give another output file, or --overwrite"
            )
        self.fingerprint = record["fingerprint"]
        self.done[record["line"]] = _scored(record)

    def check(self, rollout: Rollout) -> None:
        """Raises ValueError, which names what differs, when the record of this input line is of something else."""
        then = self.done[rollout.line]
        if then.request == digest(rollout):
            return
        raise ValueError(
            f"{self._path} is of another run; at input line {rollout.line} they differ in {_difference(then, rollout)}. Take "
            "up that run as it was, or give another output file, or --overwrite"
        )

    def append(self, rollout: Rollout, result: ScoreResult) -> None:
        """Write one record and hand it to the operating system."""
        answer = result_object(result)
        record: dict[str, Any] = {"line": rollout.line}
        if rollout.id is not None:
            record["id"] = rollout.id
        record |= answer["groups"][0]
        record |= {"temperature": answer["temperature"], "normalizer": result.normalizer}
        record |= {"fingerprint": result.reference.fingerprint, "request": digest(rollout)}
        self._file.write(one_line(to_json(record, inf_nan_mode="null")))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path != PIPE:
            self._file.close()


def digest(rollout: Rollout) -> str:
    """16 hex digits that tell one question from another: ids or text, temperature, normalizer, extras, top_k."""
    return hashlib.sha256(encode_request(rollout.request)).hexdigest()[:16]


def _difference(then: Scored, rollout: Rollout) -> str:
    request, temperature = rollout.request, rollout.request.groups[0].temperature
    extras = tuple(name for name in EXTRAS if name in request.extras)
    found: list[str] = []
    if np.float32(then.temperature) != np.float32(temperature):
        found.append(f"temperature ({then.temperature:g} there, {temperature:g} now)")
    if then.normalizer != request.normalizer:
        found.append(f"normalizer ({then.normalizer} there, {request.normalizer} now)")
    if then.extras != extras:
        found.append(f"--return ({','.join(then.extras) or 'nothing'} there, {','.join(extras) or 'nothing'} now)")
    if then.top_k is not None and then.top_k != request.top_k:
        found.append(f"top_k ({then.top_k} there, {request.top_k} now)")
    return ", ".join(found) or "the input: its prompt or completions are not those that were scored"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = as_object(from_json(line))
    except ValueError:
        return None
    kinds = {"line": int, "fingerprint": str, "request": str, "normalizer": str, "temperature": float, "logprobs": list}
    if record is None or any(type(record.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return record


def _scored(record: dict[str, Any]) -> Scored:
    positions = [position for completion in record.get("top_ids", []) for position in completion]
    width = len(positions[0]) if positions else 0 if "top_ids" not in record else None
    return Scored(
        record["request"],
        record["temperature"],
        record["normalizer"],
        tuple(name for name in EXTRAS if (name if name != "tail" else "top_tail") in record),
        width,
    )
