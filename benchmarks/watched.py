"""A grpo-server that writes to stderr, at SIGUSR1, how many asyncio tasks it has: what no file below /proc tells.

python -m benchmarks.watched --model demo
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from types import FrameType

from grpo_server.cli import main

MARK = "asyncio tasks: "


def tell(signal_number: int, frame: FrameType | None) -> None:
    """Runs between two steps of the main thread, which is the event loop's; nothing while that has none."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return
    os.write(sys.stderr.fileno(), f"{MARK}{len(tasks)}\n".encode())


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    sys.exit(main())
