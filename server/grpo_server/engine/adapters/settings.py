"""What an adapter's config says of its products, and what it may say that is not held beside a base: refused by its name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_client.models.files import UnusableModel

MERGED = "serve it merged: --model name=path"
# Settings under which a layer computes something else than its own product and one small one beside it.
_OTHER_LAYERS: Mapping[str, str] = {
    "use_dora": "DoRA, which rescales the base's weights",
    "lora_bias": "biases of its products (lora_bias)",
    "trainable_token_indices": "embeddings of single tokens (trainable_token_indices)",
    "target_parameters": "products with parameters that are no layers (target_parameters)",
    "layer_replication": "layers of the base that are run twice (layer_replication)",
    "alora_invocation_tokens": "products that begin at a token (aLoRA)",
    "use_qalora": "pooled inputs (QALoRA)",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
    "kasa_config": "singular values (KaSA)",
    "arrow_config": "a router over adapters (Arrow)",
    "monteclora_config": "random matrices (MonteCLoRA)",
}
# Starts from random numbers, or from nothing: the base is what it was. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take the
# start out of the base's weights, and their files fit only what is left of them.
_STARTS = frozenset({"gaussian", "eva", "orthogonal"})


@dataclass(frozen=True, slots=True)
class Settings:
    """rank, alpha: of every layer that no pattern names. targets: layers that have a pair of matrices, by the ends of their
    names, or one regular expression for the whole name; None: those that the file holds. saved: modules kept whole."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: Sequence[str] | str | None
    saved: Sequence[str]

    def rank_of(self, layer: str) -> int:
        """Rank of the pair at this layer."""
        return int(_by_pattern(self.ranks, layer, self.rank))

    def scale_of(self, layer: str) -> float:
        """What its product is multiplied by: alpha / r, or alpha / sqrt(r) (Kalajdzievski, "A rank stabilization scaling factor
        for fine-tuning with LoRA", 2023)."""
        alpha, rank = float(_by_pattern(self.alphas, layer, self.alpha)), self.rank_of(layer)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets_layer(self, layer: str) -> bool:
        """Whether the config says that this layer has a pair."""
        if self.targets is None or any(re.match(rf"(^|.*\.){m}($|\..*)", layer) for m in self.saved):
            return False
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, layer) is not None
        return any(layer == target or layer.endswith(f".{target}") for target in self.targets)


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Read an adapter_config.json of peft. Raises UnusableModel for what cannot be held beside a base."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnusableModel(f"it is an adapter of type {kind}, and only LoRA is held beside a base; {MERGED}")
    for name, what in _OTHER_LAYERS.items():
        if config.get(name):
            raise UnusableModel(f"it is a LoRA with {what}, which is not held beside a base; {MERGED}")
    if (bias := config.get("bias") or "none") != "none":
        raise UnusableModel(
            f"it is a LoRA that changes biases (bias: {bias}), which is not held beside a base; {MERGED}"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in _STARTS:
        raise UnusableModel(
            f"it is a LoRA that was started from the base's own weights (init_lora_weights: {start}) and changes them; save it "
            "converted (peft's path_initial_model_for_weight_conversion), or merge it with peft and serve what was saved"
        )
    try:
        settings = Settings(
            rank=int(config.get("r") or 8),
            alpha=float(config.get("lora_alpha") or 8),
            rslora=bool(config.get("use_rslora")),
            ranks=_numbers(config.get("rank_pattern")),
            alphas=_numbers(config.get("alpha_pattern")),
            targets=_targets(config),
            saved=[str(name) for name in config.get("modules_to_save") or ()],
        )
        ranks = [settings.rank, *settings.ranks.values()]
        for pattern in (*settings.ranks, *settings.alphas):
            re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UnusableModel(f"its adapter_config.json cannot be read: {error}") from error
    if min(ranks) < 1:
        raise UnusableModel(f"its adapter_config.json names a rank below 1 ({min(ranks)})")
    return settings


def _targets(config: Mapping[str, Any]) -> Sequence[str] | str | None:
    """None where more settings than target_modules decide: then what the file holds does."""
    targets = config.get("target_modules")
    if config.get("exclude_modules") or config.get("layers_to_transform") is not None or not targets:
        return None
    if isinstance(targets, str):
        if targets == "all-linear":
            return None
        re.compile(targets)
        return targets
    return [str(target) for target in targets]


def _numbers(pattern: Any) -> dict[str, Any]:
    return {str(name): float(value) for name, value in (pattern or {}).items()}


def _by_pattern(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    """The first that matches the end of the layer's name, as peft has it."""
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)
