"""What the engine is told once, at load. Free of torch, so that the command line can hold one before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DType = Literal["auto", "float32", "bfloat16", "float16"]
Mode = Literal["exact", "invariant", "fast"]
ModeChoice = Literal["auto", "exact", "invariant", "fast"]
Tier = Literal["packed", "cache", "plain"]
TIERS: tuple[Tier, ...] = get_args(Tier)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """model: "demo", a directory, a .gguf file or a hub id. dtype "auto": float32 in exact mode; else bfloat16 where the
    device multiplies it faster than float32. device "auto": cuda if there is one. mode: see `mode_on`. threads: None leaves
    torch's choice. max_length: tokens of prompt + completion, None the model's own limit. tier: the best way of sharing prompts
    to try; the probe may still choose a lower one. tensor_parallel: this process is one of those that torchrun
    started, each with a slice of the model. served_name: the name in `/v1/reference`, None the model's. max_batch_tokens,
    max_batch_bytes: of one forward pass; None: what suits the device and its free memory. fused_layers: on a GPU, norms, rotary
    embeddings and SwiGLU by kernels, or each layer compiled, where the scores stay right. name: what clients see when there
    is no served_name; None: the model's. version: of the reference, if it has this fingerprint, else one more; fingerprint
    None: of any. offline: the hub is not asked for anything, for all is here. allow_hidden: hidden states may be asked for.
    peak_tflops: what one device does at most, for the figure of its utilisation; None: as `cards` has it."""

    model: str
    revision: str | None = None
    dtype: DType = "auto"
    device: str = "auto"
    device_map: str | None = None
    mode: ModeChoice = "auto"
    threads: int | None = None
    max_length: int | None = None
    trust_remote_code: bool = False
    served_name: str | None = None
    tier: Tier = "packed"
    tensor_parallel: bool = False
    max_batch_tokens: int | None = None
    max_batch_bytes: int | None = None
    fused_layers: bool = True
    name: str | None = None
    version: int = 1
    fingerprint: str | None = None
    offline: bool = False
    allow_hidden: bool = False
    peak_tflops: float | None = None


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What an engine takes in one forward pass: tokens, and bytes of working memory."""

    tokens: int
    nbytes: int


def mode_on(choice: ModeChoice, device_type: str) -> Mode:
    """The mode that a choice means on a device: exact on a CPU, where float32 costs little, and invariant on a GPU, where it
    costs ten times as much."""
    if choice != "auto":
        return choice
    return "exact" if device_type == "cpu" else "invariant"
