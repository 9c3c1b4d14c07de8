"""What `grpo-client score` does with its files: look at what is there, score the rest, say what failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from grpo_client.client import ReferenceClient
from grpo_client.commands.progress import ScoreProgress
from grpo_client.errors import ProtocolError
from grpo_client.files.bulk import LineFailed, score_lines
from grpo_client.files.json_lines import PIPE, NotReadable
from grpo_client.files.rollouts import ScoreDefaults, read_rollout
from grpo_client.files.score_file import ScoreFile
from grpo_client.files.tables import numbered_records, table_files
from grpo_client.files.target_files import TargetFiles

SCORE_HELP = """
Score a file of rollouts.

The input holds one JSON object a line: one prompt and its completions, as token ids, as text, or as chat messages.
"completion_mask" holds, per completion, 0 for each token that is context alone (a tool's output) and 1 for the others.
Other fields are left alone; "id" is copied to the output, "temperature" goes before --temperature. It may be gzip.

    {"prompt": [1, 2, 3], "completions": [[4, 5, 2], [6, 2]], "id": "a"}
    {"prompt": "2 + 2 =", "completions": [" 4", " 5"]}
    {"messages": [{"role": "user", "content": "2 + 2?"}], "completions": ["4"]}

The output holds one JSON object for each line, in order: "line" (from 1), "logprobs" (a list per completion, nats),
"status", the extras asked for, the reference's "fingerprint", and a digest of the "request". For text it holds the scored
ids as well. A name that ends in .gz is written as gzip.

The input may also be a parquet or arrow file, a directory of them, or a directory that `datasets` saved, with the same fields
as columns. With --format parquet, arrow or axolotl the output is a directory of such files, one row a completion: targets for
distillation. They need pyarrow.

Interrupted? The same command with --resume continues where it stopped; with another input, other settings or another
reference it is refused. A line that cannot be scored is reported with its number, the rest goes on, and the exit status
is 1. Status 2: the command line is wrong.

    grpo-client score -u http://localhost:8000 -i rollouts.jsonl -o scores.jsonl
    grpo-client score -u http://localhost:8000 -i rollouts.jsonl -o scores.jsonl --temperature 0.7 --return entropy,rank
    grpo-client score -u http://a:8000 -u http://b:8000 -i rollouts.jsonl.gz -o scores.jsonl.gz --in-flight 16 --resume
    grpo-client score -u http://localhost:8000 -i rollouts.parquet -o targets --top-k 64 --tail --format parquet
    head -100 rollouts.jsonl | grpo-client score -u http://localhost:8000 -i - -o - | jq .logprobs
"""


Output = ScoreFile | TargetFiles


def check_paths(source: Path, output: Path, *, files: bool) -> None:
    """Raises typer.BadParameter, which ends the command with status 2, for what is not there or of the wrong kind. files: the
    output is a directory of files."""
    if source != PIPE and not source.exists():
        raise typer.BadParameter(f"there is no file {source}", param_hint="--input")
    if source.is_dir():
        try:
            table_files(source)
        except NotReadable as error:
            raise typer.BadParameter(str(error), param_hint="--input") from error
    if output.is_dir() and not files:
        raise typer.BadParameter(f"{output} is a directory; name a file", param_hint="--output")
    if files and (output == PIPE or (output.exists() and not output.is_dir())):
        raise typer.BadParameter(f"{output} is no directory; targets are files in one", param_hint="--output")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no directory {output.parent}", param_hint="--output")


def count_lines_left(source: Path, scores: Output, defaults: ScoreDefaults) -> int:
    """How many lines the output lacks. Raises ValueError when what it has is not of this input and these settings."""
    return sum(1 for _ in _left(source, scores, defaults))


def score_rest(
    client: ReferenceClient,
    source: Path,
    scores: Output,
    defaults: ScoreDefaults,
    window: int,
    progress: ScoreProgress,
    console: Console,
) -> int:
    """Score the lines that the output lacks; returns how many failed."""
    failed = 0
    for outcome in score_lines(client, _left(source, scores, defaults), defaults, window):
        if isinstance(outcome, LineFailed):
            failed += 1
            console.print(Text.assemble((f"line {outcome.line}: ", "red"), str(outcome.error)), soft_wrap=True)
            progress.advance(tokens=0)
        else:
            if isinstance(scores, TargetFiles) and not scores.introduced:
                scores.introduce(client.info())
            scores.append(outcome.rollout, outcome.result)
            progress.advance(tokens=len(outcome.result.logprobs))
    return failed


def _left(source: Path, scores: Output, defaults: ScoreDefaults) -> Iterator[tuple[int, bytes]]:
    """The input's lines less those that are scored, which are compared with what would be asked for them now."""
    before = frozenset(scores.done)
    seen = 0
    for number, line in numbered_records(source):
        if number not in before:
            yield number, line
            continue
        seen += 1
        try:
            rollout = read_rollout(number, line, defaults)
        except ProtocolError as error:
            raise ValueError(f"the output has scores of input line {number}, which is broken now: {error}") from error
        scores.check(rollout)
    if seen < len(before):
        raise ValueError(
            f"the output has scores of {len(before)} input lines and the input holds only {seen} of them: it is another "
            "input; give the one that was scored, another output file, or --overwrite"
        )
