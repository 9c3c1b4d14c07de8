"""The command `grpo-train`: a GRPO run from a YAML file, against a reference server.

    grpo-train --config examples/arithmetic.yaml --set optimizer.lr=1e-5 --output runs/mine
    grpo-train --config examples/arithmetic.yaml --output runs/mine --resume

Ends with status 0 when the run is done, 2 when it was told something impossible, 1 when the reference, a rollout server, a
checkpoint or the disk failed it, and when no step changed a weight. Errors and the log go to stderr.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from grpo_client import tracing
from grpo_client.version import package_version
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from grpo_training.config import TrainConfig, load_config
from grpo_training.redaction import ScrubbingFilter
from grpo_training.run.ending import explained

# Figures of the summary that the terminal shows at the end.
_SHOWN = ("reward_first", "reward_last", "reward_gain", "correct_last", "kl_last", "kl_max", "step_s_median")
_SHOWN += ("reference_wait_share",)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"grpo-train {package_version()}")
        raise typer.Exit


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML; docs/training.md explains every field.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Directory of the run.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint, if there is one.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start again in a directory that already holds a run.")] = False,
    steps: Annotated[int | None, typer.Option(help="Total number of steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    reference_url: Annotated[list[str] | None, typer.Option(help="URL of a reference server; may be repeated.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Set any field; may be repeated.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log decisions made along the way.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a policy with GRPO against a frozen reference that a grpo-server holds."""
    console, errors = Console(), Console(stderr=True)
    show_log(errors, verbose=verbose)
    given: dict[str, Any] = {"trainer.output": output, "trainer.steps": steps, "trainer.seed": seed}
    given["reference.urls"] = tuple(reference_url) if reference_url else None
    with explained(errors):
        settings = load_config(config, set_ or (), values={k: v for k, v in given.items() if v is not None})
    with explained(errors, settings):
        run_with_display(settings, console, resume=resume, overwrite=overwrite)


def show_log(console: Console, *, verbose: bool) -> None:
    """Warnings of all, and what takes time or is waited for; with `verbose` all that is decided. No secret shows."""
    handler = RichHandler(console=console, show_path=False)
    handler.addFilter(ScrubbingFilter())
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", handlers=[handler])
    for name in ("grpo_training.run.setup", "grpo_client"):
        logging.getLogger(name).setLevel(logging.INFO)


def run_with_display(
    config: TrainConfig, console: Console, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Train with live progress, then print the summary and where everything lies."""
    # Torch and transformers take seconds to import; `--help` and a misspelt field need neither.
    from grpo_numerics.heap import keep_freed_pages
    from transformers.utils.logging import disable_progress_bar

    from grpo_training.distributed import is_main_process
    from grpo_training.report.page import NOT_MEASURED
    from grpo_training.run.loop import train
    from grpo_training.run.progress import Display

    keep_freed_pages()
    disable_progress_bar()  # two bars at once make a mess of each other
    with Display(console if is_main_process() else Console(quiet=True)) as display:
        summary = train(config, resume=resume, overwrite=overwrite, observer=display)
    if not is_main_process():
        return summary
    table = Table(box=None, show_header=False, padding=(0, 2))
    taught = [name for name in summary if name.startswith("distill_") and name.endswith("_last")]
    for name in [*_SHOWN, *taught]:
        value = summary[name]
        table.add_row(name.replace("_", " "), NOT_MEASURED if value is None else f"{value:.4g}")
    console.print(table)
    console.print(f"report: {config.trainer.output / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    return summary


def main() -> None:
    """Entry point."""
    tracing.configure("grpo-train")
    app()
