"""The whole thing in a few minutes: `python -m grpo_training.demo`, or `make demo`.

Starts a real reference server (a process of its own, spoken to over HTTP), scores a few sentences there, trains the
demo model against it on sums with live progress, writes the report, and stops the server; it ends with the command that shows
the run in the inspector. The settings are those of examples/arithmetic.yaml; nothing in here is a mock.
"""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from grpo_client import ConnectionFailed, DeadlineExceeded, ReferenceClient, ScoreResult, Unavailable
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_training.cli import run_with_display, show_log
from grpo_training.config import load_config
from grpo_training.disk import check_writable
from grpo_training.run.ending import explained

_START_S = 600.0  # unpacking the demo model for the first time takes a while on a slow disk
_STOP_S = 30.0

# Endings from right to absurd, and the demo model thinks so too.
_SENTENCES = (
    ("The capital of France is", (" Paris.", " Rome.", " purple.")),
    ("The opposite of hot is", (" cold.", " warm.", " Monday.")),
    ("Water freezes at zero degrees", (" Celsius.", " Fahrenheit.", " Tuesday.")),
)

# By then the reward stands where it stays; five minutes of CPU time.
STEPS = 60

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class ServerDied(RuntimeError):
    """The reference server ended before it was ready; the message holds the end of its log."""


@contextmanager
def reference_server(model: str, log: Path, console: Console, *, runs: Path) -> Iterator[str]:
    """A `grpo-server` on a free port, ready, for as long as the block lasts; yields its URL. Its inspector shows `runs`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("grpo-server")),
        "--model",
        model,
        "--port",
        str(port),
        "--share-cores",
        "--runs",
        str(runs),
    ]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        try:
            with console.status(f"starting {' '.join(['grpo-server', *command[1:]])}"):
                _wait_ready(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Ask until the server is ready; find out when its process has ended instead."""
    waited = 0.0
    with ReferenceClient(url) as client:
        while waited < _START_S:
            try:
                client.wait_ready(timeout=5.0)
            except (DeadlineExceeded, ConnectionFailed, Unavailable):
                waited += 5.0
            else:
                return
            if process.poll() is not None:
                break
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    raise ServerDied(f"the reference server did not become ready; {log} ends with:\n{tail}")


def show_scores(url: str, console: Console) -> None:
    """Score the sentences in one request and print what each costs the reference."""
    with ReferenceClient(url) as client:
        info = client.info()
        result = client.score_text([prompt for prompt, _ in _SENTENCES], [list(ends) for _, ends in _SENTENCES])
    console.print(
        f"[bold]{info.model}[/bold] ({info.dtype}, {info.mode}) at {url}, fingerprint {info.fingerprint[:12]}…",
        highlight=False,
    )
    console.print(_score_table(result))


def _score_table(result: ScoreResult) -> Table:
    table = Table(title="log p of each ending, by the reference server")
    table.add_column("sentence")
    table.add_column("tokens", justify="right")
    table.add_column("log p", justify="right")
    table.add_column("of each token")
    for (prompt, ends), group in zip(_SENTENCES, result.groups(), strict=True):
        best = max(float(scores.logprobs.sum()) for scores in group)
        for end, scores in zip(ends, group, strict=True):
            total = float(scores.logprobs.sum())
            table.add_row(
                f"[dim]{prompt}[/dim]{end}",
                str(len(scores.logprobs)),
                f"{total:.2f}",
                "  ".join(f"{value:.2f}" for value in scores.logprobs),
                style="bold" if total == best else None,
            )
        table.add_section()
    return table


def page_of(output: Path) -> str:
    """Path and fragment of the inspector's page of this run."""
    return f"/ui/runs#runs={quote(output.absolute().name)}"


def serving_command(model: str, output: Path) -> str:
    """The command that serves the reference and shows the run, as one types it where the demo was started."""
    return shlex.join(["grpo-server", "--model", model, "--runs", str(output.parent)])


def tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the report, metrics and logs go.")] = Path("runs/demo"),
    config: Annotated[Path, typer.Option(help="Settings of the run.")] = Path("examples/arithmetic.yaml"),
    steps: Annotated[int, typer.Option(help="Steps; fewer for a quick look.")] = STEPS,
    seed: Annotated[int, typer.Option(help="Another seed, another run.")] = 0,
) -> None:
    """Start a reference server, score real sentences, train against it, write a report."""
    console, errors = Console(), Console(stderr=True)
    show_log(errors, verbose=False)
    told = {"trainer.output": output, "trainer.seed": seed, "trainer.steps": steps}
    try:
        with explained(errors):
            settings = load_config(config, values=told)
            check_writable(output)
            runs = output.absolute().parent
            with reference_server(settings.model.name, output / "server.log", console, runs=runs) as url:
                show_scores(url, console)
                tell(console, f"watch it in a browser: {url}{page_of(output)}")
                here = settings.reference.model_copy(update={"urls": (url,)})
                run_with_display(settings.model_copy(update={"reference": here}), console, overwrite=True)
            tell(console, f"in a browser: {serving_command(settings.model.name, output)}")
            tell(console, f"and open http://localhost:8000{page_of(output)}")
    except ServerDied as error:
        errors.print(Text(str(error), "red"), soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
