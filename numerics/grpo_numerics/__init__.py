"""Tensor maths of log-probs: stable, tiled, packed, with gradient. Needs torch and nothing else of this project."""

from .head import HeadScores, score_rows
from .head_autograd import fused_logprobs
from .head_tiles import HeadSpec, Tile, default_tile, scratch_bytes
from .online import OnlineLogSumExp
from .stable import entropy, log_softmax, logsumexp, softmax, token_logprobs
from .stablemax import log_stablemax, stablemax, stablemax_cross_entropy
from .transforms import Normalizer, symlog

__all__ = [
    "HeadScores",
    "HeadSpec",
    "Normalizer",
    "OnlineLogSumExp",
    "Tile",
    "default_tile",
    "entropy",
    "fused_logprobs",
    "log_softmax",
    "log_stablemax",
    "logsumexp",
    "score_rows",
    "scratch_bytes",
    "softmax",
    "stablemax",
    "stablemax_cross_entropy",
    "symlog",
    "token_logprobs",
]
