"""Whether a request that was built by hand holds what its fields say: `ScoreRequest.of` makes such, its constructor does not.

Decoders and `of` need no such look, so it is taken where a caller hands a whole request to a client.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from grpo_client.arguments.readers import is_array, kind_of, wrong
from grpo_client.protocol import Group, ScoreRequest
from grpo_client.text import AnyRequest, TextGroup, TextScoreRequest


def check_values(request: Any) -> AnyRequest:
    """The request. Raises ProtocolError for a field of another type than the class says."""
    if isinstance(request, ScoreRequest):
        for k, group in enumerate(request.groups):
            _check_ids(group, f"groups[{k}]")
    elif isinstance(request, TextScoreRequest):
        for k, group in enumerate(request.groups):
            _check_text(group, f"groups[{k}]")
    else:
        raise wrong("request", f"must be a ScoreRequest or a TextScoreRequest, got {kind_of(request)}")
    return request


def _check_ids(group: Group, name: str) -> None:
    vectors = [group.prompt, *_tuple(group.completions, f"{name}.completions")]
    if not all(_is_ids(ids, 1) for ids in vectors):
        raise wrong(name, "must hold int32 arrays of one dimension; ScoreRequest.of makes them from lists")
    wanted = () if group.token_ids is None else _tuple(group.token_ids, f"{name}.token_ids")
    if not all(_is_ids(ids, 2) for ids in wanted):
        raise wrong(name, "must hold token_ids as int32 arrays (C, k); ScoreRequest.of makes them from lists")
    masks = () if group.completion_mask is None else _tuple(group.completion_mask, f"{name}.completion_mask")
    if not all(is_array(mask) and mask.dtype == np.bool_ and mask.ndim == 1 for mask in masks):
        raise wrong(name, "must hold completion_mask as bool arrays (C,); ScoreRequest.of makes them from lists")


def _check_text(group: TextGroup, name: str) -> None:
    prompt: Any = group.prompt
    if not isinstance(prompt, str):
        _tuple(prompt, f"{name}.prompt", "a string, or a tuple of chat messages")
    for g, completion in enumerate(_tuple(group.completions, f"{name}.completions")):
        if not isinstance(completion, str):
            raise wrong(f"{name}.completions[{g}]", f"must be a string, got {kind_of(completion)}")


def _tuple(value: Any, name: str, of: str = "a tuple with one entry per completion") -> Any:
    if not isinstance(value, tuple | list):
        raise wrong(name, f"must be {of}, got {kind_of(value)}")
    return cast(Any, value)


def _is_ids(value: Any, dimensions: int) -> bool:
    return is_array(value) and value.dtype == np.int32 and value.ndim == dimensions
