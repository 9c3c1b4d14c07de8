"""An adapter's files: its config and its tensors, from a directory or the hub's cache. safetensors only, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from grpo_client.models.demo import locate
from grpo_client.models.files import ADAPTER_CONFIG, UnusableModel
from grpo_client.models.reading import Reading
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import cached_file

from .settings import Settings, settings_of

_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Files:
    """Where an adapter is, and what its config says. base: the model that it names as its own, for people."""

    source: str
    weights: Path
    settings: Settings
    base: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors, by the header of the file."""
        with Reading(self.source), safe_open(self.weights, framework="np") as held:
            return {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118

    def tensors(self) -> dict[str, Tensor]:
        """All of them, by name, on the CPU."""
        with Reading(self.source):
            return load_file(self.weights)


def find(source: str, revision: str | None = None) -> Files:
    """The adapter in a directory, or under a hub id whose files are here. Raises OSError or ValueError when there is none."""
    path = locate(source).path
    with Reading(path):
        config_file = _file(path, ADAPTER_CONFIG, revision)
        if config_file is None:
            raise UnusableModel(f"it is no adapter: {path} holds no {ADAPTER_CONFIG}")
        config = json.loads(config_file.read_bytes())
        if not isinstance(config, dict):
            raise UnusableModel(f"its {ADAPTER_CONFIG} holds no JSON object")
        settings = settings_of(config)
        weights = _file(path, _WEIGHTS, revision)
        if weights is None and _file(path, _PICKLE, revision) is not None:
            raise UnusableModel(f"its weights are a pickle ({_PICKLE}), which could run code; save it as {_WEIGHTS}")
        if weights is None:
            raise UnusableModel(f"it holds no weights of the adapter ({_WEIGHTS})")
    return Files(source, weights, settings, str(config.get("base_model_name_or_path") or ""))


def _file(path: str, name: str, revision: str | None) -> Path | None:
    if Path(path).is_dir():
        return file if (file := Path(path, name)).is_file() else None
    found = cached_file(
        path,
        name,
        revision=revision or "main",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
