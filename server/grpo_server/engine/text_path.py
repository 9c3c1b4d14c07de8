"""Through which modules of a body text runs: of a model that sees or hears as well, not through its towers."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn


def modules_for_text(body: nn.Module) -> tuple[nn.Module, ...]:
    """All modules of the decoder, and what a text runs through besides. Of a body that is its decoder: all.

    Of the decoder none is left out, for which of its experts run depends on the text.
    """
    find = getattr(body, "get_decoder", None)
    decoder = body if find is None else find()
    if not isinstance(decoder, nn.Module) or decoder is body:
        return tuple(body.modules())
    within = dict.fromkeys(decoder.modules())
    run: dict[nn.Module, None] = {}
    others = [module for module in body.modules() if module not in within]
    hooks = [module.register_forward_pre_hook(partial(_note, run)) for module in others]
    try:
        with torch.inference_mode():
            ids = torch.ones(1, 2, dtype=torch.long, device=next(body.parameters()).device)
            body(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return (*run, *within)


def _note(run: dict[nn.Module, None], module: nn.Module, _: object) -> None:
    run[module] = None
