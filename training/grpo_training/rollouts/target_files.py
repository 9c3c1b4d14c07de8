"""Distillation targets as `grpo-client score --format parquet|arrow|axolotl` writes them, read row by row.

Only what decides which rows there are is read of all files at the start; of the lists one file at a time is kept.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_training.config import ConfigError

_SUFFIXES = (".parquet", ".arrow")
_METADATA = b"grpo"
# What a teacher says is comparable only where all files agree on these.
_ALIKE = ("format", "fingerprint", "vocab_size", "normalizer", "top_k", "tail")
_DEFINITE = ("line", "completion", "request", "status")
_OURS = ("top_ids", "top_logprobs")
_AXOLOTL = ("target_token_ids", "target_logprobs", "target_mask")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One completion of T tokens. top_ids: (T, k) int64. top_logprobs: (T, k) fp32. tail: (T,) fp32 of the mass outside them,
    None where the files have none."""

    prompt_ids: list[int]
    completion_ids: list[int]
    top_ids: Array
    top_logprobs: Array
    tail: Array | None


@dataclass(frozen=True, slots=True)
class Part:
    """One file. rows: places in it of the completions that have targets."""

    path: Path
    rows: Array


class TargetFiles:
    """All files of a directory, or one.

    about: their metadata, `temperature` those of all. parts: in the order of the files' names. left_out: rows without a token
    or whose status is not ok. fingerprint: changes when the rows or who scored them do. longest: the most tokens of prompt and
    completion. largest_id: of prompts and completions.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError that names the file and what is wrong with it."""
        self.about: dict[str, Any] = {}
        self.parts: list[Part] = []
        self.left_out, self.longest, self.largest_id = 0, 0, -1
        self._open: tuple[Path, Any] | None = None
        digest = hashlib.sha256()
        for file in _files(path):
            self._note(file, digest)
        self.fingerprint = digest.hexdigest()
        if not len(self):
            raise ConfigError(
                f"distillation.targets: {path} has no row with targets; {self.left_out} have another status"
            )

    def __len__(self) -> int:
        """Rows with targets."""
        return sum(len(part.rows) for part in self.parts)

    def row(self, part: Part, place: int) -> TargetRow:
        """The completion at `place` of `part.rows`."""
        if self._open is None or self._open[0] != part.path:
            wanted = ["prompt_ids", "completion_ids", *(_AXOLOTL if self.about["format"] == "axolotl" else _OURS)]
            if self.about["tail"]:
                wanted.append("tail_logprob")
            table = _table(part.path, wanted)
            self._open = part.path, {name: table[name] for name in wanted}
        columns, index = self._open[1], int(part.rows[place])

        def values(name: str) -> Array:
            found = columns[name][index].values
            while hasattr(found, "flatten") and found.type.num_fields:
                found = found.flatten()
            return found.to_numpy(zero_copy_only=False)

        prompt, completion, width = values("prompt_ids"), values("completion_ids"), self.about["top_k"]
        if self.about["format"] == "axolotl":
            # a row for each token but the first, and one more: row t predicts token t + 1
            behind = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
            ids, logprobs, there = (values(name).reshape(-1, width)[behind] for name in _AXOLOTL)
            logprobs = np.where(there, logprobs, -np.inf)
        else:
            ids, logprobs = (values(name).reshape(len(completion), width) for name in _OURS)
        return TargetRow(
            prompt.tolist(),
            completion.tolist(),
            ids.astype(np.int64),
            logprobs.astype(np.float32),
            values("tail_logprob").astype(np.float32) if self.about["tail"] else None,
        )

    def _note(self, file: Path, digest: Any) -> None:
        compute = _pyarrow("compute")
        table = _table(file, [*_DEFINITE, "prompt_ids", "completion_ids"])
        self._agree(file, _about(file, table.schema.metadata))
        lengths = {name: compute.list_value_length(table[name]).to_numpy() for name in ("prompt_ids", "completion_ids")}
        good = np.array([status == "ok" for status in table["status"].to_pylist()], dtype=bool)
        good &= (lengths["completion_ids"] > 0) & (lengths["prompt_ids"] > 0)
        self.parts.append(Part(file, good.nonzero()[0]))
        self.left_out += int((~good).sum())
        if good.any():
            self.longest = max(self.longest, int((lengths["prompt_ids"] + lengths["completion_ids"])[good].max()))
        for name in lengths:
            largest = compute.max(compute.list_flatten(table[name])).as_py()
            self.largest_id = max(self.largest_id, -1 if largest is None else largest)
        for name in _DEFINITE:
            digest.update(json.dumps(table[name].to_pylist()).encode())
        digest.update(json.dumps({name: self.about[name] for name in _ALIKE}).encode())

    def _agree(self, file: Path, about: dict[str, Any]) -> None:
        if not self.about:
            self.about = about
        for name in _ALIKE:
            if about[name] != self.about[name]:
                raise ConfigError(
                    f"distillation.targets: {file} has {name} {about[name]}, and the files before it {self.about[name]}: train "
                    f"on the targets of one run of grpo-client score"
                )
        temperatures = sorted({*self.about["temperature"], *about["temperature"]})
        self.about = self.about | about | {"temperature": temperatures}


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"distillation.targets: there is no file or directory {path}")
    found = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else [path]
    if not found or any(file.suffix not in _SUFFIXES for file in found):
        raise ConfigError(
            f"distillation.targets: {path} is no parquet or arrow file, or directory of them: write one with grpo-client score "
            f"--top-k 64 --tail --format parquet"
        )
    return found


