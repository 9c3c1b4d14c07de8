"""Train the networks of the grokking experiments, and see where generalisation comes late, at once or never.

    python -m examples.grokking --list                                       the experiments and their settings
    python -m examples.grokking addition-plain addition-orthogonal           about a minute; the first thing to try
    python -m examples.grokking addition-orthogonal --seeds 0 1 2            three seeds of one
    python -m examples.grokking addition-orthogonal --lr 0.003 --epochs 1000 the same with another setting
    python -m examples.grokking.plots runs/grokking                          figures of what there is so far
    python -m examples.grokking.bars runs/grokking                           the claims, measured

What to look at. `test` is the accuracy on the part of the table that was never shown. `zeros` is the share of training
rows whose loss is exactly 0. Their target's logit has no gradient any more; what is left of it only pushes the other
logits down, and nothing is learned, however many epochs follow. That is softmax collapse. An orthogonal gradient,
StableMax and the collapse-free loss each avoid it, and `test` goes on rising.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .experiments import Experiment, catalogue
from .results import path_of, read, write, writing
from .train import run

OVERRIDES = {"epochs": int, "lr": float, "fraction": float, "modulus": int, "noise": int, "width": int}


def main(argv: list[str] | None = None) -> None:
    known = catalogue()
    options = parser()
    args = options.parse_args(argv)
    console = Console()
    if args.list or not args.experiments:
        console.print(table(list(known.values())))
        return
    if unknown := set(args.experiments) - known.keys():
        options.error(f"no such experiment: {', '.join(sorted(unknown))} (--list shows them)")
    torch.set_num_threads(args.threads)
    given = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None}
    chosen = [replace(known[name], **given) for name in args.experiments]
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for experiment in chosen:
            for seed in args.seeds:
                path = path_of(args.output, experiment, seed)
                if args.keep and path.exists() and read(path).complete:
                    continue
                train(experiment, seed, path, progress)


def train(experiment: Experiment, seed: int, path: Path, progress: Progress) -> None:
    """One run into one file, with a bar that shows its latest record."""
    bar = progress.add_task(experiment.name, total=experiment.epochs)
    with writing(path, experiment, seed) as file:
        for record in run(experiment, seed):
            write(file, record)
            figures = f"train {record['train']:6.1%}  test {record['test']:6.1%}  zeros {record['zero_share']:6.1%}"
            progress.update(bar, completed=record["epoch"], description=f"{experiment.name} {seed}  {figures}")


def table(experiments: list[Experiment]) -> Table:
    """What there is to run; ⟂ stands for the orthogonal gradient."""
    shown = Table("experiment", "loss", "optimizer, lr", "part", "epochs", box=SIMPLE, collapse_padding=True)
    for e in experiments:
        optimizer = f"{'⟂' if e.orthogonal else ''}{e.optimizer} {e.lr:g}"
        shown.add_row(e.name, e.loss, optimizer, f"{e.fraction:.0%}", str(e.epochs))
    return shown


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m examples.grokking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("experiments", nargs="*", metavar="NAME", help="experiments to run; none: show the list")
    made.add_argument("--list", action="store_true", help="show the experiments and end")
    made.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="a seed draws the split and the weights (default: 0)"
    )
    made.add_argument("--output", type=Path, default=Path("runs/grokking"), help="directory of the JSON-lines files")
    made.add_argument("--keep", action="store_true", help="leave out the runs that are complete in that directory")
    made.add_argument("--threads", type=int, default=1, help="torch threads; these matrices gain little from more")
    other = made.add_argument_group("other settings, for every experiment named")
    other.add_argument("--epochs", type=int, help="full-batch steps")
    other.add_argument("--lr", type=float, help="learning rate: higher brings collapse, and grokking, earlier")
    other.add_argument("--fraction", type=float, help="share of the table to train on: less makes grokking later")
    other.add_argument("--modulus", type=int, help="size of the table's sides (a prime); 23 trains in seconds")
    other.add_argument("--noise", type=int, help="sparse parity: bits that say nothing; each one more makes it harder")
    other.add_argument("--width", type=int, help="of both hidden layers")
    return made


if __name__ == "__main__":
    main()
