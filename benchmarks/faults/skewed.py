"""Run a module in a process whose wall clock jumps by up to a day, either way, every time it is read. Monotonic clocks go on.

python -m benchmarks.faults.skewed grpo_server --model demo
"""

from __future__ import annotations

import random
import runpy
import sys
import time

DAY = 86_400.0


def main() -> None:
    right, rng = time.time, random.Random(0)
    time.time = lambda: right() + rng.uniform(-DAY, DAY)
    time.time_ns = lambda: int(1e9 * time.time())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
