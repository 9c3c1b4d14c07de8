"""Rollouts from tables, as numbered lines of JSON: parquet and arrow files, directories of them, and what `datasets` saves.

Columns are the fields of a line (`prompt` or `messages`, `completions`, `id`, ...). A row with `prompt_ids` and
`completion_ids`, as `target_files` writes it, is a prompt with one completion. Rows are numbered from 1 through all files, by
the files' names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json, to_json

from grpo_client.files.arrow import pyarrow
from grpo_client.files.json_lines import NotReadable, numbered_lines

_SUFFIXES: Final = (".parquet", ".arrow", ".feather")
_ROWS: Final = 256  # that are Python objects at a time


def is_table(path: Path) -> bool:
    """Whether this is read as a table: by the file's name, or a directory."""
    return path.suffix in _SUFFIXES or path.is_dir()


def numbered_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """What a file holds as numbered lines, whether they are lines there or rows. Raises NotReadable, OSError, ValueError."""
    if not is_table(path):
        yield from numbered_lines(path)
        return
    number = 0
    for file in table_files(path):
        for batch in _batches(file):
            for row in batch.to_pylist():
                number += 1
                yield number, to_json(_as_line(row))


def table_files(path: Path) -> list[Path]:
    """The files of a table, in order. Raises NotReadable for a directory that holds none, or several splits."""
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(str(path / name) for name in json.loads((path / "dataset_dict.json").read_text())["splits"])
        raise NotReadable(f"{path} holds several splits; give one of them: {splits}")
    if (path / "state.json").is_file():
        return [path / entry["filename"] for entry in json.loads((path / "state.json").read_text())["_data_files"]]
    if not (found := sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)):
        raise NotReadable(f"{path} is a directory that holds no parquet or arrow file")
    return found


def _batches(path: Path) -> Iterator[Any]:
    pa = pyarrow()
    try:
        if path.suffix == ".parquet":
            with pyarrow("parquet").ParquetFile(path) as file:
                yield from file.iter_batches(_ROWS)
            return
        with pa.memory_map(str(path)) as source:
            for batch in _opened(source):
                for start in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(start, _ROWS)
    except pa.ArrowException as error:
        raise NotReadable(f"{path} cannot be read: {error}") from error


def _opened(source: Any) -> Iterator[Any]:
    """The batches of an arrow file, or of an arrow stream, which `datasets` writes under the same suffix."""
    pa, ipc = pyarrow(), pyarrow("ipc")
    try:
        file = ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from ipc.open_stream(source)
        return
    for i in range(file.num_record_batches):
        yield file.get_batch(i)


def _as_line(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line: absent columns are null in a table, and ids of other types are JSON in ours."""
    fields = {name: value for name, value in row.items() if value is not None}
    if "completion_ids" not in fields or "prompt_ids" not in fields or "completions" in fields:
        return fields
    fields |= {"prompt": fields.pop("prompt_ids"), "completions": [fields.pop("completion_ids")]}
    if isinstance(name := fields.get("id"), str):
        with suppress(ValueError):
            fields["id"] = from_json(name)
    return fields
