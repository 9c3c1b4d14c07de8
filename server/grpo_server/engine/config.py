"""What the engine is told once, at load. Free of torch, so that the command line can hold one before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
Mode = Literal["exact", "fast"]
Tier = Literal["packed", "cache", "plain"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """model: "demo", a directory, a .gguf file or a hub id. dtype "auto": float32 in exact mode; in fast mode bfloat16
    where the device multiplies it faster than float32. device "auto": cuda if there is one. threads: None leaves torch's
    choice. max_length: tokens of prompt + completion, None the model's own limit. tier: the best way of sharing prompts
    to try; the probe may still choose a lower one. tensor_parallel: this process is one of those that torchrun
    started, each with a slice of the model. served_name: the name in `/v1/reference`, None the model's. batch_rows: every
    forward has this many rows, or a multiple, whatever is in it; None: as many as there are tokens."""

    model: str
    revision: str | None = None
    dtype: DType = "auto"
    device: str = "auto"
    device_map: str | None = None
    mode: Mode = "exact"
    threads: int | None = None
    max_length: int | None = None
    trust_remote_code: bool = False
    served_name: str | None = None
    tier: Tier = "packed"
    tensor_parallel: bool = False
    batch_rows: int | None = None
