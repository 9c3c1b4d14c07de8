"""The settings of replicas on a Ray cluster."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings

from grpo_server.config.sizes import Size


class RaySettings(BaseSettings):
    """Part of `ServerConfig`."""

    ray: bool = Field(
        False,
        description="Serve replicas on a Ray cluster (extra ray): that of RAY_ADDRESS, the one on this machine, or a new one.",
    )
    replicas: int = Field(
        1, ge=1, description="With --ray: replicas, or the fewest of them where --max-replicas is given."
    )
    max_replicas: int | None = Field(
        None, ge=1, description="With --ray: most replicas; as many run as the queued tokens need."
    )
    tokens_per_replica: Size = Field(
        65_536, ge=1, description="With --max-replicas: queued tokens for which there is one replica."
    )
    replica_cpus: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="With --ray: cores of a replica, and its threads unless --threads says.",
    )
    replica_gpus: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="With --ray: GPUs of a replica, or a share of one."
    )
