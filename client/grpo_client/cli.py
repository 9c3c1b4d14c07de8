"""`grpo-client`: score files of rollouts, ask a server who it is, wait until it is there, probe any endpoint."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_client.bulk import LineFailed, score_lines
from grpo_client.calls import Encoding
from grpo_client.client import ReferenceClient
from grpo_client.errors import GrpoClientError
from grpo_client.pin import FIRST
from grpo_client.probe.command import PROBE_HELP, probe
from grpo_client.progress import score_progress
from grpo_client.protocol import EXTRAS, Normalizer
from grpo_client.rollouts import ScoreDefaults, numbered_lines
from grpo_client.score_file import ScoreFile
from grpo_client.validation import read_extras, read_temperature, read_top_k
from grpo_client.version import package_version

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    help="Talk to a grpo-server: per-token log-probs of completions under its frozen reference model.\n\n"
    "A server that wants a key gets the one in the environment variable GRPO_API_KEY.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"grpo-client {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """What goes before the command's name."""


Urls = Annotated[
    list[str],
    typer.Option(
        "--url", "-u", help="A server's base URL. Repeat it for several servers that host the same reference."
    ),
]

_SCORE_HELP = """
Score a file of rollouts.

The input holds one JSON object a line: one prompt and its completions, as token ids, as text, or as chat messages.
Other fields are left alone; "id" is copied to the output, "temperature" goes before --temperature.

    {"prompt": [1, 2, 3], "completions": [[4, 5, 2], [6, 2]], "id": "a"}
    {"prompt": "2 + 2 =", "completions": [" 4", " 5"]}
    {"messages": [{"role": "user", "content": "2 + 2?"}], "completions": ["4"]}

The output holds one JSON object for each line, in order: "line" (from 1), "logprobs" (a list per completion, nats),
"status", the extras asked for, and the reference's "fingerprint". For text it holds the scored ids as well.

Stopped half way? The same command with --resume goes on where it was. A line that cannot be scored is reported with its
number, the rest goes on, and the exit status is 1.

    grpo-client score -u http://localhost:8000 -i rollouts.jsonl -o scores.jsonl
    grpo-client score -u http://localhost:8000 -i rollouts.jsonl -o scores.jsonl --temperature 0.7 --return entropy,rank
    grpo-client score -u http://a:8000 -u http://b:8000 -i rollouts.jsonl -o scores.jsonl --in-flight 16 --resume
"""


@app.command(help=_SCORE_HELP)
def score(
    url: Urls,
    input: Annotated[Path, typer.Option("--input", "-i", exists=True, dir_okay=False, help="Rollouts, JSON lines.")],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="Scores, JSON lines.")],
    temperature: Annotated[float, typer.Option(help="Logits are divided by it; the one you sampled with.")] = 1.0,
    normalizer: Annotated[Normalizer, typer.Option(help="What turns logits into probabilities.")] = "softmax",
    extras: Annotated[
        list[str] | None, typer.Option("--return", help=f"More figures a token: {', '.join(EXTRAS)}; commas between.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Ids and log-probs of so many best tokens a position.")] = 0,
    encoding: Annotated[Encoding, typer.Option(help="How figures travel: tensors is small and fast.")] = "tensors",
    in_flight: Annotated[int, typer.Option(min=1, help="Requests sent at once.")] = 8,
    max_wait: Annotated[float, typer.Option(min=0, help="Seconds to keep trying while no server answers.")] = 900.0,
    resume: Annotated[
        bool | None, typer.Option("--resume/--overwrite", help="What to do with an output file that is there.")
    ] = None,
) -> None:
    console = Console(stderr=True)
    with _told(console):
        defaults = ScoreDefaults(
            temperature=read_temperature(temperature, "temperature"),
            normalizer=normalizer,
            extras=sorted(read_extras([name for names in extras or [] for name in names.split(",")])),
            top_k=read_top_k(top_k),
        )
        if resume is None and output.exists() and output.stat().st_size:
            raise ValueError(f"{output} is there already; say --resume to go on with it, or --overwrite")
        if output.exists() and output.samefile(input):
            raise ValueError("--output is the input file itself; give another one")
        with ScoreFile(output, resume=bool(resume)) as scores:
            client = ReferenceClient(
                url,
                encoding=encoding,
                max_in_flight=in_flight,
                max_wait=max_wait,
                fingerprint=scores.fingerprint or FIRST,
            )
            with client:
                failed = _score_all(client, input, scores, defaults, 2 * in_flight, console)
    if failed:
        console.print(f"[red]lines that could not be scored: {failed}[/]; mend them and run again with --resume")
        raise typer.Exit(1)


def _score_all(
    client: ReferenceClient, source: Path, scores: ScoreFile, defaults: ScoreDefaults, window: int, console: Console
) -> int:
    """Score the lines that the file lacks; returns how many failed."""
    todo = sum(number not in scores.done for number, _ in numbered_lines(source))
    lines = ((number, line) for number, line in numbered_lines(source) if number not in scores.done)
    failed = 0
    with score_progress(console, todo, resumed=len(scores.done)) as progress:
        for outcome in score_lines(client, lines, defaults, window):
            if isinstance(outcome, LineFailed):
                failed += 1
                console.print(Text.assemble((f"line {outcome.line}: ", "red"), str(outcome.error)))
                progress.advance(tokens=0)
            else:
                scores.append(outcome.rollout, outcome.result)
                progress.advance(tokens=len(outcome.result.logprobs))
    return failed


@app.command()
def info(
    url: Urls, json: Annotated[bool, typer.Option("--json", help="As one JSON object, for programs.")] = False
) -> None:
    """Show who answers: model, fingerprint, version, dtype, mode, limits.

    Example: `grpo-client info --url http://localhost:8000`
    """
    with _told(Console(stderr=True)):
        with ReferenceClient(url, max_wait=0) as client:
            reference = client.info()
        if json:
            typer.echo(reference.model_dump_json())
            return
        table = Table("", "", show_header=False)
        table.columns[1].overflow = "fold"  # a fingerprint is there to be copied whole
        for name, value in reference.model_dump().items():
            table.add_row(name, "-" if value is None else str(value))
        Console().print(table)


@app.command()
def wait(
    url: Urls, timeout: Annotated[float, typer.Option(min=0, help="Seconds after which to give up, status 1.")] = 600.0
) -> None:
    """Wait until a server has loaded its model and takes requests.

    Example: `grpo-client wait --url http://localhost:8000 --timeout 120 && python train.py`
    """
    console = Console(stderr=True)
    with _told(console), ReferenceClient(url) as client, console.status(f"waiting for {', '.join(url)}"):
        reference = client.wait_ready(timeout)
    console.print(f"ready: {reference.model} ({reference.fingerprint[:12]})", highlight=False)


app.command(help=PROBE_HELP)(probe)


@contextmanager
def _told(console: Console) -> Generator[None]:
    """Failures that are no bug end the command with one red line, not with a traceback."""
    try:
        yield
    except (GrpoClientError, ValueError, OSError) as error:
        console.print(Text.assemble(("error: ", "red"), str(error)))
        raise typer.Exit(1) from error


def main() -> None:
    """Entry point of the `grpo-client` command."""
    app()
