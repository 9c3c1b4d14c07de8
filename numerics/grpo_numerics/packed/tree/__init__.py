"""Attention over the prefix tree of a packed stream as Triton kernels, for CUDA devices, forward and backward.

`segments` is the tree as arrays, `schedule` the tables that the kernels read and `plan` their way to a device, `forward` and
`backward` the kernels, `op` the operator that torch knows, `choice` who uses it. The kernels need Triton, this does not.
"""

from .op import tree_attention
from .plan import Ask, TreePlan
from .schedule import KeyTables, QueryTables
from .segments import Tree

__all__ = ["Ask", "KeyTables", "QueryTables", "Tree", "TreePlan", "tree_attention"]
