"""How much the server takes, and how long and how much a connection may hold."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings

from grpo_server.config.sizes import MIB, AutoSize, Size


class LimitSettings(BaseSettings):
    """Part of `ServerConfig`."""

    max_batch_tokens: AutoSize = Field(
        None,
        ge=1,
        description="Tokens in one forward pass; auto: 6144 on a CPU, 32768 on a GPU, or fewer where free memory is short.",
    )
    max_batch_bytes: AutoSize = Field(
        None,
        ge=1,
        description="Working memory of one forward pass, in bytes; auto: most of what is free once the model is loaded.",
    )
    max_queue_tokens: Size = Field(
        524_288, ge=1, description="Tokens accepted but not yet computed; beyond that, 429 with Retry-After."
    )
    max_queue_bytes: Size = Field(
        1024 * MIB, ge=1, description="Memory for requests and answers in progress, in bytes; beyond that, 429."
    )
    max_request_bytes: Size = Field(64 * MIB, ge=1, description="Longest request body, in bytes; beyond that, 413.")
    max_completions: Size = Field(65_536, ge=1, description="Most completions in one request; beyond that, 413.")
    max_top_k: int = Field(
        1024, ge=0, description="Largest top_k, and most token_ids per position, that a request may ask for."
    )
    allow_hidden: bool = Field(
        False,
        description="Give out hidden states (return: hidden), from which the model can be copied; refused otherwise.",
    )
    cache_bytes: Size = Field(
        256 * MIB, ge=0, description="Memory for results that may be asked for again, in bytes; 0 turns the cache off."
    )

    max_connections: int = Field(
        4096,
        ge=1,
        description="Open connections; beyond that, the longest idle one is closed, or the new one gets a 503.",
    )
    max_header_bytes: Size = Field(
        64 * 2**10, ge=1024, description="Request line and headers of one request, in bytes; beyond that, 414 or 431."
    )
    max_headers: int = Field(128, ge=1, description="Headers of one request; beyond that, 431.")
    header_timeout: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds from the first byte of a request to its last header; after that, 408.",
    )
    stall_timeout: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a body, or the reading of an answer, may stall (below 240 bytes a second); after that, 408.",
    )

    simple_grpo: bool = Field(
        False,
        description="Also act as simple_GRPO's reference server: POST /upload, GET /get. Scored uploads are held in memory.",
    )
