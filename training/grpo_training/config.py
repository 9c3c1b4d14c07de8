"""What a run is told: one frozen value, read from YAML, corrected on the command line, checked once.

    config = load_config("examples/arithmetic.yaml", overrides=["optimizer.lr=2e-5", "rollout.temperature=0.7"])

An unknown field is refused with the name it was probably meant to be. Nothing here opens a model or a connection.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from grpo_client.protocol import Normalizer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

LossKind = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo"]
KlKind = Literal["k1", "k2", "k3", "k3+", "abs"]
Granularity = Literal["tensor", "row", "global"]
Correction = Literal["auto", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


class ConfigError(ValueError):
    """The configuration cannot be used; the message names each field and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to do."""


class RolloutError(RuntimeError):
    """The rollout server failed, or what it answers cannot be trained on; the message says why and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(_Section):
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


class ReferenceConfig(_Section):
    """The server that holds the frozen reference."""

    urls: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """One or several base URLs; the least busy is asked first."""
    api_key: str | None = None
    """Sent as a bearer token, when the server wants one."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds without a byte before a try counts as lost."""
    max_wait: float = Field(default=900.0, ge=0)
    """Seconds over which a step waits and tries again while the server is away. Afterwards the run ends with an error,
    and `--resume` goes on from its last checkpoint."""
    pin: bool = True
    """Accept only the reference that answered first (its fingerprint): a swapped model ends the run, loudly."""

    @field_validator("urls", mode="before")
    @classmethod
    def _one_url_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class TaskConfig(_Section):
    """What is asked of the policy, and how an answer is judged."""

    name: str | None = None
    """A reasoning-gym dataset, such as `basic_arithmetic`. Give this or `file`."""
    kwargs: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of that dataset, as reasoning-gym names them."""
    file: Path | None = None
    """JSON lines with `question` and `answer` (further keys are handed to the reward function)."""
    reward: str = "exact"
    """`exact`: 1 when the answer is right by the dataset's own scorer, else 0. `graded`: the scorer's own figure, which
    may give part of a point. `module:function`: your function (answer: str | None, entry: dict) -> float."""
    answer_pattern: str | None = None
    """Regular expression that finds the answer in a completion: its first group, or the whole match. None takes the
    whole completion, stripped."""
    answer_match: Literal["first", "last"] = "last"
    """Which match counts when there are several."""
    chat: bool = True
    """Put the question through the tokenizer's chat template, as a user's turn."""
    system: str | None = None
    """The system turn. None: whatever the template puts there itself."""
    template: str = "{question}"
    """The text of the question; a field of the entry's metadata can be named too."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.file is None):
            raise ValueError("give either name (a reasoning-gym dataset) or file (JSON lines)")
        return self


class RolloutConfig(_Section):
    """What is sampled in a step."""

    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts, and so groups, in a step."""
    group_size: int = Field(default=8, ge=1)
    """Completions sampled of each prompt."""
    max_new_tokens: int = Field(default=16, ge=1)
    """A completion is cut here, whether it has ended or not."""
    stop: tuple[str, ...] = ()
    """A completion also ends with the first token that has one of these strings in it, as it ends with EOS."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it before normalising: in sampling, in the policy's and in the reference's log-probs."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """A longer prompt is refused: cutting it would change the question."""
    backend: Literal["policy", "openai"] = "policy"
    """Who samples: the trained weights in this process, or a server with the OpenAI completions API that takes and returns
    token ids (vLLM, SGLang). What follows is for the latter."""
    base_url: str | None = None
    """`http://host:8000`; requests go to `/v1/completions` there."""
    model: str | None = None
    """The name under which that server knows the model."""
    api_key_env: str | None = None
    """Environment variable that holds the server's API key; None: no key is sent."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds without a byte before a try counts as lost: an answer comes when its last completion has ended."""
    max_wait: float = Field(default=900.0, ge=0)
    """Seconds over which a request is tried again while the server is away or full; `Retry-After` is kept to."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once; each is one prompt with its group."""
    sync_every: int = Field(default=0, ge=0)
    """Steps between bringing the policy's weights to the server with `sync_command`. 0 never does: the server stays as it
    is, or somebody else updates it."""
    sync_command: tuple[str, ...] = ()
    """A program and its arguments that make the server load the model directory `{path}`, and end when it has."""

    @field_validator("base_url")
    @classmethod
    def _base_without_route(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"must look like http://localhost:8000, got {value!r}")
        if parts.username or parts.password:
            raise ValueError("must not hold a password, which logs would show; name its variable in api_key_env")
        return value.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _whole_backend(self) -> Self:
        if self.backend == "openai" and not (self.base_url and self.model):
            raise ValueError("backend=openai needs base_url (such as http://localhost:8000) and model")
        if self.backend == "policy" and (self.base_url or self.sync_every or self.sync_command):
            raise ValueError(
                "base_url, sync_every and sync_command are for a server: set backend=openai, or leave them out"
            )
        if bool(self.sync_every) != bool(self.sync_command):
            raise ValueError("sync_every and sync_command belong together: give both or neither")
        if self.sync_command and not any("{path}" in word for word in self.sync_command):
            raise ValueError("sync_command must have {path} in it: the directory that the server is to load")
        return self


