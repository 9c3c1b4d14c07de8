"""Load a policy and its tokenizer: the demo model, a directory, a GGUF file or a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from grpo_client.models.demo import ModelSource
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_training.config import ConfigError, ModelConfig
from grpo_training.models.adapters import adapter_at, merge_into
from grpo_training.models.reading import located, named, read_model, read_tokenizer
from grpo_training.models.stopping import StopStrings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in eval mode, its tokenizer, and what ends a completion: ids, and strings of several tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    stops: StopStrings | None = None


def load_model(
    config: ModelConfig,
    *,
    stop: Sequence[str] = (),
    device: torch.device | None = None,
    adapter: Literal["merge", "leave"] = "merge",
) -> LoadedModel:
    """Load weights onto a device (config.device), ready to be trained. stop: strings that end a completion, beside EOS.

    Raises ConfigError where the files are not there, broken, or do not fit together; no weight is ever made up.

    adapter: where config.name is the directory of one, merge it into its base, or leave it to the caller to add.

    The model stays in eval mode while it is trained: gradients do not need dropout, and with it the policy of step 0
    would already differ from its reference.
    """
    at = device or _device(config.device)
    start = adapter_at(config.name)
    source = located(start.base if start else config.name)
    own_tokenizer = start is not None and (start.directory / "tokenizer_config.json").is_file()
    with named(config.name):
        model = read_model(source, config, _DTYPES[config.dtype])
        tokenizer = read_tokenizer(ModelSource(str(start.directory)) if start and own_tokenizer else source, config)
    if start is not None and adapter == "merge":
        merge_into(model, start)
    torch.nn.Module.to(model, at).eval()
    stops = StopStrings(tokenizer, longer) if (longer := [text for text in stop if len(text) > 1]) else None
    return LoadedModel(model, tokenizer, eos_ids(model, tokenizer) | stop_ids(tokenizer, stop), stops)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformers model: what is sharded, and computed again, one at a time."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a completion: generation settings may name several, the tokenizer has one."""
    named = None if model.generation_config is None else model.generation_config.eos_token_id
    ids = set(named) if isinstance(named, list) else {named}
    ids.add(tokenizer.eos_token_id)
    return frozenset(int(i) for i in ids if i is not None)


def stop_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> frozenset[int]:
    """Every id of the vocabulary whose text has one of the strings in it; what several tokens spell is for `StopStrings`.

    Raises ConfigError for a single character that no token has: it could never end a completion.
    """
    if not stop:
        return frozenset()
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = {text: {i for i, token in enumerate(texts) if text in token} for text in stop}
    if nowhere := [text for text, ids in found.items() if not ids and len(text) == 1]:
        raise ConfigError(f"rollout.stop: no token of this model contains {nowhere[0]!r}, which can end nothing")
    return frozenset().union(*found.values())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device: {name!r} is no device: write auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device: {name} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return device
