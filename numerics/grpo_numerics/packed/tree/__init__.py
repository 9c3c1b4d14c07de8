"""Attention over the prefix tree of a packed stream as Triton kernels, for CUDA devices, forward and backward.

`segments` is the tree as arrays, `schedule` the tables that the kernels read, `forward` and `backward` the kernels, `op` the
operator that torch knows. Importing the kernels needs Triton; importing this does not.
"""

from .op import tree_attention
from .schedule import KeyTables, QueryTables
from .segments import Tree

__all__ = ["KeyTables", "QueryTables", "Tree", "tree_attention"]
