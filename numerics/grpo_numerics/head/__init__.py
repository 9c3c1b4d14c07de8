"""The LM head and the normalizer in one pass: log-probs straight from hidden states, with gradient or without.

score      figures of rows without gradient        autograd, gradient   the same with gradient
spec       what a head is, how large its tiles     online               log-sum-exp, block by block
tiles      logits, a tile at a time, by torch      triton               the same by Triton's kernels
figures    what is told of a row, from its sums
choice     which of the two computes
"""

from .autograd import fused_logprobs
from .figures import HeadScores
from .online import OnlineLogSumExp
from .score import score_rows
from .spec import HeadSpec, Tile, default_tile, scratch_bytes

__all__ = [
    "HeadScores",
    "HeadSpec",
    "OnlineLogSumExp",
    "Tile",
    "default_tile",
    "fused_logprobs",
    "score_rows",
    "scratch_bytes",
]
