"""Where questions come from: reasoning-gym's procedural datasets and JSON lines; what `datasets` reads is in `tables`.

A file is read once: the bytes that are parsed are those whose SHA-256 a checkpoint keeps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS

from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.rows import Entry, Rows
from grpo_training.tasks.source import Numbered, Source
from grpo_training.tasks.tables import TABLES, read_table

_SAMPLED = 16  # entries of a procedural dataset that its fingerprint covers


def open_source(config: TaskConfig, *, seed: int) -> Source:
    """seed: of a procedural dataset whose kwargs name none. Raises ConfigError that names file, row and field."""
    if config.file is not None and config.file.suffix not in TABLES:
        return _read_lines(config.file, Rows.of(config))
    if config.name is None:
        return read_table(config)
    if config.name not in DATASETS:
        raise ConfigError(
            f"task.name: reasoning-gym has no dataset {config.name!r}; it has: {', '.join(sorted(DATASETS))}"
        )
    kwargs = dict(config.kwargs)
    if kwargs.get("seed") is None:  # reasoning-gym would draw one, another in every process
        kwargs["seed"] = seed
    try:
        dataset = reasoning_gym.create_dataset(config.name, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"task.kwargs: reasoning-gym refuses them for {config.name}: {error}") from error
    entries = _Procedural(dataset)
    shown = [entries[i] for i in range(min(_SAMPLED, len(entries)))]
    text = json.dumps([[e["question"], e["answer"]] for e in shown], default=str)
    places = Numbered(f"entry {{}} of {config.name}", len(entries))
    return Source(entries, places, hashlib.sha256(text.encode()).hexdigest(), dataset)


class _Procedural(Sequence[Entry]):
    """A reasoning-gym dataset makes its entries when they are asked for; this gives it a sequence's type."""

    def __init__(self, dataset: ProceduralDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[range(len(self._dataset))[index]]  # IndexError ends an iteration


def _read_lines(path: Path, rows: Rows) -> Source:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"task.file: no file at {path}") from error
    except OSError as error:
        raise ConfigError(f"task.file: {path} cannot be read: {error.strerror}") from error
    entries: list[Entry] = []
    places: list[str] = []
    for number, line in _lines(content, path):
        where = f"task.file: {path} line {number}"
        entries.append(rows.checked(_parsed(line, where), where))
        places.append(where)
    if not entries:
        raise ConfigError(f"task.file: {path} holds no entries")
    return Source(entries, places, hashlib.sha256(content).hexdigest())


def _lines(content: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, and their numbers. Only a newline ends one: U+2028 may stand in a JSON string."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"task.file: {path} line {number} is not UTF-8") from error
        if text.strip():
            yield number, text


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)} is there twice")
    return entry
