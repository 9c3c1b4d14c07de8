"""Who answered: one SHA-256 over weights, config and tokenizer, equal wherever and however the same reference is loaded."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where a model came from and how it is run says nothing of what it computes.
_NOT_IDENTITY = frozenset(
    {
        "architectures",
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "quantization_config",
        "use_cache",
        "dtype",
        "torch_dtype",
    }
)
_HASH_THREADS = 4


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """64 hex digits over every parameter and buffer that is saved (name, dtype, shape, bytes), the config without paths and
    versions, and the tokenizer's full definition."""
    digest = hashlib.sha256()
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    with ThreadPoolExecutor(_HASH_THREADS) as pool:  # hashing releases the interpreter's lock
        for part in pool.map(tensor_digest, sorted(state), [state[name] for name in sorted(state)]):
            digest.update(part)
    digest.update(type(model).__name__.encode())  # "architectures" is only filled in when a model is saved
    digest.update(json.dumps(_plain(model.config.to_dict()), sort_keys=True).encode())
    if scales := _adapter_scales(model):
        digest.update(json.dumps(scales, sort_keys=True).encode())
    if tokenizer is not None:
        digest.update(_tokenizer_bytes(tokenizer))
    return digest.hexdigest()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may lie in slices over several processes, complete in each of them; all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def tensor_digest(name: str, tensor: torch.Tensor) -> bytes:
    """SHA-256 over name, type, shape and bytes."""
    head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode()
    raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(head)
    digest.update(raw.numpy().data)
    return digest.digest()


def _adapter_scales(model: PreTrainedModel) -> dict[str, Any]:
    """What an adapter's product is multiplied by, layer by layer: peft keeps it beside the weights (lora_alpha / r)."""
    scales = {name: getattr(module, "scaling", None) for name, module in model.named_modules()}
    return {name: _plain(scale) for name, scale in scales.items() if isinstance(scale, dict)}


def _tokenizer_bytes(tokenizer: PreTrainedTokenizerBase) -> bytes:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return "\0".join([definition, str(tokenizer.chat_template)]).encode()


def _plain(value: Any) -> Any:
    """A config as JSON takes it, without what is not identity."""
    if isinstance(value, dict):
        return {
            str(k): _plain(v) for k, v in value.items() if str(k) not in _NOT_IDENTITY and not str(k).startswith("_")
        }
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
