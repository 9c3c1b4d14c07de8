"""What is known of common architectures: where the final layer is, and which parameters are not directions in space.

The trainer works with any model of transformers; an entry here adds defaults. Gains of norms and biases are left out of
the orthogonal projection unless the user says otherwise: their gradient along themselves is how a layer sets its scale,
not how a network inflates its logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from transformers import AutoConfig, PretrainedConfig


@dataclass(frozen=True, slots=True)
class Architecture:
    """final_layer: dotted name of the output embedding. norms: class names of the normalisation layers. bias: whether
    its layers have biases.
    """

    final_layer: str
    norms: tuple[str, ...]
    bias: bool = False

    @property
    def skip_param_types(self) -> tuple[str, ...]:
        """What the orthogonal projection leaves alone by default."""
        return (("bias",) if self.bias else ()) + self.norms


MODEL_CONFIG_MAPPING: Mapping[str, Architecture] = MappingProxyType(
    {
        "gpt2": Architecture("lm_head", ("LayerNorm",), bias=True),
        "gpt_neox": Architecture("lm_head", ("LayerNorm",), bias=True),
        "opt": Architecture("lm_head", ("LayerNorm",), bias=True),
        "phi": Architecture("lm_head", ("LayerNorm",), bias=True),
        "llama": Architecture("lm_head", ("LlamaRMSNorm",)),
        "mistral": Architecture("lm_head", ("MistralRMSNorm",)),
        "qwen2": Architecture("lm_head", ("Qwen2RMSNorm",), bias=True),
        "qwen3": Architecture("lm_head", ("Qwen3RMSNorm",)),
        "gemma2": Architecture("lm_head", ("Gemma2RMSNorm",)),
        "phi3": Architecture("lm_head", ("Phi3RMSNorm",)),
        "smollm3": Architecture("lm_head", ("SmolLM3RMSNorm",)),
        "olmo2": Architecture("lm_head", ("Olmo2RMSNorm",)),
    }
)
"""By `config.model_type`."""


def architecture_of(model: nn.Module) -> Architecture | None:
    """The entry for a model, None where there is none."""
    config = getattr(model, "config", None)
    return MODEL_CONFIG_MAPPING.get(getattr(config, "model_type", ""))


def small_config(model_type: str, **sizes: int) -> PretrainedConfig:
    """A configuration of a known architecture, to build a small model from without downloading anything.

    sizes: vocab_size, hidden_size, num_hidden_layers, ... under the names that transformers shares between models.
    Raises ValueError for an architecture that is not in MODEL_CONFIG_MAPPING.
    """
    if model_type not in MODEL_CONFIG_MAPPING:
        raise ValueError(f"model_type {model_type!r} is not among {', '.join(sorted(MODEL_CONFIG_MAPPING))}")
    return AutoConfig.for_model(model_type, **sizes)
