"""Quantised checkpoints: read by the package that knows their format, or refused with its name.

transformers asks each package in its own words, and reads a format that it does not know as if the weights were plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from grpo_client.models.files import UnusableModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

# What each method needs beside transformers: name on PyPI -> name in Python. Those that are not here need nothing.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "aqlm": {"aqlm": "aqlm"},
    "auto-round": {"auto-round": "auto_round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed-tensors": "compressed_tensors"},
    "eetq": {"eetq": "eetq"},
    "fbgemm_fp8": {"fbgemm-gpu": "fbgemm_gpu"},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "higgs": {"flute-kernel": "flute"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum-quanto": "optimum.quanto"},
    "quark": {"amd-quark": "quark"},
    "spqr": {"spqr_quant": "spqr_quant"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
_INSTEAD = "or serve the checkpoint that it was made from"


def check_quantised(config: Any) -> None:
    """Raise UnusableModel for a checkpoint whose quantization_config nobody here can read. config: of the model, any kind."""
    said: Any = getattr(config, "quantization_config", None)
    if said is None:
        return
    method = said.get("quant_method") if isinstance(said, Mapping) else getattr(said, "quant_method", None)
    method = getattr(method, "value", method)
    if not isinstance(method, str):
        raise UnusableModel(
            "the quantization_config in its config.json names no quant_method, so nothing says how to read it; add it, "
            f"{_INSTEAD}"
        )
    family = method.split("_4bit")[0].split("_8bit")[0]
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING and family != "bitsandbytes":
        raise UnusableModel(
            f"it is quantised by {method!r} (quantization_config in its config.json), which transformers cannot read; "
            f"convert it to compressed-tensors, {_INSTEAD}"
        )
    missing = [package for package, module in _PACKAGES.get(family, {}).items() if not _found(module)]
    if missing:
        raise UnusableModel(
            f"it is quantised by {family} (quantization_config in its config.json), which needs what is not installed; type: "
            f"pip install {' '.join(missing)}, {_INSTEAD}"
        )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a part, the whole
        return False
