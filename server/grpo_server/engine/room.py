"""Whether a second set of weights fits beside the hosted one: read off the files' headers, held against what is free."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from gguf import GGUFReader
from grpo_client.models.demo import ModelSource
from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)


def no_room(needed: int, working: int, free: int) -> str | None:
    """Why weights of `needed` bytes are not loaded beside others; None: there is room. working: bytes of a full batch, of which
    the trial of the new weights computes one while serving goes on with another."""
    wanted = needed + 2 * working
    if wanted <= free:
        return None
    return f"about {_gib(wanted)} would be needed beside the hosted reference, and {_gib(free)} is free"


def weight_bytes(source: ModelSource, element: int) -> int | None:
    """Bytes of a checkpoint's weights in elements of so many bytes; None where its files do not say: it is an adapter, not
    here, or broken."""
    directory = Path(source.path)
    try:
        if source.gguf_file is not None:
            return element * sum(int(t.n_elements) for t in GGUFReader(directory / source.gguf_file).tensors)
        files = [f for f in sorted(directory.glob("*.safetensors")) if not f.name.startswith("adapter_model")]
        if files:
            return element * sum(map(_numbers, files))
        return sum(f.stat().st_size for f in directory.glob("pytorch_model*.bin")) or None
    except (OSError, ValueError, SafetensorError) as error:
        log.debug("the size of %s is not known", source.path, exc_info=error)
        return None


def _numbers(file: Path) -> int:
    with safe_open(file, framework="np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
