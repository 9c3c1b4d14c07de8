"""Which files of a model are sent over HTTP: weights as safetensors, and what describes them. No pickle, no code, no path."""

from __future__ import annotations

import re

CONFIG = "config.json"
WEIGHTS = ".safetensors"
# What stands before the id of an upload where a model is named.
UPLOAD = "upload:"
BESIDE = frozenset(
    {
        CONFIG,
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)


def is_uploadable(name: str) -> bool:
    """Whether a file of this name may be sent."""
    return _PLAIN.fullmatch(name) is not None and (name in BESIDE or name.endswith(WEIGHTS))
