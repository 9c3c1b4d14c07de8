"""A model on its way to a server: which files, their hashes, and the calls that bring what is not there yet. No I/O but files.

After a cut an attempt begins with the same manifest, is told what has arrived, and goes on there: no byte is written twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from grpo_client.errors import GrpoClientError, InvalidResponse, InvalidSetting
from grpo_client.http.exchange import Call, Reply
from grpo_client.http.retry import is_worth_another_try
from grpo_client.http.uploads import begin_call, piece_call, read_piece, read_upload
from grpo_client.models.uploadable import CONFIG, WEIGHTS, is_uploadable

# So much of a file is in memory at a time, and sent again at most when a connection breaks.
PIECE_BYTES = 16 * 2**20

Source = str | PathLike[str] | Iterable[str | PathLike[str]]
# Bytes that the servers have, of how many.
OnProgress = Callable[[int, int], None]


def unheard(there: int, total: int) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """size: bytes. sha256: hex digits."""

    path: Path
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.name


def model_files(source: Source) -> list[ModelFile]:
    """The files of a directory that a model needs, or these files, hashed. Raises InvalidSetting for what is no model as
    safetensors, and OSError."""
    if isinstance(source, str | PathLike):
        directory = Path(source)
        if not directory.is_dir():
            raise InvalidSetting(f"{directory} is no directory; name the one that the model was saved in")
        paths = sorted(p for p in directory.iterdir() if is_uploadable(p.name) and p.is_file())
    else:
        paths = [Path(p) for p in source]
        if wrong := [str(p) for p in paths if not is_uploadable(p.name)]:
            raise InvalidSetting(
                f"{wrong[0]} cannot be uploaded: a model's {CONFIG}, *{WEIGHTS} and tokenizer files can"
            )
    names = {p.name for p in paths}
    if CONFIG not in names or not any(name.endswith(WEIGHTS) for name in names):
        raise InvalidSetting(f"{source} is no model that can be uploaded: that has a {CONFIG} and *{WEIGHTS} files")
    return [_hashed(path) for path in paths]


class Sending:
    """One model to one server. on_bytes: told how many of its bytes the server has, as it grows."""

    def __init__(self, files: list[ModelFile], admin_key: str | None, on_bytes: Callable[[int], None]) -> None:
        self._files, self._admin_key, self._on_bytes = files, admin_key, on_bytes
        self._grown = False

    def attempt(self) -> Generator[Call, Reply, str]:
        """Calls to send, each answered by its reply; returns what to name to have the model hosted. Raises what a reply means,
        and OSError."""
        self._grown = False
        manifest = [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in self._files]
        upload = read_upload((yield begin_call(manifest, self._admin_key)))
        places = {place.name: place for place in upload.files}
        if missing := [file.name for file in self._files if file.name not in places]:
            raise InvalidResponse(f"the server does not say how far {missing[0]} is")
        there = sum(places[file.name].offset for file in self._files)
        self._on_bytes(there)
        for file in self._files:
            place = places[file.name]
            while not place.complete:
                data = _piece(file, place.offset)
                before = place
                place = read_piece((yield piece_call(upload.id, file.name, place.offset, data, self._admin_key)))
                if place.offset != before.offset + len(data) or (place.offset == file.size and not place.complete):
                    raise InvalidResponse(f"the server has {place.offset} bytes of {file.name} after {len(data)} more")
                self._grown = self._grown or bool(data)
                there += len(data)
                self._on_bytes(there)
        return upload.model

    def goes_on_after(self, error: GrpoClientError) -> bool:
        """Whether bytes arrived in the last attempt before it failed: the next one has all the time again."""
        return self._grown and is_worth_another_try(error)


def advance(steps: Generator[Call, Reply, str], reply: Reply | None) -> Call | str:
    """The next call of an attempt, or what it returned. reply: to the call before; None: there was none."""
    try:
        return next(steps) if reply is None else steps.send(reply)
    except StopIteration as end:
        return end.value


def same(models: list[str]) -> str:
    """What all servers call the upload. Raises InvalidResponse when they differ."""
    if len(set(models)) > 1:
        raise InvalidResponse(f"the servers have different names for one upload: {', '.join(models)}")
    return models[0]


def _hashed(path: Path) -> ModelFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ModelFile(path, file.tell(), digest)


def _piece(file: ModelFile, offset: int) -> bytes:
    wanted = min(PIECE_BYTES, file.size - offset)
    with file.path.open("rb") as opened:
        opened.seek(offset)
        data = opened.read(wanted)
    if len(data) < wanted:
        raise InvalidSetting(f"{file.path} has become shorter while it was uploaded; begin again when it is whole")
    return data
