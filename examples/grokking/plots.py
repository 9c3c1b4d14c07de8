"""The figures of docs/grokking.md, from the runs of a directory; experiments that are not there are left out.

python -m examples.grokking.plots docs/results/grokking --output docs/images
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from .results import Run, load, named

INCHES = (9.0, 3.4)
DPI = 90


@dataclass(frozen=True)
class Line:
    """One experiment in a panel. Colour and width are the method's, the same in every figure."""

    experiment: str
    label: str
    colour: str
    width: float = 1.6


@dataclass(frozen=True)
class Panel:
    title: str
    lines: tuple[Line, ...]
    figure: str = "test"
    with_train: bool = True
    """Draw the training accuracy as well, dashed: what is between the two lines is the delay."""


def plain(experiment: str, label: str = "softmax, plain gradient") -> Line:
    return Line(experiment, label, "tab:orange", width=3.2)  # seen even where another line lies on it


def orthogonal(experiment: str, label: str = "softmax, orthogonal gradient") -> Line:
    return Line(experiment, label, "tab:blue")


def stablemax(experiment: str, label: str = "StableMax") -> Line:
    return Line(experiment, label, "tab:green")


def free(experiment: str, label: str = "collapse-free softmax") -> Line:
    return Line(experiment, label, "tab:purple")


def figures() -> dict[str, tuple[Panel, ...]]:
    """File name -> panels, side by side."""
    losses = (
        plain("addition-70-plain", "softmax"),
        free("addition-70-collapse-free"),
        stablemax("addition-70-stablemax"),
    )
    bits = tuple(
        line(f"parity-{name}")
        for line, name in (
            (plain, "plain"),
            (orthogonal, "orthogonal"),
            (stablemax, "stablemax"),
            (free, "collapse-free"),
        )
    )
    return {
        "grokking-orthogonal.png": (
            Panel("addition mod 113, 40 % trained on", (plain("addition-plain"), orthogonal("addition-orthogonal"))),
            Panel(
                "multiplication mod 113, 40 % trained on",
                (plain("multiplication-plain"), orthogonal("multiplication-orthogonal")),
            ),
        ),
        "grokking-collapse.png": (
            Panel("addition mod 113, 70 % trained on", losses, with_train=False),
            Panel("training rows whose loss is exactly 0", losses, figure="zero_share"),
        ),
        "grokking-parity.png": (
            Panel("parity of 3 among 33 bits", bits),
            Panel("training rows whose loss is exactly 0", bits, figure="zero_share"),
        ),
    }


def draw(axes: Axes, panel: Panel, runs: list[Run]) -> bool:
    """One line a seed, one label an experiment. False when none of the panel's experiments was run."""
    drawn = False
    for line in panel.lines:
        for number, run in enumerate(named(runs, line.experiment)):
            label = line.label if number == 0 else None
            axes.plot(*run.column(panel.figure), color=line.colour, label=label, linewidth=line.width, alpha=0.85)
            if panel.figure == "test" and panel.with_train:
                axes.plot(*run.column("train"), color=line.colour, linestyle=(0, (4, 2)), linewidth=1.0, alpha=0.5)
            drawn = True
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    return drawn


def save(path: Path, panels: tuple[Panel, ...], runs: list[Run]) -> bool:
    """Write a figure; False, and no file, when there is nothing to draw in it."""
    figure, row = plt.subplots(1, len(panels), figsize=INCHES, squeeze=False, layout="constrained")
    drawn = [draw(axes, panel, runs) for axes, panel in zip(row[0], panels, strict=True)]
    dashed = ", training accuracy dashed" if panels[0].with_train else ""
    row[0][0].set_ylabel(f"test accuracy{dashed}", fontsize=9)
    if any(drawn):
        row[0][0].legend(fontsize=8, loc="best")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return any(drawn)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the runs are")
    parser.add_argument("--output", type=Path, help="where the figures go (default: beside the runs)")
    args = parser.parse_args(argv)
    plt.switch_backend("agg")
    runs = load(args.directory)
    for name, panels in figures().items():
        path = (args.output or args.directory) / name
        print(path if save(path, panels, runs) else f"{path}: nothing to draw yet")


if __name__ == "__main__":
    main()
