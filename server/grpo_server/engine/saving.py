"""A reference as files, from which the same reference is loaded: same tensors, same config, same tokenizer."""

from __future__ import annotations

from pathlib import Path

from grpo_client.models.reading import Reading
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Write it as safetensors into an empty directory. Raises OSError, and ValueError for what cannot be written.

    A model with an adapter would be saved as the adapter alone: its owner has both, and starts with them.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "a reference of base model and adapter cannot be kept: merge them (peft's merge_and_unload), save that, and "
            "mix into what was saved"
        )
    with Reading(None):
        model.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
