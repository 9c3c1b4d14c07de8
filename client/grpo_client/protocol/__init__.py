"""The message that client and server share: what is asked, what comes back, and how each is shaped.

Values only: how they travel is in `wire_json` and `wire_tensors`; nothing here does I/O. All token arrays are flat
int32 vectors with lengths beside them, so that a request of ten thousand sequences is five arrays and not ten
thousand lists. Order is everywhere the caller's: group by group, completion by completion, token by token.

Shape letters: K groups, S completions over all groups, N completion tokens over all completions.
"""

from grpo_client.protocol.figures import (
    EXTRA_ARRAYS,
    MAY_BE_NOTHING,
    PER_ID,
    figure_dtype,
    figure_shapes,
    put_rounded,
    rounded,
)
from grpo_client.protocol.names import (
    EXTRAS,
    HIDDEN,
    MEDIA_JSON,
    MEDIA_TENSORS,
    NORMALIZERS,
    ROUTE_LOGPROBS,
    ROUTE_REFERENCE,
    ROUTE_REFERENCES,
    TOP_DTYPES,
    Extra,
    FloatArray,
    IntArray,
    Normalizer,
    Status,
    TopDtype,
)
from grpo_client.protocol.request import Group, ScoreRequest
from grpo_client.protocol.result import CompletionScores, ReferenceInfo, ScoreResult, Usage

__all__ = [
    "EXTRAS",
    "EXTRA_ARRAYS",
    "HIDDEN",
    "MAY_BE_NOTHING",
    "MEDIA_JSON",
    "MEDIA_TENSORS",
    "NORMALIZERS",
    "PER_ID",
    "ROUTE_LOGPROBS",
    "ROUTE_REFERENCE",
    "ROUTE_REFERENCES",
    "TOP_DTYPES",
    "CompletionScores",
    "Extra",
    "FloatArray",
    "Group",
    "IntArray",
    "Normalizer",
    "ReferenceInfo",
    "ScoreRequest",
    "ScoreResult",
    "Status",
    "TopDtype",
    "Usage",
    "figure_dtype",
    "figure_shapes",
    "put_rounded",
    "rounded",
]
