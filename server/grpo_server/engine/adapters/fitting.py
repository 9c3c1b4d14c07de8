"""An adapter's tensors, each put to the layer of the base that it is for. What has no place, or no partner, is refused."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from grpo_client.models.files import UnusableModel
from grpo_numerics.checkpoint.names import is_needed, remedy, told
from grpo_numerics.model_parts import output_head
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..anatomy import Anatomy
from .adapter import Adapter, in_base_type
from .products import Pair
from .settings import MERGED, Settings

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
ITS_BASE = "its base is the model that it was trained on"
_PAIR = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>A|B)\.weight$")
_EMBEDDING_PAIR = re.compile(r"^(?P<layer>.+)\.lora_embedding_(?P<side>A|B)$")
_WHOLE = re.compile(r"^(?P<layer>.+?)\.(?:base_layer\.|modules_to_save\.)?(?P<part>weight|bias)$")
# What else may be in a file, by its name.
_OTHERS = (
    ("lora_magnitude_vector", "DoRA's magnitudes"),
    ("lora_B.bias", "biases of its products"),
    ("token_adapter.", "embeddings of single tokens"),
)


class Fitting:
    """The base's layers by name, and what of an adapter they take."""

    def __init__(self, model: PreTrainedModel, parts: Anatomy, settings: Settings) -> None:
        self._parts, self._settings = parts, settings
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._in_body = {id(module) for module in parts.body.modules()}
        self._head: Any = output_head(model)
        self._embedding: Any = model.get_input_embeddings()

    def adapter(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """Raises UnusableModel, naming the tensors."""
        named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
        if broken := [name for name, t in named.items() if t.is_floating_point() and not t.isfinite().all()]:
            raise UnusableModel(f"the adapter holds NaN or infinity, in {told(broken)}; use one saved before that")
        sides: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            layer, part = self._placed(name, named)
            if layer is not None:
                (sides if part in "AB" else whole).setdefault(layer, {})[part] = tensor
        self._require_complete(sides)
        pairs = {layer: self._pair(layer, both) for layer, both in sides.items()}
        return Adapter(
            pairs={layer: pair for layer, pair in pairs.items() if id(self._modules[layer]) in self._in_body
                   and self._modules[layer] is not self._embedding},
            embedding=next((p for layer, p in pairs.items() if self._modules[layer] is self._embedding), None),
            table=self._own_table(whole),
            head=self._own_head(whole, pairs),
        )  # fmt: skip

    def _placed(self, name: str, named: Mapping[str, Tensor]) -> tuple[str | None, str]:
        """The layer that a tensor is for, and what it is to it: "A", "B", "weight", "bias"; None: it changes no score."""
        for sign, what in _OTHERS:
            if sign in name:
                raise UnusableModel(f"the adapter holds {what} ({name}), which are not held beside a base; {MERGED}")
        found = _PAIR.match(name) or _EMBEDDING_PAIR.match(name)
        layer = found["layer"] if found else (whole["layer"] if (whole := _WHOLE.match(name)) else "")
        module = self._modules.get(layer)
        if module is None or (id(module) not in self._in_body and module is not self._head):
            if not is_needed(name):
                return None, ""
            help_ = remedy(self._parts.body.state_dict(), set(), {name}, adapter=True)
            told_ = (
                f"the adapter does not fit its base model: the model has no place for {told(self._strangers(named))}"
            )
            raise UnusableModel(f"{told_}; {help_}" if help_ else told_)
        if found:
            return layer, found["side"]
        if module is not self._head and module is not self._embedding:
            raise UnusableModel(
                f"the adapter holds {name} whole (modules_to_save); beside a base only the input embedding and the output "
                f"head are; {MERGED}"
            )
        return layer, _part_of(name)

    def _strangers(self, named: Mapping[str, Tensor]) -> Iterator[str]:
        for name in named:
            found = _PAIR.match(name) or _EMBEDDING_PAIR.match(name) or _WHOLE.match(name)
            if is_needed(name) and (found is None or found["layer"] not in self._modules):
                yield name

    def _require_complete(self, sides: Mapping[str, Mapping[str, Tensor]]) -> None:
        """A pair wherever the config says that there is one, and both halves of each."""
        halves = {layer: set("AB") - both.keys() for layer, both in sides.items()}
        lacking = [f"{layer}.lora_{side}" for layer, gone in halves.items() for side in gone]
        for layer, module in self._modules.items():
            multiplies = id(module) in self._in_body and isinstance(module, nn.Linear | Conv1D | nn.Embedding)
            if multiplies and layer not in sides and self._settings.targets_layer(layer):
                lacking.append(f"{layer}.lora_A")
        if lacking:
            raise UnusableModel(f"the adapter does not fit its base model: it lacks {told(lacking)}")
        if not sides:
            raise UnusableModel("the adapter holds no LoRA matrices (lora_A, lora_B)")

    def _pair(self, layer: str, both: Mapping[str, Tensor]) -> Pair:
        module: Any = self._modules[layer]
        weight: Any = getattr(module, "weight", None)
        is_embedding = isinstance(module, nn.Embedding)
        if is_embedding and (type(module) is not nn.Embedding or module is not self._embedding):
            raise UnusableModel(
                f"the adapter has a pair for {layer}, a {type(module).__name__}, which is not held; {MERGED}"
            )
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding) or weight is None or isinstance(weight, DTensor):
            raise UnusableModel(
                f"the adapter has a pair for {layer}, a {type(module).__name__}, which is not held; {MERGED}"
            )
        inputs, outputs = _sides(module)
        rank = self._settings.rank_of(layer)
        down, up = both["A"], both["B"]
        wrong = [
            f"{layer}.lora_{side} {'x'.join(map(str, tensor.shape))}, not {'x'.join(map(str, shape))}"
            for side, tensor, shape in (("A", down, (rank, inputs)), ("B", up, (outputs, rank)))
            if tensor.shape != shape
        ]
        if wrong:
            raise UnusableModel(
                f"the adapter does not fit its base model: of another shape are {told(wrong)}; {ITS_BASE}"
            )
        down = down.t() if is_embedding else down
        return Pair(in_base_type(down, weight), in_base_type(up, weight), self._settings.scale_of(layer))

    def _own_table(self, whole: Mapping[str, Mapping[str, Tensor]]) -> nn.Module | None:
        """An input embedding of the adapter's own, of the base's kind: what is the base's own is not held twice."""
        own = self._own(whole, self._embedding)
        if "weight" not in own:
            return None
        table = copy.copy(self._embedding)
        vars(table).pop("forward", None)  # of the base's instance
        table._parameters = {"weight": nn.Parameter(own["weight"], requires_grad=False)}
        table._forward_hooks, table._buffers = type(table._forward_hooks)(), dict(self._embedding._buffers)
        return table

    def _own_head(self, whole: Mapping[str, Mapping[str, Tensor]], pairs: Mapping[str, Pair]) -> Anatomy | None:
        """The output head of the adapter's own. Its product, where it has a pair, is summed with the weight once, in fp32."""
        own = self._own(whole, self._head)
        pair = next((p for layer, p in pairs.items() if self._modules[layer] is self._head), None)
        if not own and pair is None:
            return None
        base = self._parts.weight
        weight, bias = own.get("weight", base), own.get("bias", self._parts.spec.bias)
        if pair is not None:
            product = pair.up.float() @ pair.down.float()
            weight = (weight.float() + pair.scale * product).to(base.dtype)
        return replace(self._parts, weight=weight, spec=replace(self._parts.spec, bias=bias))

    def _own(self, whole: Mapping[str, Mapping[str, Tensor]], module: Any) -> dict[str, Tensor]:
        """The tensors of this module that the adapter has other than the base."""
        found: dict[str, Tensor] = {}
        for layer, tensors in whole.items():
            if self._modules[layer] is not module:
                continue
            for part, tensor in tensors.items():
                ours: Any = getattr(module, part, None)
                if ours is None or ours.shape != tensor.shape:
                    shape = "none" if ours is None else "x".join(map(str, ours.shape))
                    theirs = "x".join(map(str, tensor.shape))
                    raise UnusableModel(
                        f"the adapter does not fit its base model: of another shape are {layer}.{part} {theirs}, not {shape}; "
                        f"{ITS_BASE}"
                    )
                mine = in_base_type(tensor, ours)
                if not torch.equal(mine, ours):
                    found[part] = mine
        return found


def _part_of(name: str) -> str:
    return name.rpartition(".")[2]


def _sides(module: nn.Linear | Conv1D | nn.Embedding) -> tuple[int, int]:
    """Inputs and outputs."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.weight.shape
    return inputs, outputs
