"""Brings a model's files to where they can be loaded, in a child process: a thread that waits for a hub, or for a file
system that is gone, could not be ended."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_client.models.demo import ModelSource

from grpo_server.swapping.progress import Progress
from grpo_server.swapping.sources import no_room, unavailable

# A line of a child; an error's sentence may be long.
_LONGEST_LINE = 2**20


@dataclass(frozen=True, slots=True)
class Fetched:
    """source: what to load. revision: the commit, of a model from the hub."""

    source: str
    revision: str | None = None


async def look_through(source: ModelSource, root: Path | None, into: Path | None, progress: Progress) -> Fetched:
    """See that all files of a directory, or one .gguf file, can be read, and copy them if `into` says where to.

    root: none of them may lie elsewhere. Raises ServiceError: 422 for files that are not fit to be read, or do not fit
    here, 507 when the disk is full.
    """
    path = source.path if source.gguf_file is None else str(Path(source.path, source.gguf_file))
    script = str(Path(__file__).with_name("fetch_files.py"))
    progress.arriving = into
    # absolute: a child need not resolve it as we did
    arguments = [
        str(Path(path).absolute()),
        "" if into is None else str(into),
        "" if root is None else str(root.resolve()),
    ]
    answer = await _of_child(["-I", script, *arguments], progress)
    return Fetched(path if into is None else str(answer["path"]))


async def from_hub(name: str, revision: str | None, *, code: bool, progress: Progress) -> Fetched:
    """Bring a model into the hub's cache. code: its Python files too. Raises ServiceError (422, or 507 when the disk
    is full) with what the hub said."""
    arguments = ["-m", "grpo_server.swapping.fetch_hub", name, revision or "", "code" if code else ""]
    answer = await _of_child(arguments, progress)
    return Fetched(str(answer["path"]), str(answer["revision"]))


async def _of_child(arguments: list[str], progress: Progress) -> dict[str, Any]:
    """The last line that Python with these arguments writes. Ended with us: when this task is cancelled, and when we die."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_LONGEST_LINE,
    )
    assert child.stdout is not None
    answer: dict[str, Any] = {"error": "the process that fetches it ended without a word"}
    try:
        async for line in child.stdout:
            told = json.loads(line)
            progress.total_bytes = told.get("total", progress.total_bytes)
            if "arriving" in told:
                progress.arriving = Path(told["arriving"])
            answer = told if told.keys() & {"path", "error"} else answer
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    progress.arriving, progress.brought = None, progress.total_bytes
    if "error" in answer:
        raise no_room(answer["error"]) if answer.get("full") else unavailable(answer["error"])
    return answer