def _about(file: Path, metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    about = json.loads((metadata or {}).get(_METADATA, b"{}"))
    if missing := [name for name in (*_ALIKE, "temperature") if name not in about]:
        raise ConfigError(
            f"distillation.targets: {file} does not say which {missing[0]} its targets have, as the files of grpo-client score "
            f"do; give those, and not a copy by another program"
        )
    return about


def _table(file: Path, columns: list[str]) -> Any:
    """Columns of one file; of an arrow file they stay on the disk until they are looked at."""
    pa = _pyarrow()
    try:
        if file.suffix == ".parquet":
            return _pyarrow("parquet").read_table(file, columns=columns, partitioning=None)
        with pa.memory_map(str(file)) as source:
            return _pyarrow("ipc").open_file(source).read_all().select(columns)
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ConfigError(f"distillation.targets: {file} cannot be read as targets: {error}") from error


def _pyarrow(submodule: str = "") -> Any:
    try:
        return importlib.import_module(f"pyarrow.{submodule}" if submodule else "pyarrow")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise ConfigError(
            "distillation.targets are parquet and arrow files, which need pyarrow: pip install 'grpo-refserver[data]'"
        ) from error


def walk(parts: list[Part], step: int, count: int, seed: int, *, shuffle: bool) -> Iterator[tuple[Part, int]]:
    """The `count` rows of a step, in an endless walk: in the files' order, or in each pass the files in an order drawn from
    (seed, pass) and the rows of each file in another, so that one file at a time is open."""
    sizes = np.array([len(part.rows) for part in parts])
    orders: dict[tuple[int, int], Array] = {}

    def order(of: int, number: int, which: int) -> Array:
        """Of `of` things in a pass: the files (which = 0), or the rows of one of them."""
        if (number, which) not in orders:
            draws = np.random.default_rng((seed, number, which))
            orders[number, which] = draws.permutation(of) if shuffle else np.arange(of)
        return orders[number, which]

    for position in range(step * count, (step + 1) * count):
        number, place = divmod(position, int(sizes.sum()))
        files = order(len(parts), number, 0)
        ends = sizes[files].cumsum()
        at = int(np.searchsorted(ends, place, side="right"))
        file = int(files[at])
        first = int(ends[at] - sizes[file])
        yield parts[file], int(order(int(sizes[file]), number, 1 + file)[place - first])
