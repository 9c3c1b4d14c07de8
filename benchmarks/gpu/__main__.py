"""Everything that is claimed of one GPU, in stages in order of value, each line a JSON object as soon as it is known.

    python -m benchmarks.gpu                       all stages on cuda:0, under nine minutes
    python -m benchmarks.gpu attention head        these
    python -m benchmarks.gpu --device cpu --tiny   the same code on shapes that a test can afford

Each stage is a process of its own under its own limit: what crashes, hangs or runs out of memory there costs its own lines,
which then hold `error`, and the next stage runs. Lines go to standard output and, with --out, to a file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_server.engine import environment

from .stages import STAGES, Stage

# Below the limit of a stage it ends itself; a process that does not is ended this much later.
_GRACE_S = 15.0
Tell = Callable[[Mapping[str, Any]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a machine without a GPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together")
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    parser.add_argument("--within", type=float, metavar="SECONDS", help=argparse.SUPPRESS)  # run one stage, here
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.stages) - set(STAGES)):
        parser.error(f"there is no stage called {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if asked.within is not None:
        environment.set_environment(STAGES[asked.stages[0]].mode)  # before CUDA starts: workspaces, allocator
        return here(STAGES[asked.stages[0]], asked.device, asked.tiny, asked.within, _tell)
    tell = telling(asked.out)
    start, failed = time.monotonic(), []
    for stage in [s for name, s in STAGES.items() if name in (asked.stages or STAGES)]:
        left = asked.minutes * 60 - (time.monotonic() - start)
        if left < 5.0:
            tell({"stage": stage.name, "error": "no time left; run it by itself"})
        else:
            limit_s = min(stage.limit_s, left)
            if apart(command(stage, asked.device, asked.tiny, limit_s), stage.name, limit_s + _GRACE_S, tell) == 0:
                continue
        failed.append(stage.name)
    tell({"stage": "all", "seconds": round(time.monotonic() - start, 1), "failed": failed})
    return 1 if failed else 0


def command(stage: Stage, device: str, tiny: bool, limit_s: float) -> list[str]:
    """One stage as a process."""
    flags = ["--device", device, "--within", f"{limit_s:.0f}", *(["--tiny"] if tiny else [])]
    return [sys.executable, "-m", "benchmarks.gpu", stage.name, *flags]


def apart(process: Sequence[str], stage: str, limit_s: float, tell: Tell) -> int:
    """Run a stage in its process and pass its lines on. Its exit code; 1 where it had to be ended after `limit_s`."""
    with subprocess.Popen(process, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        late = threading.Event()
        timer = threading.Timer(limit_s, lambda: (late.set(), running.kill()))
        timer.start()
        for line in running.stdout:
            if line.startswith("{"):
                tell(json.loads(line))
        code = running.wait()
        timer.cancel()
    if late.is_set():
        tell({"stage": stage, "error": f"ended after {limit_s:.0f} seconds"})
        return 1
    if code not in (0, 1):
        tell({"stage": stage, "error": f"the process ended with code {code}"})
    return code


def here(stage: Stage, device: str, tiny: bool, limit_s: float, tell: Tell) -> int:
    """Run a stage in this process. What it raises is its last line: whatever a device can do to it is an answer."""
    from .bench import Bench

    start = time.monotonic()
    try:
        bench = Bench.on(device, tiny, deadline=start + limit_s)
        for line in stage.run()(bench):
            tell({"stage": stage.name, "s": round(time.monotonic() - start, 1), **line})
            if time.monotonic() - start > limit_s:
                tell({"stage": stage.name, "error": f"cut off after {limit_s:.0f} seconds"})
                return 1
    except Exception as error:  # noqa: BLE001
        text = " ".join(str(error).split())[:500]
        tell({"stage": stage.name, "error": f"{type(error).__name__}: {text}"})
        return 1
    return 0


def telling(path: Path | None) -> Tell:
    """Prints a line, and appends it to the file."""

    def tell(line: Mapping[str, Any]) -> None:
        _tell(line)
        if path is not None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return tell


def _tell(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
