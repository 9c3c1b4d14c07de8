"""Stands where the SAT solver pycosat could not be compiled. It can be imported; solving says how to get the real one."""

from collections.abc import Iterable, Iterator
from typing import NoReturn


def solve(clauses: Iterable[Iterable[int]]) -> NoReturn:
    _refuse()


def itersolve(clauses: Iterable[Iterable[int]]) -> Iterator[list[int]]:
    _refuse()


def _refuse() -> NoReturn:
    raise RuntimeError(
        "this task needs the SAT solver pycosat, which could not be compiled when this environment was made; install a "
        "C compiler and Python's headers, then type: pip install --force-reinstall --no-deps pycosat==0.6.6"
    )
