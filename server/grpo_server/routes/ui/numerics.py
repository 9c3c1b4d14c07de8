"""POST /ui/api/numerics: a row of logits under every normalizer, as written in books and as computed here, in three types.

The arithmetic is that of `grpo_numerics` and of nobody else. JSON has no NaN and no infinity: they are spelled "nan", "inf" and
"-inf", in the question as in the answer. It needs no model, and answers while one is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, Strict

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._bodies import described, parse
from grpo_server.routes._common import ServiceDep
from grpo_server.routes.ui.guard import api_router

router = api_router()

MOST_LOGITS = 64
MOST_BYTES = 65_536  # of a body: so many logits take a few thousand
DTYPES = ("float16", "bfloat16", "float32")

Spelled = Literal["nan", "inf", "-inf"]
Logit = Annotated[float, Strict()] | Spelled
Flag = Annotated[int, Field(ge=0, le=1)]


class NumericsRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    logits: list[Logit] = Field(min_length=1, max_length=MOST_LOGITS, description='Numbers, or "inf", "-inf", "nan".')
    temperature: Annotated[float, Strict()] = Field(1.0, description="Divides the logits; finite and above 0.")
    normalizer: Literal["softmax", "stablemax", "sparsemax", "entmax15"] = Field(
        "softmax", description="Which one is written out, naive and stable; the four of `distributions` always come."
    )
    target: int | None = Field(None, ge=0, description="Index of the true token: loss and gradient are of it.")
    mask: list[Flag] | None = Field(None, description="One per logit; 0 forbids the token, its logit is -inf.")


@router.post("/numerics", openapi_extra=described(NumericsRequest))
async def numerics(request: Request, service: ServiceDep) -> JSONResponse:
    """A row of logits under softmax, StableMax, sparsemax and 1.5-entmax: naive and stable, in fp16, bf16 and fp32.

    `naive` and `stable` hold, for each type, what the written-out form comes by, every step rounded to that type: `logits`
    (over the temperature), `terms`, `total`, `p`, `logprobs`, `logsumexp`, `loss` (-log p of the target) and `gradient`
    (p - y). `distributions` holds what grpo_numerics computes in fp32: `p`, `logprobs`, `entropy`, `support` (tokens with
    p > 0), `loss`, its `gradient` with respect to what is normalised (p - y) and `logit_gradient` with respect to the
    logits given.
    """
    body = await request.body()
    if len(body) > MOST_BYTES:
        raise ServiceError(
            ErrorCode.BODY_TOO_LARGE, f"the body has {len(body)} bytes; {MOST_LOGITS} logits take no {MOST_BYTES}"
        )
    asked = await service.in_codec(parse, NumericsRequest, body)
    _check(asked)
    return JSONResponse(await service.in_codec(_answer, asked))


def _check(asked: NumericsRequest) -> None:
    """Raises ServiceError (422) for what no row of logits can be asked."""
    n = len(asked.logits)
    if not 0 < asked.temperature < float("inf"):
        raise _invalid("temperature", f"must be finite and above 0, got {asked.temperature}")
    if asked.target is not None and asked.target >= n:
        raise _invalid("target", f"is {asked.target}, and there are {n} logits: it must lie in [0, {n})")
    if asked.mask is not None and len(asked.mask) != n:
        raise _invalid("mask", f"has {len(asked.mask)} entries for {n} logits: give one for each")


def _invalid(param: str, what: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, f"{param} {what}", param=param)


def _answer(asked: NumericsRequest) -> dict[str, Any]:
    import torch  # takes seconds, and settings of the process must stand before

    kept = asked.mask or [1] * len(asked.logits)
    logits = [float(x) if keep else -float("inf") for x, keep in zip(asked.logits, kept, strict=True)]
    rows = {name: torch.tensor(logits, dtype=torch.float64).to(getattr(torch, name)) for name in DTYPES}
    forms = {
        form: {name: _written_out(form, row / asked.temperature, asked) for name, row in rows.items()}
        for form in ("naive", "stable")
    }
    return {
        "logits": _spelled(rows["float32"]),
        "temperature": asked.temperature,
        "normalizer": asked.normalizer,
        "target": asked.target,
        **forms,
        "distributions": _distributions(rows["float32"], asked),
    }


def _written_out(form: str, x: Any, asked: NumericsRequest) -> dict[str, Any]:
    """x: (n,) tensor of logits over the temperature, in the type that is shown."""
    from grpo_numerics import textbook

    steps = getattr(textbook, form)(x, asked.normalizer)
    loss = gradient = None
    if asked.target is not None:
        gradient = steps.p.clone()
        gradient[asked.target] -= 1
        loss = -steps.logprobs[asked.target]
    return {
        "logits": _spelled(x),
        "terms": _spelled(steps.terms),
        "total": _spelled(steps.total),
        "p": _spelled(steps.p),
        "logprobs": _spelled(steps.logprobs),
        "logsumexp": _spelled(steps.logsumexp),
        "loss": _spelled(loss),
        "gradient": _spelled(gradient),
    }


def _distributions(logits: Any, asked: NumericsRequest) -> dict[str, Any]:
    """logits: (n,) tensor, fp32. By the functions that the service and the training use."""
    import torch
    from grpo_numerics.row import Row
    from grpo_numerics.textbook import PROJECTIONS

    answers: dict[str, Any] = {}
    for name in PROJECTIONS:
        given = logits.clone().requires_grad_()
        row = Row(given, name, temperature=asked.temperature)
        loss = gradient = of_logits = None
        if asked.target is not None:
            loss = row.loss(asked.target)
            gradient, of_logits = torch.autograd.grad(loss, [row.normalized, given])
        answers[name] = {
            "p": _spelled(row.p),
            "logprobs": _spelled(row.logprobs),
            "entropy": _spelled(row.entropy),
            "support": int((row.p > 0).sum()),
            "loss": _spelled(loss),
            "gradient": _spelled(gradient),
            "logit_gradient": _spelled(of_logits),
        }
    return answers


def _spelled(x: Any) -> Any:
    """A tensor as lists of numbers, each the shortest that is the same float32; None stays."""
    if x is None:
        return None
    values = [
        float(str(value)) if np.isfinite(value) else str(value) for value in x.detach().float().reshape(-1).numpy()
    ]
    return values if x.ndim else values[0]
