"""LoRA by peft: the base model stays as it is, and two small matrices beside each chosen linear layer are trained.

The adapter is put into the model itself, not around it, so that everything that knows a transformers model (policy, sampler,
sharding) goes on working. On disk it is peft's own format: `PeftModel.from_pretrained(base, directory)` loads it. peft is
imported when an adapter is asked for, and not before.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_training.config import ConfigError, LoraConfig, ModelConfig
from grpo_training.models.adapters import (
    ADAPTER_FILE,
    adapter_at,
    check_file,
    continued,
    does_not_fit,
    peft_is_missing,
    read_file,
    wrapped_by_peft,
)
from grpo_training.models.loading import load_model

_ADAPTER = "default"
_PREFIX = "base_model.model."  # of names in peft's files


def add_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int, start: str = "") -> None:
    """Freeze `model` and add an adapter to it: the one in the directory `start`, else one that changes nothing yet (B is 0).

    seed: of A, the same on every process. Raises ConfigError when peft is missing, when no layer or the output layer is
    chosen, and when the adapter does not fit the model.
    """
    if find_spec("peft") is None:
        raise peft_is_missing("lora")
    import peft

    adapter = adapter_at(start) if start else None
    wanted = continued(adapter, config) if adapter else _new(model, config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(wanted, model, _ADAPTER)
        except ValueError as error:
            raise ConfigError(f"lora.target_modules: {error}") from error
    if model.get_input_embeddings() is not embedding and model.config.get_text_config().tie_word_embeddings:
        raise ConfigError("lora.target_modules: leave the embedding out; it is tied to the output layer")
    if model.get_output_embeddings() is not head:
        raise ConfigError(
            "lora.target_modules: leave the output layer out; log-probs are computed from its own weights"
        )
    for module in model.modules():
        for name, child in list(module.named_children()):
            if name == "lora_dropout" and isinstance(child, nn.ModuleDict) and config.dropout > 0:
                child[_ADAPTER] = _DropoutWithGradient(config.dropout)
    model.eval()  # new modules come in training mode
    if adapter is not None:
        check_file(adapter, set(adapter_names(model)))
        try:
            model.load_state_dict(read_adapter(model, adapter.directory), strict=False)
        except RuntimeError as error:  # another shape
            raise does_not_fit(adapter, str(error).splitlines()[-1].strip()) from error


def _new(model: PreTrainedModel, config: LoraConfig) -> Any:
    """peft's configuration of an adapter that begins as nothing."""
    import peft

    modules = config.target_modules
    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )


def has_adapter(model: nn.Module) -> bool:
    """Whether `add_adapter` was here."""
    return isinstance(getattr(model, "peft_config", None), dict)


def adapter_names(model: PreTrainedModel) -> dict[str, str]:
    """From names in peft's files to names of the model's parameters."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return {_PREFIX + name.replace(f".{_ADAPTER}.", "."): name for name in trained}


def save_adapter(model: PreTrainedModel, directory: Path, weights: dict[str, Tensor]) -> None:
    """Write adapter_model.safetensors and adapter_config.json. weights: whole, by the names of the model's parameters."""
    directory.mkdir(parents=True, exist_ok=True)
    named = {theirs: weights[ours].contiguous() for theirs, ours in adapter_names(model).items()}
    save_file(named, directory / ADAPTER_FILE, metadata={"format": "pt"})
    model.peft_config[_ADAPTER].save_pretrained(str(directory))


def read_adapter(model: PreTrainedModel, directory: Path) -> dict[str, Tensor]:
    """The adapter's weights by the names of the model's parameters; a name that the model does not have stays as it is."""
    names = adapter_names(model)
    return {names.get(name, name): tensor for name, tensor in read_file(directory).items()}


@torch.no_grad()
def merged_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the base model with the adapter added into its weights, by the base's own names; `model` stays as it is."""
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, inner, rest = name.partition(".base_layer.")
        if not inner and name.partition(".lora_")[0] not in adapted:
            state[name] = tensor
        elif not inner:
            continue  # A or B
        elif rest == "weight":
            state[f"{layer}.weight"] = tensor + adapted[layer].get_delta_weight(_ADAPTER).to(tensor)
        else:
            state[f"{layer}.{rest}"] = tensor
    return state


def save_merged(config: ModelConfig, adapter: Path, directory: Path) -> None:
    """Write the base model with an adapter added into its weights: an ordinary model, which any tool loads.

    Loads the base model once more, on CPU, so that it does not matter how the trained one was shared.
    """
    base = load_model(config, device=torch.device("cpu"), adapter="leave")
    merged = wrapped_by_peft(base.model, adapter).merge_and_unload()
    merged.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)


class _DropoutWithGradient(nn.Module):
    """Dropout where gradients are made and nowhere else: the model is in eval mode throughout, and samples without it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=torch.is_grad_enabled())
