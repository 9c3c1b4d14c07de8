"""A border: what the libraries that read a model raise becomes one error with one sentence, here and nowhere else.

    with Reading(source.path):
        model = AutoModelForCausalLM.from_pretrained(source.path)

transformers, safetensors, tokenizers, peft, gguf, the hub's client and code that comes with a model raise some twenty kinds of
exceptions for a broken checkpoint, plain `Exception` among them. `_READING` lists what they raise of Python's own; of their own
they may raise anything.
"""

from __future__ import annotations

import pickle
import re
import struct
from types import TracebackType

from grpo_client.models.files import UnusableModel, fault

_READING = (
    OSError,  # files, the hub
    ValueError,  # configs, JSON, text that is none
    ImportError,  # what a format needs and is not installed
    RuntimeError,  # torch: sizes, memory, conversions
    LookupError,  # a config that names what there is not
    TypeError,
    AttributeError,
    ArithmeticError,  # a config with zero heads
    EOFError,
    AssertionError,
    MemoryError,
    NameError,  # code that comes with a model
    SyntaxError,
    struct.error,  # GGUF
    pickle.PickleError,  # .bin files that hold more than tensors
)
_LIBRARIES = re.compile(
    r"(transformers|transformers_modules|safetensors|tokenizers|sentencepiece|peft|accelerate|gguf|torch"
    r"|huggingface_hub|httpx2?|httpcore|pyo3_runtime)(\.|$)"
)
_LONGEST = 300  # characters of somebody else's words
_SECRETS = re.compile(r"\bhf_\w{8,}|(?<=://)[^/\s@]+@")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# What transformers says at length, and what it means for who named the model: {name} is that name.
_MEANINGS = (
    (
        "contains custom code",
        "it needs Python code that comes with it, which runs only if you say so: trust_remote_code (--trust-remote-code)",
    ),
    (
        "trust_remote_code",
        "it needs Python code that comes with it, which runs only if you say so: trust_remote_code (--trust-remote-code)",
    ),
    ("gated repo", "the hub gives {name} only to those who accepted its terms; accept them there, and set HF_TOKEN"),
    ("not a valid git identifier", "the hub has no such revision of {name}"),
    (
        "not a valid model identifier",
        "there is no directory {name}, and the hub has no such model or keeps it private (HF_TOKEN)",
    ),
    ("couldn't connect to", "there is no directory {name}, and the hub cannot be reached to look there"),
    ("offline mode", "there is no directory {name}, and the hub is not asked for it (offline mode)"),
    (
        "cannot find the requested files in the",
        "there is no directory {name}, and the hub is not asked for it (offline mode)",
    ),
    ("Should have a `model_type` key", "its config.json names no model_type, so nothing says what model it is"),
    (
        "for this kind of AutoModel",
        "it is no causal language model of transformers, by the model_type of its config.json",
    ),
)


class Reading:
    """A context manager: what reading a model raises becomes UnusableModel, the original its cause. Keep the block small.

    name: of the model, as `from_pretrained` takes it; its files are looked at for the reason, unless it is None. gguf_file:
    inside that directory, if the model is one.
    """

    def __init__(self, name: str | None, gguf_file: str | None = None) -> None:
        self._name, self._gguf_file = name, gguf_file

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, UnusableModel) or not _is_of_reading(error):
            return
        seen = None if self._name is None else fault(self._name, self._gguf_file)
        raise UnusableModel(seen or sentence(error, self._name or "it")) from error


def sentence(error: BaseException, name: str) -> str:
    """What an error says, short: without line breaks, colours, secrets and advice that is not for us."""
    words = " ".join(_SECRETS.sub("***", _COLOURS.sub("", str(error))).split())
    for sign, meaning in _MEANINGS:
        if sign in words:
            return meaning.format(name=name)
    first = re.split(r"(?<=[.!?]) (?=[A-Z])", words, maxsplit=1)[0][:_LONGEST].rstrip(".")
    match error:
        case ImportError():
            return f"it needs what is not installed or not on this machine: {first}"
        case pickle.PickleError():
            return (
                "its .bin file holds more than tensors, which could run code, and is not loaded; save it as safetensors"
            )
        case MemoryError() | RuntimeError() if isinstance(error, MemoryError) or "out of memory" in words:
            return f"there is not enough memory for it: {first}".rstrip(": ")
        case KeyError():
            return f"transformers looked for {first} and did not find it; see its config"
        case OSError() | ValueError() if first:
            return first
        case _:
            return f"reading it failed with {type(error).__name__}: {first or 'no word'}; see its config"


def _is_of_reading(error: BaseException) -> bool:
    kind = type(error)
    return isinstance(error, _READING) or kind is Exception or _LIBRARIES.match(kind.__module__) is not None
