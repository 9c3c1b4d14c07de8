"""Freed memory is kept: a tensor that is made and dropped again and again is not paged in anew each time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from grpo_numerics.heap import keep_freed_pages
assert sys.argv[1] == "as it is" or keep_freed_pages()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(12 << 20).fill_(1.0)  # 48 MiB: more than malloc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
def test_a_large_tensor_is_paged_in_once() -> None:
    assert faults("kept") < 1000 < faults("as it is")  # 12,288 pages each time
