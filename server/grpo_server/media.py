"""Tokens that stand for an image, a video or sound: refused by name, because the reference is asked about text alone.

A model that sees replaces them by what it saw. Without that they are embeddings that no training ever met, and their log-probs
numbers without a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from grpo_client.protocol import ScoreRequest

from grpo_server.errors import ErrorCode, ServiceError


def refuse_media(request: ScoreRequest, media: Mapping[int, str]) -> None:
    """Raises ServiceError (422) for an id in `media`, in a prompt or a completion, where ids are its keys."""
    if not media:
        return
    known = np.array(sorted(media))
    for k, group in enumerate(request.groups):
        named = {"prompt": group.prompt} | {f"completions[{g}]": c for g, c in enumerate(group.completions)}
        for name, ids in named.items():
            if (found := ids[np.isin(ids, known)]).size:
                token = int(found[0])
                raise ServiceError(
                    ErrorCode.INVALID_VALUE,
                    f"groups[{k}].{name} holds the id {token}, which stands for {_an(media[token])}: this reference scores "
                    f"text alone; leave out the sequences with {media[token]} tokens",
                    param=f"groups[{k}].{name}",
                )


def _an(medium: str) -> str:
    return f"an {medium}" if medium[0] in "aeiou" else f"a {medium}"
