"""A batch of several adapters makes the host wait no more than one of the base does (`../test_no_waiting.py`)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from checkpoints import llama
from grpo_numerics import score_rows
from grpo_numerics.packed import attention
from grpo_server.engine.adapters.adapter import Adapter
from grpo_server.engine.adapters.base import Base
from grpo_server.engine.adapters.forward import AdaptedForward
from grpo_server.engine.adapters.products import Pair
from grpo_server.engine.anatomy import anatomy
from grpo_server.engine.flops import Flops
from grpo_server.engine.forwards import PackedForward
from grpo_server.engine.head_pass import head_passes
from torch import nn
from tuned import pieces_of
from waits import Waits


def test_a_batch_of_adapters_on_a_gpu_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "on_triton", lambda *_: True)  # as a GPU has it: the operator knows its shapes
    model = llama().to("meta")
    parts = anatomy(model)
    nothing = cast(Any, None)
    base = Base(
        **dict.fromkeys(
            ("config", "hosted", "ground", "device", "limits", "price", "turn", "tenants", "known"), nothing
        ),
        model=model,
        parts=parts,
        forward=PackedForward(model, parts, heights=None),
        head=score_rows,
        attention="sdpa",
        flops=Flops(token=1.0, row=1.0),
    )

    def adapter(rank: int) -> Adapter:
        linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}

        def pair(inputs: int, outputs: int, scale: float) -> Pair:
            return Pair(torch.empty(rank, inputs, device="meta"), torch.empty(outputs, rank, device="meta"), scale)

        embedding = Pair(torch.empty(parts.vocab_size, rank, device="meta"), pair(1, 32, 1.0).up, 2.0)
        return Adapter({n: pair(m.in_features, m.out_features, 0.3) for n, m in linears.items()}, embedding)

    first, second = adapter(4), adapter(3)
    forward = AdaptedForward(base)
    pieces = pieces_of(groups=4)
    with torch.inference_mode():
        batch = forward.prepare(pieces, [second, None, first, second])
        with Waits() as seen:
            passes = head_passes(forward.rows(batch), batch.questions, parts, score_rows)
            counted = forward.flops(batch)
    assert counted > base.flops.of(batch)
    assert seen.reads == []
    assert set(seen.copies) == {"cpu to meta queued"}
    assert forward.layers == first.pairs.keys()
    assert np.prod([len(p.logprobs) for p in passes]) == len(batch.targets)