class LossConfig(_Section):
    """The objective; the names are those of TRL's GRPOTrainer."""

    kind: LossKind = "grpo"
    """How the policy term is formed and averaged: see grpo_training.losses."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL to the reference. 0 asks nothing of the server."""
    kl: KlKind = "k3"
    """Estimator of that KL."""
    kl_in: Literal["loss", "reward"] = "loss"
    """`loss`: beta times the estimate is added to each token's term. `reward`: beta times its sum over a completion is
    taken off that completion's reward, before advantages are formed."""
    bias_corrected_kl: bool = False
    """Multiply the estimate by the importance ratio."""
    epsilon_low: float = Field(default=0.2, ge=0)
    """The ratio is clipped below 1 - epsilon_low."""
    epsilon_high: float = Field(default=0.2, ge=0)
    """The ratio is clipped above 1 + epsilon_high (for cispo: above epsilon_high itself)."""
    delta: float | None = Field(default=None, gt=1)
    """Upper bound of the unclipped ratio (two-sided clipping); None: none."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or of the sequence (GSPO: exp of the mean log-ratio)."""
    scale_advantages: Literal["group", "batch", "none"] = "group"
    """Divide the advantage by the standard deviation of its group, of the batch, or not at all (Dr. GRPO)."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus: the mean entropy of a token, in nats, times this is taken off the loss."""
    top_entropy_quantile: float = Field(default=1.0, gt=0, le=1)
    """Share of the tokens that the policy term and the bonus act on: those whose distribution has the largest entropy.
    The KL acts on all. 1 is no mask."""
    rollout_correction: Correction = "auto"
    """Weight for what another engine sampled, (policy / sampler) of the token or of the sequence, where above the cap cut
    down to it (truncate) or left out (mask). `auto`: sequence_mask with another engine, none with the policy itself."""
    rollout_correction_cap: float = Field(default=3.0, gt=0)
    """The largest such weight."""
    sapo_temperature_pos: float = Field(default=1.0, gt=0)
    """sapo: softness of the gate where the advantage is positive."""
    sapo_temperature_neg: float = Field(default=1.05, gt=0)
    """sapo: softness of the gate elsewhere."""
    normalizer: Normalizer = "softmax"
    """What turns logits into probabilities, in sampling, policy and reference alike."""

    @model_validator(mode="after")
    def _no_ratio_in_a_reward(self) -> Self:
        if self.kl_in == "reward" and self.bias_corrected_kl:
            raise ValueError(
                "bias_corrected_kl multiplies the loss's KL by the importance ratio, and kl_in=reward takes the KL out of "
                "the loss: set bias_corrected_kl=false, or kl_in=loss"
            )
        return self


class OrthoGradConfig(_Section):
    """Removal of the part of each gradient that lies along its weights."""

    enabled: bool = False
    """Project gradients before every step of the optimizer."""
    granularity: Granularity = "tensor"
    """What is orthogonal to what: each tensor, each of its rows, or all weights as one vector."""
    skip_names: tuple[str, ...] = ()
    """Parameters whose name contains one of these are left alone."""
    skip_types: tuple[str, ...] = ()
    """Parameters of modules of these classes (`LayerNorm`, `Embedding`) are left alone."""


class OptimizerConfig(_Section):
    """AdamW and what surrounds it."""

    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; None leaves them."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; linear and cosine end at 0 with the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0."""
    orthograd: OrthoGradConfig = OrthoGradConfig()
    """See OrthoGradConfig."""


class CollapseConfig(_Section):
    """Watching for softmax collapse: see grpo_training.collapse."""

    every: int = Field(default=0, ge=0)
    """Steps between measurements, each of which costs a forward and two passes over the weights; 0 measures nothing."""
    warn_at: float = Field(default=0.05, gt=0, le=1)
    """Share of loss terms that are exactly 0 from which on a warning says so, once."""


