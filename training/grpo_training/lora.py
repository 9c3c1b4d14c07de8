"""LoRA by peft: the base model stays as it is, and two small matrices beside each chosen linear layer are trained.

The adapter is put into the model itself, not around it, so that everything that knows a transformers model (policy, sampler,
sharding) goes on working. On disk it is peft's own format: `PeftModel.from_pretrained(base, directory)` loads it. peft is
imported when an adapter is asked for, and not before.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_training.config import ConfigError, LoraConfig, ModelConfig
from grpo_training.models import load_model

ADAPTER_FILE = "adapter_model.safetensors"
_ADAPTER = "default"
_PREFIX = "base_model.model."  # of names in peft's files


def add_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> None:
    """Freeze `model` and add an adapter to it that changes nothing yet (B is 0). seed: of A, the same on every process.

    Raises ConfigError when peft is missing, and when no layer or the output layer is chosen.
    """
    if find_spec("peft") is None:
        raise ConfigError("lora needs peft, which is not installed; type: pip install 'grpo-refserver[lora]'")
    import peft

    modules = config.target_modules
    wanted = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    head = model.get_output_embeddings()
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(wanted, model, _ADAPTER)
        except ValueError as error:
            raise ConfigError(f"lora.target_modules: {error}") from error
    if model.get_output_embeddings() is not head:
        raise ConfigError(
            "lora.target_modules: leave the output layer out; log-probs are computed from its own weights"
        )
    for module in model.modules():
        for name, child in list(module.named_children()):
            if name == "lora_dropout" and isinstance(child, nn.ModuleDict) and config.dropout > 0:
                child[_ADAPTER] = _DropoutWithGradient(config.dropout)
    model.eval()  # new modules come in training mode


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
    return {names.get(name, name): tensor for name, tensor in load_file(directory / ADAPTER_FILE).items()}


def save_merged(config: ModelConfig, adapter: Path, directory: Path) -> None:
    """Write the base model with an adapter added into its weights: an ordinary model, which any tool loads.

    Loads the base model once more, on CPU, so that it does not matter how the trained one was shared.
    """
    import peft

    base = load_model(config, device=torch.device("cpu"))
    merged = peft.PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    merged.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)


class _DropoutWithGradient(nn.Module):
    """Dropout where gradients are made and nowhere else: the model is in eval mode throughout, and samples without it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=torch.is_grad_enabled())
