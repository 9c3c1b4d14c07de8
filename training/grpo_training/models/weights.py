"""The trained weights, from the processes that hold them to disk and back, in Hugging Face's format or peft's.

weights = gathered(model)                 on every process: a collective where the weights are cut (FSDP2)
write(model, directory, weights)          on one
read_into(model, directory)               on every process
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from grpo_numerics.checkpoint.loaded import differing, nonfinite_tensors
from grpo_numerics.checkpoint.names import told
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from grpo_training.config import CheckpointError, TrainConfig
from grpo_training.disk import whole_directory
from grpo_training.models.adapters import ADAPTER_FILE
from grpo_training.models.loading import LoadedModel
from grpo_training.models.lora import has_adapter, merged_state, read_adapter, save_adapter, save_merged
from grpo_training.models.reading import read_tensors, unreadable
from grpo_training.sharding import cut_like, whole

_ENDS = 4096  # elements


def gathered(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """What is to be saved, in one piece, on every process; None where the model has it in one piece anyway.

    With an adapter that is the adapter alone. Tied weights stay one tensor.
    """
    state = model.state_dict(keep_vars=True)
    if has_adapter(model):
        state = {name: tensor for name, tensor in state.items() if tensor.requires_grad}
    elif not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return None
    pieces = {id(tensor): whole(tensor).detach().cpu() for tensor in state.values()}
    return {name: pieces[id(tensor)] for name, tensor in state.items()}


@torch.no_grad()
def frozen_fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """`model.name`: SHA-256 over both ends of each weight that is not trained, before it is cut; {} where all are.

    A checkpoint does not hold those weights, and an adapter means nothing beside others.
    """
    digest, frozen = hashlib.sha256(), False
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            flat, frozen = weight.detach().flatten(), True
            ends = torch.cat([flat[:_ENDS], flat[-_ENDS:]]).cpu().contiguous()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(ends.view(torch.uint8).numpy().tobytes())
    return {"model.name": digest.hexdigest()} if frozen else {}


def write(model: PreTrainedModel, directory: Path, weights: dict[str, Tensor] | None) -> None:
    """Save the model, or its adapter. weights: from `gathered`."""
    if has_adapter(model):
        assert weights is not None
        save_adapter(model, directory, weights)
    else:
        model.save_pretrained(directory, state_dict=weights)


def write_final(config: TrainConfig, loaded: LoadedModel, weights: dict[str, Tensor] | None) -> None:
    """The end of a run: `model/`, and with lora.save_merged also `merged/`. weights: from `gathered`."""
    output = config.trainer.output
    with whole_directory(output / "model") as draft:
        write(loaded.model, draft, weights)
        loaded.tokenizer.save_pretrained(draft)
    if config.lora is not None and config.lora.save_merged:
        with whole_directory(output / "merged") as draft:
            save_merged(config.model, output / "model", draft)


def save_whole_model(loaded: LoadedModel, directory: Path) -> None:
    """Write model and tokenizer for a server to load: with an adapter, the base with the adapter added into its weights."""
    model = loaded.model
    model.save_pretrained(directory, state_dict=merged_state(model) if has_adapter(model) else None)
    loaded.tokenizer.save_pretrained(directory)


def read_into(model: PreTrainedModel, directory: Path) -> None:
    """Put saved weights into a model made as for a new run, cut as the model is. Raises CheckpointError if they do not fit."""
    adapter = has_adapter(model)
    if adapter != (directory / ADAPTER_FILE).is_file():
        other = "the whole model, and this run trains an adapter" if adapter else "an adapter, and this run has none"
        raise CheckpointError(f"{directory} holds {other}: take the lora section of its config.json")
    weights = read_adapter(model, directory) if adapter else _read_model(directory)
    here = model.state_dict(keep_vars=True)
    common = weights.keys() & here.keys()
    if shapes := differing({name: weights[name] for name in common}, {name: here[name] for name in common}):
        raise CheckpointError(f"{directory} is of another model: {told(shapes)}")
    # A DTensor takes no ordinary tensor.
    weights = {name: cut_like(tensor, here[name]) if name in here else tensor for name, tensor in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tied weights are saved once, and an adapter without its base.
    absent = {name for name in missing if not adapter or here[name].requires_grad} - set(model.all_tied_weights_keys)
    if unexpected or absent:
        parts = [f"it lacks {told(absent)}"] if absent else []
        parts += [f"it has {told(unexpected)} too many"] if unexpected else []
        raise CheckpointError(f"{directory} is of another model: {', '.join(parts)}")
    if broken := nonfinite_tensors(model):
        raise CheckpointError(
            f"{directory} holds NaN or infinity, in {told(broken)}: remove it, and an earlier one is used"
        )


def _read_model(directory: Path) -> dict[str, Tensor]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return read_tensors(directory / "model.safetensors")
    with unreadable(directory):
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return {name: tensor for file in sorted(files) for name, tensor in read_tensors(directory / file).items()}
