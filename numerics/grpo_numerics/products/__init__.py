"""Linear layers whose rows have the same bits in any company: for devices whose own products choose a kernel by the number of
rows.

Two ways, slower than the device's own by little: `slabs` cuts the rows into products of one height, on any device; `kernel`
is one Triton program a tile, with a shape that never looks at the rows, for NVIDIA GPUs.
"""

from .choice import fixed_linear, runs_kernel
from .grouped import ExpertRows, expert_rows, grouped_linear, runs_grouped
from .slabs import CPU_SLAB, GPU_SLAB, linear_in_slabs

__all__ = [
    "CPU_SLAB",
    "GPU_SLAB",
    "ExpertRows",
    "expert_rows",
    "fixed_linear",
    "grouped_linear",
    "linear_in_slabs",
    "runs_grouped",
    "runs_kernel",
]
