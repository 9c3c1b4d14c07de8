"""SGLang's `token_ids_logprob_positions`: for every position of the input a list of ids of its own, [] where nothing is asked.

Indexed by the position of the token that is predicted, from the first of the input on. A lone prompt has [position][id],
several have [prompt][position][id]. In a request to the engine all rows are as long as the longest, filled up with PAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from grpo_client.masking import PAD
from grpo_client.protocol import IntArray
from pydantic import Discriminator, Field, Tag

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.routes._bodies import Ids

FIELD = "token_ids_logprob_positions"
Rows = list[IntArray]


def _form(value: Any) -> str:
    entries = value if isinstance(value, list) else []
    nested = any(isinstance(e, list) and len(e) and isinstance(e[0], list | np.ndarray) for e in entries)
    return "prompts" if nested else "prompt"


AskedPositions = Annotated[
    Annotated[list[Ids], Field(fail_fast=True), Tag("prompt")]
    | Annotated[list[list[Ids]], Field(fail_fast=True), Tag("prompts")],
    Discriminator(_form),
]


def rows_of_prompts(asked: Any, lengths: Sequence[int], *, single: bool) -> list[Rows]:
    """The lists of each prompt. Raises ServiceError (422) unless there is one for each of its positions."""
    every: list[Rows] = [asked] if single else asked
    if (_form(asked) == "prompts") == single or len(every) != len(lengths):
        what = "one list of ids per position" if single else "for each prompt one list of ids per position"
        raise _wrong(f"must hold {what}, as input_ids does; [] where nothing is asked")
    for i, (rows, length) in enumerate(zip(every, lengths, strict=True)):
        if len(rows) != length:
            raise _wrong(f"has {len(rows)} lists for the {length} tokens of input_ids[{i}]; give one each, [] for none")
    return every


def table(rows: Rows, first: int, width: int) -> IntArray:
    """(n - first, width) ids of the positions from `first` on."""
    out = np.full((len(rows) - first, width), PAD, dtype=np.int32)
    for row, ids in zip(out, rows[first:], strict=True):
        row[: len(ids)] = ids
    return out


def _wrong(what: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_VALUE, f"{FIELD} {what}", param=FIELD)