class EvalConfig(_Section):
    """Answers to held-out questions, by the weights as they are then."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations; the first is before step 0, the last after the last step. 0 evaluates never."""
    task: TaskConfig | None = None
    """What is asked. None: the training task's dataset, drawn with eval.seed."""
    tasks: Mapping[str, TaskConfig] = Field(default_factory=dict)
    """Several of them by name, in place of `task`."""
    prompts: int = Field(default=64, ge=1)
    """Questions of each task, the same ones at every evaluation."""
    completions: int = Field(default=1, ge=1)
    """Answers to each question; more than one needs a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time; else it divides the logits, and the same random numbers come each time."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """An answer is cut here; None: at rollout.max_new_tokens."""
    seed: int = Field(default=1_000_003, ge=0)
    """Which questions and, with a temperature, which random numbers. Training's seed has no part in it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task is not None and self.tasks:
            raise ValueError("give either task (one) or tasks (several, by name)")
        if bad := [name for name in self.tasks if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"tasks: {bad[0]!r} becomes part of a metric's name: use letters, digits, _, - and .")
        if self.completions > 1 and self.temperature == 0:
            raise ValueError("completions above 1 are all the same at temperature 0: set temperature, or completions=1")
        return self


class TrainerConfig(_Section):
    """How long, in what portions, and what is written."""

    steps: int = Field(default=100, ge=1)
    """Steps in all, those before a resume included."""
    seed: int = Field(default=0, ge=0)
    """Everything random in step n follows from (seed, n) alone, so a resumed run repeats an undisturbed one."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Portions that a step's groups are cut into, one forward and backward each. Must divide prompts_per_step."""
    iterations: int = Field(default=1, ge=1)
    """Optimizer steps on each batch of rollouts; from the second on the importance ratio is at work."""
    output: Path = Path("runs/train")
    """Directory for metrics, samples, checkpoints and the report."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0 keeps only the final model."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """How many of the latest checkpoints stay on disk."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSON lines."""
    save_model: bool = True
    """Write the trained model in Hugging Face's format at the end."""


class LoraConfig(_Section):
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


class DistributedConfig(_Section):
    """How several processes share the work. How many there are is the launcher's business: torchrun, accelerate launch."""

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """`ddp`: every process holds the model. `fsdp2`: weights, gradients and optimizer are cut over the processes. `auto`: what
    `accelerate launch` was told, else ddp."""


class TrainConfig(_Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    reference: ReferenceConfig = ReferenceConfig()
    task: TaskConfig
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    collapse: CollapseConfig = CollapseConfig()
    eval: EvalConfig = EvalConfig()
    trainer: TrainerConfig = TrainerConfig()
    distributed: DistributedConfig = DistributedConfig()
    lora: LoraConfig | None = None
    """Train an adapter (`lora: {}`) instead of the whole model."""

    @model_validator(mode="after")
    def _portions_are_whole(self) -> Self:
        prompts, portions = self.rollout.prompts_per_step, self.trainer.gradient_accumulation
        if prompts % portions:
            raise ValueError(
                f"trainer.gradient_accumulation={portions} must divide rollout.prompts_per_step={prompts}: "
                f"a group is never cut"
            )
        if self.rollout.backend == "openai" and self.loss.normalizer != "softmax":
            raise ValueError(
                f"rollout.backend=openai samples from a softmax, which loss.normalizer={self.loss.normalizer} is not: "
                f"set rollout.backend=policy"
            )
        if self.rollout.group_size < 2 and self.loss.scale_advantages != "batch":
            raise ValueError(
                "rollout.group_size=1 leaves every advantage at 0: sample at least 2, or set loss.scale_advantages=batch"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read YAML, apply `section.field=value` overrides (values in YAML's own notation), check everything.

    Raises ConfigError, naming every field that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file at {path}") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections (model:, task:, ...), not a {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value` in nested dictionaries."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: write section.field=value, such as optimizer.lr=1e-5")
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {key} is a single value and has no field {keys[-1]}")
        values = inner
    values[keys[-1]] = yaml.safe_load(text)


def _explain(error: ValidationError) -> Iterator[str]:
    """One line for each fault: the field's path, what is wrong, and for an unknown field the nearest known one."""
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "configuration"
        if fault["type"] == "extra_forbidden":
            known = _fields_at(fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            yield f"{where}: there is no such field; {hint}"
        else:
            yield f"{where}: {fault['msg']}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    section: type[BaseModel] = TrainConfig
    for key in location:
        if str(key) not in section.model_fields:
            continue  # a name that the user chose, as in eval.tasks
        annotation = section.model_fields[str(key)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
