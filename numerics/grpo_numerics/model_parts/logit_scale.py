"""The factor between a head's product and its logits. Architectures name it differently, and the same name multiplies in one
and divides in another, so the names only propose: the model's own logits decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Cohere, Granite (divides) and HyperCLOVA X (multiplies), Falcon-H1, Muse, Inkling
_NAMES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier", "logits_mup_width_multiplier")
_TOKENS = 4


@torch.no_grad()
def logit_scale(model: Any, body: nn.Module, weight: Tensor, bias: Tensor | None, softcap: float | None) -> float:
    """Factor on the biased product, before the soft-cap; 1.0 where the config proposes no other.

    Of what the config proposes, the one nearest to the model's own logits on a few tokens. Whether it is right is not
    judged here: a probe does that, with the scores. All ranks of a sharded model must call it.
    """
    proposed = _proposed(model.config.get_text_config(decoder=True))
    if len(proposed) == 1:
        return 1.0
    ids = torch.arange(_TOKENS, device=next(body.parameters()).device)[None]
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state[0].to(weight)
    # a model may leave out the padded end of its vocabulary; it is refused by the probe then, which says what differs
    product = nn.functional.linear(hidden, weight, bias).float().to(own.device)[:, : own.shape[-1]]

    def error(scale: float) -> float:
        logits = product * scale
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return float((logits - own).abs().max())

    return min(proposed, key=error)


def _proposed(config: Any) -> list[float]:
    """1.0 first, then each named factor and its reciprocal."""
    named = [float(value) for name in _NAMES if (value := getattr(config, name, None))]
    return list(dict.fromkeys([1.0, *named, *(1.0 / value for value in named)]))
