"""What is wrong with a model's files, in one sentence: seen before they are read, or looked for once reading failed.

Names and sizes, headers and JSON only. Whether the weights fit their config is for whoever loads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from grpo_client.addresses import without_secrets

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
_INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs"
_FILES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".json", ".gguf", ".ckpt"})
_TOLD = 3


class UnusableModel(ValueError):
    """What was named as a model is not there, or cannot be read. The message is one sentence with the reason."""


def check_path(name: str) -> None:
    """Raise UnusableModel when `name` is a path, and not of a directory or a .gguf file that may be read.

    A word, or two with a slash between them, may be a hub id: those pass.
    """
    if "://" in name:
        raise UnusableModel(
            f"{without_secrets(name)} is a URL; give a directory, a .gguf file or the id of a hub's model"
        )
    path = Path(name)
    if not os.path.lexists(path):
        if path.suffix in _FILES:
            raise UnusableModel(f"there is no file {name}")
        if name[:1] in "./~\\" or name.count("/") > 1 or name.endswith("/"):
            raise UnusableModel(f"there is no directory {name}")
        return
    if not path.exists():
        raise UnusableModel(f"{name} is a link to what is not there")
    if path.is_file() and path.suffix != ".gguf":
        raise UnusableModel(f"{name} is a file; give the directory that holds it, or a .gguf file")
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise UnusableModel(f"there is no permission to read {name}")


def fault(name: str, gguf_file: str | None = None) -> str | None:
    """What is seen to be wrong with the files of a model that could not be read; None when nothing is, or it is not here.

    name: as `from_pretrained` takes it. gguf_file: inside that directory, if the model is one.
    """
    directory = Path(name)
    if not directory.is_dir():
        return None
    try:
        faults = _gguf_faults(directory / gguf_file) if gguf_file else _faults(directory)
        return next(faults, None)
    except PermissionError as error:
        return f"there is no permission to read {error.filename}"


def holds_weights(directory: Path) -> bool:
    """Whether a directory has weights of a whole model, and not those of an adapter alone."""
    return any(not path.name.startswith("adapter_model") for path in _weights(directory))


def _faults(directory: Path) -> Iterator[str]:
    is_adapter = (directory / ADAPTER_CONFIG).is_file()
    if not (directory / CONFIG).is_file() and not is_adapter:
        yield f"it holds no {CONFIG}{_elsewhere(directory)}"
    for name in (CONFIG, ADAPTER_CONFIG, _INDEX, "generation_config.json"):
        if (directory / name).is_file() and (broken := _json_fault(directory / name)):
            yield broken
    if (directory / _INDEX).is_file():
        yield from _index_faults(directory)
    weights = sorted(_weights(directory))
    if any("-of-" in path.name for path in weights) and not (directory / _INDEX).is_file():
        yield f"it holds parts of a model and no {_INDEX}, which says what each holds; copy the whole checkpoint again"
    if is_adapter and not any(path.name.startswith("adapter_model") for path in weights):
        yield "it holds no weights of the adapter (adapter_model.safetensors)"
    if not weights:
        yield "it holds no weights (model.safetensors)"
    for path in weights:
        if broken := _file_fault(path):
            yield broken


def _weights(directory: Path) -> list[Path]:
    return [
        path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin") and path.stem != "training_args"
    ]


def _elsewhere(directory: Path) -> str:
    """Where a model may be meant, when it is not in the directory itself."""
    inside = sorted(p.parent.name for p in directory.glob(f"*/{CONFIG}")) or sorted(
        p.name for p in directory.glob("*.gguf")
    )
    return f"; give one of those in it: {', '.join(inside[-_TOLD:])}" if inside else ""


def _json_fault(path: Path) -> str | None:
    try:
        value: Any = json.loads(path.read_bytes())
    except ValueError as error:  # bytes that are no text, text that is no JSON
        return f"{path.name} is not JSON: {error}"
    return None if isinstance(value, dict) else f"{path.name} holds no JSON object"


def _index_faults(directory: Path) -> Iterator[str]:
    index: dict[str, Any] = json.loads((directory / _INDEX).read_bytes())
    named: Any = index.get("weight_map")
    if not isinstance(named, dict) or not named:
        yield f"{_INDEX} names no files (weight_map)"
        return
    files = {str(file) for file in cast("dict[str, object]", named).values()}
    gone = sorted(file for file in files if not (directory / file).is_file())
    if gone:
        yield f"{', '.join(gone[:_TOLD])} is not there, which {_INDEX} names; copy the whole checkpoint again"
    if not isinstance(index.get("metadata"), dict):
        yield f"{_INDEX} has no metadata; save the checkpoint again"


def _file_fault(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        return f"{path.name} is a Git LFS pointer and not the weights; type: git lfs pull"
    if not start:
        return f"{path.name} is empty; copy it again"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            return f"{path.name} is cut off or no safetensors file ({error}); copy it again"
    return None


def _gguf_faults(path: Path) -> Iterator[str]:
    if broken := _file_fault(path):
        yield broken
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            yield f"{path.name} is not a GGUF file"
    yield f"{path.name} is cut off or broken; copy it again"
