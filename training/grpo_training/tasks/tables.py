"""Questions from what the library `datasets` reads: parquet and arrow files, its own directories, the hub.

Every row is checked, and hashed, before a run begins; the table itself stays where `datasets` keeps it, which may be the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_training.config import ConfigError, TaskConfig
from grpo_training.tasks.rows import Entry, Rows
from grpo_training.tasks.source import Numbered, Source

logger = logging.getLogger(__name__)

TABLES = {".parquet": "parquet", ".arrow": "arrow"}


def read_table(config: TaskConfig) -> Source:
    """Raises ConfigError that names file, row and field, or the extra that is not installed."""
    field = "task.dataset" if config.file is None else "task.file"
    name = config.dataset if config.file is None else str(config.file)
    if find_spec("datasets") is None:
        raise ConfigError(f"{field}: {name} is read by the library datasets: pip install 'grpo-refserver[data]'")
    logger.info("reading %s", name)
    table = _opened(config, field)
    places = Numbered(f"{field}: {name} row {{}}", len(table))
    rows = Rows.of(config)
    digest = hashlib.sha256()
    for index, row in enumerate(table):
        rows.checked(row, f"{field}: {name} row {index}")
        digest.update(json.dumps(row, default=str, sort_keys=True).encode())
    if not len(table):
        raise ConfigError(f"{field}: {name} holds no entries")
    return Source(_Table(table, rows, places.__getitem__), places, digest.hexdigest())


class _Table(Sequence[Entry]):
    """Rows under our names, read when they are asked for."""

    def __init__(self, table: Any, rows: Rows, places: Callable[[int], str]) -> None:
        self._table, self._rows, self._places = table, rows, places

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        return self._rows.checked(self._table[index], self._places(index))


def _opened(config: TaskConfig, field: str) -> Any:
    # takes seconds to import
    from datasets import (  # pyright: ignore[reportMissingImports]
        Dataset,
        DatasetDict,
        load_dataset,
        load_from_disk,
    )

    try:
        if config.file is not None:
            if not config.file.is_file():
                raise ConfigError(f"task.file: no file at {config.file}")
            kind = TABLES[config.file.suffix]
            return load_dataset(kind, data_files={"train": str(config.file)}, split="train")
        assert config.dataset is not None
        if Path(config.dataset).is_dir() and _saved(Path(config.dataset)):
            found = load_from_disk(config.dataset)
            if isinstance(found, Dataset):
                return found
            assert isinstance(found, DatasetDict)
            if config.split not in found:
                raise ConfigError(
                    f"task.split: {config.dataset} has no split {config.split!r}, but {', '.join(map(str, found))}"
                )
            return found[config.split]
        return load_dataset(config.dataset, config.subset, split=config.split, revision=config.revision)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{field}: datasets cannot read {config.dataset or config.file}: {error}") from error


def _saved(directory: Path) -> bool:
    """Whether it was written by `save_to_disk`, and not a folder of files."""
    return any((directory / name).exists() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
