"""HTTP in and out: the native routes and an operator's corners here, other projects' formats in `dialects`. A route translates,
and leaves the work to `Scoring`.

To add one, add a module with a `router: APIRouter` and its line below.
"""

from __future__ import annotations

from fastapi import APIRouter


def routers(*, inspector: bool = True) -> list[APIRouter]:
    """Every router, in the order in which the OpenAPI document lists them. inspector: with those of /ui."""
    from . import admin, documentation, health, metrics, native, reference, references, tokenizer, uploads
    from .dialects import open_inference, openai, sglang, trl_legacy, vllm
    from .dialects.simple_grpo import route as simple_grpo
    from .ui import findings, numerics, pages, pieces, runs

    native_first = (native, reference, tokenizer, health, metrics, documentation, admin, references, uploads)
    dialects = (openai, vllm, sglang, open_inference, trl_legacy, simple_grpo)
    ui = (pages, pieces, findings, numerics, runs) if inspector else ()
    return [module.router for module in (*native_first, *dialects, *ui)]
