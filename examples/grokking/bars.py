"""The claims of docs/grokking.md, measured on the runs of a directory: what was wanted, what was seen.

    python -m examples.grokking.bars docs/results/grokking
    python -m examples.grokking.bars runs/grokking --markdown      the table of the page

A claim about several seeds shows the weakest of them. Ends with 1 when a claim fails or its runs are not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .results import Run, load, named


@dataclass(frozen=True)
class Bar:
    """A figure of some runs, and the bound that it has to keep."""

    claim: str
    names: tuple[str, ...]
    figure: Callable[..., float]
    """Of one run of each name, all of the same seed."""
    least: float | None = None
    most: float | None = None

    def judge(self, runs: Iterable[Run]) -> tuple[int, float, bool]:
        """Number of seeds for which every named run is there, the worst figure, and whether the bound is kept."""
        by_seed = [{run.seed: run for run in named(runs, name)} for name in self.names]
        seeds = set[int](by_seed[0]).intersection(*by_seed[1:])
        figures = [self.figure(*(runs_of[seed] for runs_of in by_seed)) for seed in sorted(seeds)]
        if not figures:
            return 0, float("nan"), False
        worst = min(figures) if self.least is not None else max(figures)
        kept = (self.least is None or worst >= self.least) and (self.most is None or worst <= self.most)
        return len(figures), worst, kept

    @property
    def bound(self) -> str:
        return f"at least {self.least:.0%}" if self.least is not None else f"at most {self.most:.0%}"


def bars() -> list[Bar]:
    """Every claim that the page makes."""
    return [
        _at("addition-orthogonal", 150, least=0.95),
        _best("addition-plain", most=0.05),
        _ahead("addition-70-collapse-free", "addition-70-plain", 4000, least=0.15),
        _ahead("addition-70-stablemax", "addition-70-plain", 2000, least=0.15),
        _at("multiplication-orthogonal", 150, least=0.95),
        _best("multiplication-plain", most=0.05),
        _at("parity-orthogonal", 4000, least=0.95),
        _at("parity-stablemax", 4000, least=0.95),
        _best("parity-plain", most=0.70),
    ]


def _at(name: str, epoch: int, *, least: float) -> Bar:
    return Bar(f"{name}: test accuracy at epoch {epoch}", (name,), lambda run: run.at(epoch), least=least)


def _best(name: str, *, most: float) -> Bar:
    return Bar(f"{name}: best test accuracy of the run", (name,), lambda run: max(run.column("test")[1]), most=most)


def _ahead(name: str, other: str, epoch: int, *, least: float) -> Bar:
    claim = f"{name} ahead of {other}, test accuracy at epoch {epoch}"
    return Bar(claim, (name, other), lambda run, beaten: run.at(epoch) - beaten.at(epoch), least=least)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the runs are")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    runs = load(args.directory)
    judged = [(bar, *bar.judge(runs)) for bar in bars()]
    rows = [
        (
            bar.claim,
            bar.bound,
            f"{worst:.1%}" if seeds else "",
            str(seeds),
            "yes" if kept else "NO" if seeds else "not run",
        )
        for bar, seeds, worst, kept in judged
    ]
    headings = ("claim", "wanted", "seen", "seeds", "kept")
    if args.markdown:
        print("\n".join("| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)))
    else:
        shown = Table(*headings)
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)
    sys.exit(0 if all(kept for *_, kept in judged) else 1)


if __name__ == "__main__":
    main()
