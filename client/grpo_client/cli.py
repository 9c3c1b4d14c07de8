"""`grpo-client`: score files of rollouts, check them, ask a server who it is, wait until it is there, have it host
another model, probe any endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from grpo_client import tracing
from grpo_client.client import ReferenceClient
from grpo_client.commands.check import CHECK_HELP, check_command
from grpo_client.commands.probe import PROBE_HELP, probe
from grpo_client.commands.progress import score_progress
from grpo_client.commands.references import DROP_HELP, LOAD_HELP, Model, drop, load
from grpo_client.commands.score import SCORE_HELP, check_paths, count_lines_left, score_rest
from grpo_client.commands.swap import SWAP_HELP, swap
from grpo_client.commands.terminal import told
from grpo_client.commands.upload import UPLOAD_HELP, upload
from grpo_client.core import FIRST
from grpo_client.files.json_lines import is_regular
from grpo_client.files.rollouts import ScoreDefaults
from grpo_client.files.score_file import ScoreFile
from grpo_client.files.tables import is_table
from grpo_client.files.target_files import TargetFiles, TargetFormat
from grpo_client.http.exchange import Encoding
from grpo_client.http.retry import RetryPolicy
from grpo_client.protocol import EXTRAS, HIDDEN, Normalizer, TopDtype
from grpo_client.validation.fields import read_extras, read_temperature, read_top_k
from grpo_client.version import package_version

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    help="Talk to a grpo-server: per-token log-probs of completions under its frozen reference model.\n\n"
    "A server that wants a key gets the one in the environment variable GRPO_API_KEY; certificates for https:// are named by "
    "GRPO_CA_FILE, GRPO_CERT_FILE and GRPO_KEY_FILE.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"grpo-client {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What goes before the command's name."""


COMMAND_MAX_WAIT = 60.0  # seconds: somebody sits before it, or a script that wants to know
MaxWait = Annotated[float, typer.Option(min=0, help="Seconds to keep retrying while no server answers; 0 tries once.")]
Urls = Annotated[
    list[str],
    typer.Option(
        "--url", "-u", help="A server's base URL. Repeat it for several servers that host the same reference."
    ),
]


@app.command(help=SCORE_HELP)
def score(
    url: Urls,
    input: Annotated[
        Path, typer.Option("--input", "-i", help="Rollouts: JSON Lines, parquet or arrow; - is standard input.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Scores, as JSON Lines; - is standard output. See --format.")
    ],
    temperature: Annotated[
        float, typer.Option(help="The temperature you sampled with; logits are divided by it.")
    ] = 1.0,
    normalizer: Annotated[Normalizer, typer.Option(help="What turns logits into probabilities.")] = "softmax",
    extras: Annotated[
        list[str] | None,
        typer.Option("--return", help=f"More figures per token: {', '.join(EXTRAS)}; comma-separated."),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Also return ids and log-probs of the k best tokens per position.")] = 0,
    tail: Annotated[bool, typer.Option("--tail", help="Also return the mass outside the k best.")] = False,
    top_dtype: Annotated[TopDtype, typer.Option(help="Of the log-probs of the k best.")] = "float32",
    format: Annotated[
        Literal["jsonl", "parquet", "arrow", "axolotl"],
        typer.Option(help="What is written; all but jsonl are files in a directory, with the k best of each position."),
    ] = "jsonl",
    rows: Annotated[int, typer.Option(min=1, help="Completions in each file of a directory, about.")] = 4096,
    encoding: Annotated[
        Encoding, typer.Option(help="Encoding on the wire; tensors is smaller and faster.")
    ] = "tensors",
    in_flight: Annotated[int, typer.Option(min=1, help="Requests sent at once.")] = 8,
    max_wait: MaxWait = COMMAND_MAX_WAIT,
    model: Model = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--overwrite", help="What to do with an existing output file.")
    ] = None,
) -> None:
    console = Console(stderr=True)
    check_paths(input, output, files=format != "jsonl")
    with told(console):
        defaults = ScoreDefaults(
            temperature=read_temperature(temperature, "temperature"),
            normalizer=normalizer,
            extras=sorted(read_extras([*(n for names in extras or [] for n in names.split(",")), *["tail"] * tail])),
            top_k=read_top_k(top_k),
            top_dtype=top_dtype,
        )
        if HIDDEN in defaults.extras:
            raise ValueError("--return hidden: hidden states go into no file; ask for them with ReferenceClient.score")
        if (tail or format != "jsonl") and not top_k:
            raise ValueError("--tail and targets are of the best tokens; say how many with --top-k")
        if is_regular(output):
            if is_regular(input) and output.samefile(input):
                raise ValueError("--output is the input file itself; give another one")
            if resume is None and output.stat().st_size:
                raise ValueError(f"{output} is there already; say --resume to go on with it, or --overwrite")
        if format != "jsonl" and resume is None and output.is_dir() and any(output.glob("part-*")):
            raise ValueError(f"{output} has targets already; say --resume to go on with them, or --overwrite")
        with _opened(output, format, resume=bool(resume), rows=rows) as scores:
            # Before anything is asked, for a file that turns out to be of another run must not have grown.
            lines_left = count_lines_left(input, scores, defaults) if is_regular(input) or is_table(input) else None
            client = ReferenceClient(
                url,
                encoding=encoding,
                max_in_flight=in_flight,
                retry=RetryPolicy(max_wait=max_wait, limit="--max-wait"),
                fingerprint=scores.fingerprint or FIRST,
                model=model,
            )
            with client, score_progress(console, lines_left, resumed=len(scores.done)) as progress:
                failed = score_rest(client, input, scores, defaults, 2 * in_flight, progress, console)
    if failed:
        console.print(f"[red]lines that could not be scored: {failed}[/]; mend them and run again with --resume")
        raise typer.Exit(1)


def _opened(
    output: Path, format: Literal["jsonl"] | TargetFormat, *, resume: bool, rows: int
) -> ScoreFile | TargetFiles:
    if format == "jsonl":
        return ScoreFile(output, resume=resume)
    return TargetFiles(output, format, resume=resume, rows=rows)


@app.command()
def info(
    url: Urls,
    model: Model = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Show who answers: model, fingerprint, version, dtype, mode, limits.

    Example: `grpo-client info --url http://localhost:8000`
    """
    with told(Console(stderr=True)):
        with ReferenceClient(url, max_wait=0, model=model) as client:
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
    url: Urls,
    model: Model = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds after which to give up, with status 1.")] = 600.0,
) -> None:
    """Wait until a server has loaded its model and takes requests.

    Example: `grpo-client wait --url http://localhost:8000 --timeout 120 && python train.py`
    """
    console = Console(stderr=True)
    with told(console):
        retry = RetryPolicy(max_wait=timeout, limit="--timeout")
        with ReferenceClient(url, retry=retry, model=model) as client, console.status(f"waiting for {', '.join(url)}"):
            reference = client.wait_ready()
    console.print(f"ready: {reference.model} ({reference.fingerprint[:12]})", highlight=False)


app.command("check", help=CHECK_HELP)(check_command)
app.command(help=PROBE_HELP)(probe)
app.command(help=UPLOAD_HELP)(upload)
app.command(help=SWAP_HELP)(swap)
app.command(help=LOAD_HELP)(load)
app.command(help=DROP_HELP)(drop)


def main() -> None:
    """Entry point of the `grpo-client` command."""
    tracing.configure("grpo-client")
    app(prog_name="grpo-client")
