"""A policy that starts from an adapter: a directory with adapter_config.json, as peft and earlier runs write them.

The base model is the one that the file names. With a `lora` section the adapter is trained on; without one it is merged into
the base, and all of that is trained. What can be neither is refused: an adapter is never left out.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_client.models.files import fault
from grpo_numerics.checkpoint.names import told
from torch import Tensor
from transformers import PreTrainedModel

from grpo_training.config import ConfigError, LoraConfig, TrainConfig
from grpo_training.models.reading import read_tensors

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """directory: of the adapter. base: of its model, as `locate` takes it. settings: adapter_config.json."""

    directory: Path
    base: str
    settings: dict[str, Any]


def adapter_at(name: str) -> Adapter | None:
    """The adapter in the directory `name`; None where there is none. Raises ConfigError for one that cannot be used."""
    directory = Path(name)
    file = directory / ADAPTER_CONFIG
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"model.name: {file} is not an adapter's configuration: {error}") from error
    if kind != "LORA":
        raise ConfigError(f"model.name: {directory} is an adapter of kind {kind}; a policy can start from LORA only")
    if not (directory / ADAPTER_FILE).is_file():
        raise ConfigError(f"model.name: {directory} has an {ADAPTER_CONFIG} and no {ADAPTER_FILE}")
    if not base or not isinstance(base, str):
        raise ConfigError(f"model.name: {file} names no base model: fill in base_model_name_or_path")
    if broken := fault(str(directory)):
        raise ConfigError(f"model.name: {directory} cannot be used: {broken}")
    return Adapter(directory, _base(base, file), settings)


def resolved(config: TrainConfig) -> TrainConfig:
    """The configuration, its `lora` section filled in from the adapter that is trained on.

    Raises ConfigError for a section that asks for another adapter than that.
    """
    if config.lora is None or (adapter := adapter_at(config.model.name)) is None:
        return config
    modules = adapter.settings.get("target_modules")
    own: dict[str, Any] = {"r": adapter.settings.get("r"), "alpha": adapter.settings.get("lora_alpha")}
    if isinstance(modules, list):
        own["target_modules"] = tuple(sorted(modules))
    for name in config.lora.model_fields_set & own.keys():
        asked = getattr(config.lora, name)
        same = asked == "all-linear" or set(asked) == set(own[name]) if name == "target_modules" else asked == own[name]
        if not same:
            raise ConfigError(
                f"lora.{name}={asked}, but the adapter that is trained on ({adapter.directory}) has {own[name]}: leave the "
                f"field out"
            )
    return config.model_copy(update={"lora": config.lora.model_copy(update=own)})


def merge_into(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add the adapter into the weights of its base. Raises ConfigError if it does not fit."""
    if find_spec("peft") is None:
        raise peft_is_missing(f"model.name: {adapter.directory} is an adapter, which")
    import peft

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        wrapped = wrapped_by_peft(model, adapter.directory)
    except (ValueError, RuntimeError) as error:  # layers that the base does not have, or has in another shape
        raise does_not_fit(adapter, str(error).splitlines()[-1].strip()) from error
    check_file(adapter, set(peft.get_peft_model_state_dict(wrapped)))
    merged = wrapped.merge_and_unload()
    assert merged is model
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)


def wrapped_by_peft(model: PreTrainedModel, directory: Path) -> Any:
    """The model with an adapter around it, as peft loads it, without what peft warns of in vain."""
    import peft

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings(
            "ignore", message="Found missing adapter keys", category=UserWarning
        )  # ours is an error
        return peft.PeftModel.from_pretrained(model, str(directory))


def continued(adapter: Adapter, config: LoraConfig) -> Any:
    """peft's configuration of the adapter, to be injected into the base and trained on."""
    import peft

    settings: Any = peft.LoraConfig.from_pretrained(str(adapter.directory))
    start = settings.init_lora_weights
    if isinstance(start, str) and start not in ("gaussian", "orthogonal", "eva", "lora_ga"):
        raise ConfigError(
            f"model.name: the adapter was begun with init_lora_weights={start}, which changes its base: leave the lora "
            f"section out, and it is merged"
        )
    settings.inference_mode = False
    settings.init_lora_weights = True
    settings.lora_dropout = config.dropout
    return settings


def check_file(adapter: Adapter, wanted: set[str]) -> None:
    """Raises ConfigError unless the file holds exactly the tensors of these names, all of them finite."""
    tensors = read_file(adapter.directory)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ConfigError(f"model.name: the adapter {adapter.directory} holds NaN or infinity, in {told(broken)}")
    found = set(tensors)
    if wanted != found:
        missing, unknown = sorted(wanted - found), sorted(found - wanted)
        parts = [f"missing {missing[0]} ({len(missing)} in all)"] if missing else []
        parts += [f"unknown {unknown[0]} ({len(unknown)} in all)"] if unknown else []
        raise does_not_fit(adapter, ", ".join(parts))


def read_file(directory: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in the file."""
    return read_tensors(directory / ADAPTER_FILE)


def peft_is_missing(what: str) -> ConfigError:
    """The error that names the extra."""
    return ConfigError(f"{what} needs peft, which is not installed; type: pip install 'grpo-refserver[lora]'")


def does_not_fit(adapter: Adapter, why: str) -> ConfigError:
    """The error for an adapter of another model."""
    return ConfigError(f"model.name: the adapter {adapter.directory} does not fit its base {adapter.base}: {why}")


def _base(name: str, file: Path) -> str:
    """Where the base model is, as `locate` takes it."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigError(
                f"model.name: {file} names the base model {name}, and there is no such directory: put it there, or correct "
                f"base_model_name_or_path"
            )
        return name  # an id of the hub
    if (path / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"model.name: the base model of {file} is an adapter itself ({name}): merge that one first")
    ggufs = list(path.glob("*.gguf"))
    return str(ggufs[0]) if len(ggufs) == 1 and not (path / "config.json").is_file() else str(path)
