"""The output of a scoring run: append-only, one JSON object a line, so that a run that died can be taken up again.

A line counts once its newline is on disk; what a crash left of the last one is cut off. Each record says which input
line it scores and under which reference, so that a resumed run neither repeats work nor mixes references.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic_core import from_json, to_json

from grpo_client.protocol import ScoreResult
from grpo_client.rollouts import Rollout
from grpo_client.validation import as_object
from grpo_client.wire_json.result import result_object


class ScoreFile:
    """A file of scores, open for appending. done: input lines that it holds. fingerprint: of the reference in it."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """resume: go on after the records that are there; else begin anew.

        Raises ValueError when the file holds something else, or records of several references.
        """
        self.done: set[int] = set()
        self.fingerprint: str | None = None
        end = self._read(path) if resume and path.exists() else 0
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(end)
        self._file.seek(end)

    def _read(self, path: Path) -> int:
        """Note what the file holds; returns where its whole records end."""
        end = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                record = _record(line)
                if record is None or record["fingerprint"] != (self.fingerprint or record["fingerprint"]):
                    raise ValueError(
                        f"{path}, line {number}: not a record of this run; give another output file, or --overwrite"
                    )
                self.fingerprint = record["fingerprint"]
                self.done.add(record["line"])
                end += len(line)
        return end

    def append(self, rollout: Rollout, result: ScoreResult) -> None:
        """Write one record and hand it to the operating system."""
        answer = result_object(result)
        record: dict[str, Any] = {"line": rollout.line}
        if rollout.id is not None:
            record["id"] = rollout.id
        record |= answer["groups"][0]
        record |= {"temperature": answer["temperature"], "normalizer": result.normalizer}
        record["fingerprint"] = result.reference.fingerprint
        self._file.write(to_json(record, inf_nan_mode="null") + b"\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = as_object(from_json(line))
    except ValueError:
        return None
    if record is None or type(record.get("line")) is not int or not isinstance(record.get("fingerprint"), str):
        return None
    return record
