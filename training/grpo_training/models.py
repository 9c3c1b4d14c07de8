"""Load a policy and its tokenizer: the demo model, a directory, a GGUF file or a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from grpo_client.demo_model import locate
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo_training.config import ConfigError, ModelConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in eval mode, its tokenizer, and the ids that end a completion."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]


def load_model(config: ModelConfig, *, stop: Sequence[str] = (), device: torch.device | None = None) -> LoadedModel:
    """Load weights onto a device (config.device), ready to be trained. stop: strings that end a completion, beside EOS.

    The model stays in eval mode while it is trained: gradients do not need dropout, and with it the policy of step 0
    would already differ from its reference.
    """
    source = locate(config.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.path,
        gguf_file=source.gguf_file,
        revision=config.revision,
        dtype=_DTYPES[config.dtype],
        trust_remote_code=config.trust_remote_code,
    )
    tokenizer = AutoTokenizer.from_pretrained(
        source.path,
        gguf_file=source.gguf_file,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    if source.gguf_file is not None:
        _forget_gguf(model)
    torch.nn.Module.to(model, device or _device(config.device)).eval()
    return LoadedModel(model, tokenizer, eos_ids(model, tokenizer) | stop_ids(tokenizer, stop))


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
    """Every id of the vocabulary whose text has one of the strings in it.

    Raises ConfigError when a string is in no single token: it could never end a completion.
    """
    if not stop:
        return frozenset()
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = {text: {i for i, token in enumerate(texts) if text in token} for text in stop}
    if nowhere := [text for text, ids in found.items() if not ids]:
        raise ConfigError(f"rollout.stop: no single token of this model contains {nowhere[0]!r}; give a shorter string")
    return frozenset().union(*found.values())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _forget_gguf(model: PreTrainedModel) -> None:
    """The weights are ordinary floats by now; transformers would refuse to save a model that still says GGUF."""
    plain = {"hf_quantizer": None, "is_quantized": False, "quantization_method": None}
    for name, value in plain.items():
        object.__setattr__(model, name, value)
    vars(model.config).pop("quantization_config", None)
