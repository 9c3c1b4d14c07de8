"""A frozen model with its tokenizer, where and in what precision the config wants it. Reading the files is in `reading`."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from grpo_client.models.demo import COMPLETE_MARKER, DEMO, ModelSource, demo_copy, locate
from grpo_numerics.model_parts import layer_configs
from grpo_numerics.torch_ops import cpu_has_avx512_bf16
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed.configuration_utils import DistributedConfig

from .config import EngineConfig, mode_on
from .own_memory import own_memory
from .quickest import bfloat16_products
from .reading import read_model, read_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A frozen model in eval mode on its device, with its tokenizer (None when the source has none)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: ModelSource


def choose_device(asked: str) -> torch.device:
    """ "auto" is cuda where there is one, else cpu. Raises ValueError for a device that is not here."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(asked)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {asked!r} was asked for, but torch sees no GPU; use --device cpu")
    return device


def choose_dtype(config: EngineConfig, device: torch.device, ranks: int = 1) -> torch.dtype:
    """float32 in exact mode, else bfloat16 where it is faster. Raises ValueError for exact with a half type."""
    mode = mode_on(config.mode, device.type)
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
        if mode == "exact" and dtype != torch.float32:
            raise ValueError(
                f"dtype: exact mode computes in float32, not {config.dtype}; use --mode invariant, or --mode fast"
            )
        return dtype
    if mode == "exact":
        return torch.float32
    return torch.bfloat16 if _bfloat16_is_fast(device, ranks) else torch.float32


def placement_on(device: torch.device, config: EngineConfig, source: ModelSource, ranks: int) -> dict[str, object]:
    """Options of `from_pretrained`. Weights go straight to a GPU, file by file: the host need not hold them all. GGUF files are
    unpacked on the host."""
    if ranks > 1:
        return {"distributed_config": DistributedConfig(tp_size=ranks)}
    if config.device_map:
        return {"device_map": config.device_map}
    if device.type == "cpu" or source.gguf_file is not None:
        return {}
    return {"device_map": {"": device}}


def _bfloat16_is_fast(device: torch.device, ranks: int) -> bool:
    """Without matrix units for it a CPU multiplies bfloat16 several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # processes that share a model must agree, and measurements need not
    return bfloat16_products() if ranks == 1 else cpu_has_avx512_bf16()


def load(config: EngineConfig, ranks: int = 1, turn: AbstractContextManager[object] | None = None) -> Loaded:
    """Load what `config` names, in slices when `ranks` > 1 processes of one group load together. turn: see `read_model`.

    Raises OSError or ValueError: not there, broken, or not fitting together.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config, device, ranks)
    source = locate(config.model)
    placement = placement_on(device, config, source, ranks)
    unpacks_demo = config.model == DEMO and source.gguf_file is not None
    common = {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}
    if config.offline:
        common["local_files_only"] = True
    model, sources = read_model(source, {"dtype": torch.float32 if unpacks_demo else dtype, **placement}, common, turn)
    tokenizer = read_tokenizer(sources, common)
    if unpacks_demo:
        _keep_copy(model, tokenizer)
        torch.nn.Module.to(model, dtype)
    if not placement:
        torch.nn.Module.to(model, device)
    own_memory(model)
    _heads_divide(model, ranks)
    model.eval().requires_grad_(False)
    return Loaded(model, tokenizer, source)


def _heads_divide(model: PreTrainedModel, ranks: int) -> None:
    layers = layer_configs(model.config.get_text_config(decoder=True))
    heads = math.gcd(
        *(getattr(c, "num_key_value_heads", None) or getattr(c, "num_attention_heads", ranks) for c in layers)
    )
    if heads % ranks:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(
            f"tensor_parallel: {heads} key-value heads cannot be cut into {ranks} equal parts; start one of {fitting} processes"
        )


def _keep_copy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Keep the unpacked demo model for the next start. A copy that cannot be kept costs time, nothing else."""
    final = demo_copy()
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{final.name}.", dir=final.parent))
    except OSError as error:
        log.warning("the unpacked demo model is not kept: %s; set GRPO_CACHE_DIR to a writable directory", error)
        return
    try:
        model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        (work / COMPLETE_MARKER).touch()
        os.replace(work, final)  # fails where another process was faster: then theirs is as good
    except OSError as error:
        log.info("the unpacked demo model is not kept: %s", error)
    finally:
        shutil.rmtree(work, ignore_errors=True)
