"""Tensor maths of log-probs: stable, tiled, packed, with gradient. Needs torch and nothing else of this project."""

from typing import TYPE_CHECKING

from .collapse_free import collapse_free_cross_entropy, collapse_free_log_softmax
from .head.autograd import fused_logprobs
from .head.chosen import ChosenLogprobs, fused_chosen_logprobs
from .head.figures import HeadScores
from .head.online import OnlineLogSumExp
from .head.score import score_rows
from .head.spec import HeadSpec, Tile, default_tile, scratch_bytes
from .kl import KlKind, kl_estimate
from .sparse import entmax15, entmax15_loss, sparsemax, sparsemax_loss
from .stable import entropy, log_softmax, logsumexp, softmax, token_logprobs
from .stablemax import log_stablemax, stablemax, stablemax_cross_entropy
from .transforms import Normalizer, symlog

__all__ = [
    "ChosenLogprobs",
    "HeadScores",
    "HeadSpec",
    "KlKind",
    "Normalizer",
    "OnlineLogSumExp",
    "Tile",
    "collapse_free_cross_entropy",
    "collapse_free_log_softmax",
    "default_tile",
    "entmax15",
    "entmax15_loss",
    "entropy",
    "fused_chosen_logprobs",
    "fused_logprobs",
    "kl_estimate",
    "log_softmax",
    "log_stablemax",
    "logsumexp",
    "score_rows",
    "scratch_bytes",
    "softmax",
    "sparsemax",
    "sparsemax_loss",
    "stablemax",
    "stablemax_cross_entropy",
    "symlog",
    "token_logprobs",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when it is asked for."""
        if name == "__version__":
            from importlib.metadata import version

            return version("grpo-refserver")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
