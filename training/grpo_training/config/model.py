"""What is trained, and beside which reference."""

from __future__ import annotations

from typing import Any, Literal

from grpo_client.addresses import read_key
from pydantic import Field, SecretStr, field_serializer, field_validator

from .section import Section, base_url


class ModelConfig(Section):
    """The policy that is trained."""

    name: str = "demo"
    """`demo`, a directory, a .gguf file or a hub id. The reference server should host the same one."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What weights are kept and trained in. float32 is the faster one on CPUs without AMX or AVX512-BF16."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads on CPU; None leaves torch's own choice."""
    trust_remote_code: bool = False
    """Run the modelling code that comes with a hub checkpoint."""
    precision: Literal["full", "bf16"] = "full"
    """`bf16`: products of matrices in bfloat16 (autocast), weights kept in `dtype`. Log-probs are float32 all the same."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the layer again in backward: less memory, a third more work."""


class LoraConfig(Section):
    """An adapter that is trained in place of the model. Needs the extra `lora`."""

    r: int = Field(default=16, ge=1)
    """Rank of the two matrices."""
    alpha: int = Field(default=32, ge=1)
    """What they add is multiplied by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's input, in the forward that has a gradient; sampling is without it."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter; `all-linear`: all but the output layer."""
    save_merged: bool = False
    """At the end, also write the model with the adapter added into its weights, to `merged/`."""


class ReferenceConfig(Section):
    """The server that holds the frozen reference."""

    urls: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """One or several base URLs; a prompt goes to the same one each time, unless that is busier than the others."""
    model: str | None = Field(default=None, min_length=1)
    """Which reference, where the server hosts several (`--model NAME=...`, `--adapter NAME=...`); None: its default."""
    api_key: SecretStr | None = None
    """Sent as a bearer token, when the server wants one; None: the environment's GRPO_API_KEY. Written nowhere."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds without a byte before a try counts as lost."""
    max_wait: float = Field(default=900.0, ge=0)
    """Seconds over which a step waits and tries again while the server is away. Afterwards the run ends with an error,
    and `--resume` goes on from its last checkpoint."""
    pin: bool = True
    """Accept only the reference that answered first (its fingerprint), or that this run itself has moved: a model that somebody
    else has swapped ends the run, loudly."""
    sync_every: int = Field(default=0, ge=0)
    """Steps between moving the reference towards the policy (TRL's `ref_model_sync_steps`). 0 never does: it is frozen. The
    policy is saved in the output directory; see `sync_by`."""
    sync_by: Literal["path", "http"] = "path"
    """How the server gets it. `path`: it reads the output directory under the same path. `http`: it is uploaded, to a server on
    another machine that was started with `--upload-dir`; a broken connection is gone on from."""
    mixup_alpha: float = Field(default=1.0, gt=0, le=1)
    """Share of the policy in the moved reference (TRL's `ref_model_mixup_alpha`): alpha * policy + (1 - alpha) * reference.
    With 1 the policy replaces it."""
    admin_key: SecretStr | None = None
    """What the server lets replace its reference; None: the environment's GRPO_ADMIN_KEY, else api_key. Written nowhere."""

    @field_validator("urls", mode="before")
    @classmethod
    def _one_url_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _checked_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("is empty: give at least one URL, such as http://localhost:8000")
        return tuple(base_url(url, key="give it as api_key, or in GRPO_API_KEY") for url in value)

    @field_validator("api_key", "admin_key")
    @classmethod
    def _checked_key(cls, value: SecretStr | None) -> SecretStr | None:
        key = read_key(value)
        return SecretStr(key) if key else None

    @field_serializer("api_key", "admin_key", when_used="json")
    def _no_key(self, value: SecretStr | None) -> None:
        """None, and not asterisks: a config.json can be trained from again, with the key in the environment."""
