"""The border behind which twenty kinds of exceptions are one error with one sentence."""

from __future__ import annotations

import pickle
import struct

import pytest
from grpo_client.models.files import UnusableModel
from grpo_client.models.reading import Reading, sentence
from safetensors import SafetensorError


class Foreign(Exception):
    """As a library defines its own."""


Foreign.__module__ = "huggingface_hub.errors"
Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize(
    "error",
    [
        OSError("no space"),
        PermissionError(13, "Permission denied", "/x"),
        ValueError("wrong"),
        ImportError("requires bitsandbytes"),
        RuntimeError("size mismatch"),
        NotImplementedError(),
        KeyError("weight_map"),
        IndexError("list index out of range"),
        TypeError("unexpected keyword"),
        AttributeError("no attribute"),
        ZeroDivisionError("integer modulo by zero"),
        EOFError(),
        AssertionError(),
        MemoryError(),
        NameError("name 'x' is not defined"),
        SyntaxError("invalid syntax"),
        struct.error("unpack requires a buffer of 8 bytes"),
        pickle.UnpicklingError("Weights only load failed"),
        SafetensorError("header too small"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        Exception("data did not match any variant of untagged enum ModelWrapper"),
        Foreign("Field 'hidden_size' expected int"),
        Panic("called `Option::unwrap()` on a `None` value"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_reading_raises_is_one_sentence(error: BaseException) -> None:
    with pytest.raises(UnusableModel) as caught, Reading(None):
        raise error
    assert caught.value.__cause__ is error
    told = str(caught.value)
    assert len(told) > 3
    assert "\n" not in told


class Bug(Exception):
    """Of this project, or of nobody."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), Bug("ours"), UnusableModel("already said")])
def test_what_is_not_of_reading_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, Reading(None):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "We couldn't connect to 'https://huggingface.co' to load the files",
            "there is no directory a/b, and the hub cannot be",
        ),
        (
            "a/b is not a local folder and is not a valid model identifier listed on",
            "the hub has no such model or keeps it private",
        ),
        ("You are trying to access a gated repo.\nMake sure", "only to those who accepted its terms"),
        (
            "nope is not a valid git identifier (branch name, tag name or commit id)",
            "the hub has no such revision of a/b",
        ),
        ("The repository a/b contains custom code which must be executed", "trust_remote_code"),
        ("Cannot reach https://hub/x: offline mode is enabled.", "offline mode"),
    ],
)
def test_what_transformers_says_at_length(words: str, told: str) -> None:
    assert told in sentence(OSError(words), "a/b")


def test_no_secret_colour_or_essay_is_repeated() -> None:
    words = "\x1b[1mGET https://me:password@hub/x\x1b[0m with hf_abcdefghijklmnop failed. Try again.\n" + "x" * 999
    told = sentence(OSError(words), "a/b")
    assert told == "GET https://***hub/x with *** failed"
    assert len(sentence(OSError("x" * 999), "a/b")) == 300


def test_a_missing_package_and_a_full_memory_are_called_so() -> None:
    assert "not installed" in sentence(ImportError("requires optimum (`pip install optimum`)"), "it")
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert sentence(error, "it").startswith("there is not enough memory for it")
