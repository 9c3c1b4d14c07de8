"""Whether a model holds what its checkpoint holds: nothing drawn at random, nothing left out, nothing that is no number.

transformers fills what a checkpoint lacks with random numbers and drops what it cannot place, with a warning at most. Here
both are errors that name the tensors and the remedy. The report is a mapping, so this module knows no transformers.

    model, report = AutoModelForCausalLM.from_pretrained("./checkpoint", **REPORT)
    require_whole(model, report)

It does not judge what the numbers compute: a start-up probe does that.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .names import is_needed, remedy, told

log = logging.getLogger(__name__)

# For `from_pretrained`. Other shapes are to be reported, so that they can be named, and not raised.
REPORT: Mapping[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


class WeightsError(ValueError):
    """The weights of a checkpoint do not belong to the model of its config, or are not numbers."""


def require_whole(model: nn.Module, report: Mapping[str, Any], *, adapter: bool = False) -> None:
    """Raise WeightsError unless the checkpoint and the model hold the same tensors, all of them finite.

    report: what transformers gives with REPORT: `missing_keys` and `unexpected_keys` (names), `mismatched_keys` (name, shape
    in the checkpoint, shape in the model). adapter: it is of an adapter loaded into `model`, all of whose tensors count.
    """
    shapes = {name: f"{name} {_shape(theirs)}, not {_shape(ours)}" for name, theirs, ours in report["mismatched_keys"]}
    missing = ({*report["missing_keys"]} | _unread(model)) - shapes.keys()
    unexpected = {*report["unexpected_keys"]}
    needed = {name for name in unexpected if adapter or is_needed(name, quantized=_is_quantized(model))}
    faults = [
        f"{what} {told(names)}"
        for what, names in [
            ("it lacks", missing),
            ("of another shape are", shapes.values()),
            ("the model has no place for", needed),
        ]
        if names
    ]
    if faults:
        whole = "the adapter does not fit its base model" if adapter else "the checkpoint does not fit its config.json"
        help_ = remedy(model.state_dict(), missing, unexpected, adapter=adapter)
        raise WeightsError("; ".join([f"{whole}: {faults[0]}", *faults[1:], *([help_] if help_ else [])]))
    if unexpected:
        log.info("not part of the language model, left out: %s", told(unexpected))
    require_finite(model)


def require_finite(model: nn.Module) -> None:
    """Raise WeightsError when a weight is NaN or infinite; the message names the tensors."""
    if broken := nonfinite_tensors(model):
        raise WeightsError(f"the checkpoint holds NaN or infinity, in {told(broken)}; use one saved before that")


def differing(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of two models has, and of those of another shape, with both shapes."""
    shapes = [
        f"{name} {_shape(tensor.shape)}, not {_shape(ours[name].shape)}"
        for name, tensor in theirs.items()
        if name in ours and tensor.shape != ours[name].shape
    ]
    return [*shapes, *(theirs.keys() ^ ours.keys())]


@torch.no_grad()
def nonfinite_tensors(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity, and of the saved buffers that hold NaN (masks may hold -inf)."""
    parameters = dict(model.named_parameters())
    saved = {n: t for n, t in model.state_dict().items() if n not in parameters and isinstance(t, Tensor)}
    return [
        *(name for name, tensor in parameters.items() if not _ends(tensor).isfinite().all()),
        *(name for name, tensor in saved.items() if _ends(tensor).isnan().any()),
    ]


def _ends(tensor: Tensor) -> Tensor:
    """(2,) smallest and largest element, NaN if one is: one pass, no copy. (0,) for what holds no floats."""
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return torch.empty(0)
    # eight bits have no comparison of their own
    return torch.stack(torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float()))


def _unread(model: nn.Module) -> set[str]:
    """Parameters that transformers made up in place of reading them.

    It marks each tensor that it read. Its report leaves out what a class says may be missing (code that comes with a model
    can say so of anything), and the whole base model of an adapter. Quantized weights are repacked and lose the mark.
    """
    marked = {name: getattr(p, "_is_hf_initialized", False) for name, p in model.named_parameters()}
    if _is_quantized(model) or not any(marked.values()):
        return set()
    optional: Iterable[str] = ()
    if type(model).__module__.startswith("transformers."):
        optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return {n for n, read in marked.items() if not read and not any(re.search(pattern, n) for pattern in optional)}


def _is_quantized(model: nn.Module) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
