"""Peak memory of the server process above its loaded weights, for requests whose logits would not fit.

python -m benchmarks.memory            32,768 completion tokens (logits: 6 GB), and 64 x (512 + 128)
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from grpo_client import ReferenceClient
from rich.console import Console

from .contenders import server
from .workloads import Workload

CASES = (
    Workload("64 x (512+128)", 1, 64, (512, 512), (128, 128)),
    Workload("32,768 completion tokens", 8, 16, (64, 64), (256, 256)),
)


def _status(pid: int, field: str) -> float:
    """MB of a line of /proc/PID/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def main() -> None:
    console = Console()
    for case in CASES:
        with server() as (url, pid), ReferenceClient(url, timeout=1800) as client:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak of loading
            loaded, start = _status(pid, "VmRSS"), time.perf_counter()
            result = client.score_request(case.request())
            peak = _status(pid, "VmHWM")
            console.print(
                f"{case.name}: loaded {loaded:.0f} MB, peak {peak:.0f} MB, [b]{peak - loaded:.0f} MB above[/b]; "
                f"{len(result.logprobs)} log-probs in {time.perf_counter() - start:.1f} s"
            )


if __name__ == "__main__":
    main()
