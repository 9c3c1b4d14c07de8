"""Reads a policy's files whole or not at all, and says in one sentence what is wrong with them.

What a user named is a ConfigError of `model.name`; what a run wrote itself is a CheckpointError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from grpo_client.models.demo import ModelSource, locate
from grpo_client.models.files import UnusableModel, fault
from grpo_client.models.reading import Reading
from grpo_numerics.checkpoint.gguf import require_all_read
from grpo_numerics.checkpoint.loaded import REPORT, WeightsError, require_whole
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grpo_training.config import CheckpointError, ConfigError, ModelConfig


@contextmanager
def named(name: str) -> Iterator[None]:
    """What cannot be used in the block is the fault of model.name."""
    try:
        yield
    except (UnusableModel, WeightsError) as error:
        raise ConfigError(f"model.name: {name} cannot be used: {error}") from error


def read_model(source: ModelSource, config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `source`, on CPU. Raises UnusableModel or WeightsError unless all of it is there, and finite."""
    with Reading(source.path, source.gguf_file):
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.path,
            gguf_file=source.gguf_file,
            revision=config.revision,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            **REPORT,
        )
    model, report = read
    if source.gguf_file is not None:
        _forget_gguf(model)
        require_all_read(GGUFReader(Path(source.path, source.gguf_file)), model.config.get_text_config(decoder=True))
    require_whole(model, report)
    return model


def read_tokenizer(source: ModelSource, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in `source`. Raises UnusableModel."""
    with Reading(source.path, source.gguf_file):
        return AutoTokenizer.from_pretrained(
            source.path,
            gguf_file=source.gguf_file,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )


def located(name: str) -> ModelSource:
    """`locate`, whose complaint about a path is one of model.name."""
    try:
        return locate(name)
    except UnusableModel as error:
        raise ConfigError(f"model.name: {error}") from error


@contextmanager
def unreadable(directory: Path) -> Iterator[None]:
    """What cannot be read in the block is the fault of a checkpoint that a run wrote."""
    try:
        with Reading(None):
            yield
    except UnusableModel as error:
        if isinstance(gone := error.__cause__, FileNotFoundError):
            raise CheckpointError(f"{directory} is not a complete checkpoint: {_name(gone)} is missing") from error
        raise CheckpointError(f"{directory} cannot be read: {fault(str(directory)) or error}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that a run wrote. Raises CheckpointError where it is gone or cut off."""
    with unreadable(file.parent):
        return load_file(file)


def _name(gone: FileNotFoundError) -> str:
    return Path(gone.filename or str(gone).rpartition(" ")[2]).name


def _forget_gguf(model: PreTrainedModel) -> None:
    """The weights are ordinary floats by now; transformers would refuse to save a model that still says GGUF."""
    plain = {"hf_quantizer": None, "is_quantized": False, "quantization_method": None}
    for name, value in plain.items():
        object.__setattr__(model, name, value)
    vars(model.config).pop("quantization_config", None)
