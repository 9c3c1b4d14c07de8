"""What a GGUF file holds and transformers leaves out without a word: further layers, and scaled rotary frequencies.

The file's reader and the config are handed in, so this module knows neither library.
"""

from __future__ import annotations

import re
from typing import Any

from .loaded import WeightsError
from .names import told

_LAYER = re.compile(r"blk\.(\d+)\.")
_INSTEAD = "use the model's safetensors checkpoint"


def require_all_read(reader: Any, config: Any) -> None:
    """Raise WeightsError when the file holds what the model made from it does not.

    reader: `gguf.GGUFReader`. config: of the language model, as transformers made it from the file.
    """
    names = [str(tensor.name) for tensor in reader.tensors]
    layers = int(config.num_hidden_layers)
    if beyond := [name for name in names if (found := _LAYER.match(name)) and int(found[1]) >= layers]:
        raise WeightsError(
            f"the GGUF file says {layers} layers (block_count), and the model has no place for {told(beyond)}; {_INSTEAD}"
        )
    if _is_scaled(config):
        return
    if tables := [name for name in names if name.startswith(("rope_freqs", "rope_factors"))]:
        raise WeightsError(
            f"transformers does not read the rotary frequencies of a GGUF file ({told(tables)}); {_INSTEAD}"
        )
    scaling, factor = _metadata(reader, ".rope.scaling.type"), _metadata(reader, ".rope.scaling.factor")
    if scaling not in (None, "none") and factor != 1:
        raise WeightsError(f"transformers does not read the rotary scaling of a GGUF file ({scaling}); {_INSTEAD}")


def _is_scaled(config: Any) -> bool:
    """Whether the config scales rotary frequencies: one table for all layers, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [rope, *(table for table in rope.values() if isinstance(table, dict))]
    return any(table.get("rope_type", "default") != "default" for table in tables)


def _metadata(reader: Any, ending: str) -> Any:
    return next((field.contents() for name, field in reader.fields.items() if name.endswith(ending)), None)
