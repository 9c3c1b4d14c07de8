"""Everything that an operator can choose, one frozen value; `sources` reads it.

Nothing here imports torch: some of these values must be in the process environment before torch is loaded (see
`engine.environment`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from grpo_server import naming
from grpo_server.config.access import AccessSettings
from grpo_server.config.limits import LimitSettings
from grpo_server.config.ray import RaySettings
from grpo_server.config.serving import ServingSettings
from grpo_server.config.swapping import SwapSettings
from grpo_server.engine.config import BatchLimits, EngineConfig
from grpo_server.naming import Named
from grpo_server.scheduler import SchedulerLimits

ENV_PREFIX = "GRPO_SERVER_"


# Their fields follow each other from the last to the first.
class ServerConfig(RaySettings, SwapSettings, AccessSettings, LimitSettings, ServingSettings):
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
