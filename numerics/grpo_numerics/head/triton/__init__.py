"""The fused head as Triton kernels, forward and backward, for CUDA devices; `head.choice` says when they are used.

Importing this needs Triton. What the kernels cost and how they were checked without a GPU: docs/kernels.md.
"""

from .gradient import TritonGradient
from .scoring import block_scores
from .tiles import TritonTiles

__all__ = ["TritonGradient", "TritonTiles", "block_scores"]
