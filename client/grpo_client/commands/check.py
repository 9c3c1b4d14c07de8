"""What `grpo-client check` does: read the samples, ask every rule, tell what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from pydantic_core import from_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_client.client import ReferenceClient
from grpo_client.commands.references import Model
from grpo_client.commands.terminal import told
from grpo_client.errors import InvalidSetting
from grpo_client.files.json_lines import numbered_lines
from grpo_client.findings import Finding, Samples, SamplesError, Verdict, check, read_samples

CHECK_HELP = """
Look for what is wrong with rollouts: log-probs of another temperature, template, token or precision, lost end tokens,
a KL that a few tokens carry, rewards that pay for length.

The input is `samples.jsonl` of a run, or any file of one group a line with prompt_ids, completion_ids, policy_logprobs and
ref_logprobs, each a list per completion, and step and temperature. `metrics.jsonl` beside it is read too. With --url the
reference scores again what the file lacks, and tests what explains a gap.

    grpo-client check runs/demo/samples.jsonl
    grpo-client check rollouts.jsonl --url http://localhost:8000 --json

The exit status is 1 when a rule says "check", 2 when the file cannot be read.
"""

_STYLES = {
    Verdict.CHECK: ("CHECK", "bold red"),
    Verdict.LOOK: ("LOOK", "yellow"),
    Verdict.PASSED: ("passed", "green"),
    Verdict.NEEDS_DATA: ("no data", "dim"),
}


def check_command(
    input: Annotated[Path, typer.Argument(help="Sample records, as JSON Lines, plain or gzip.")],
    url: Annotated[
        list[str] | None, typer.Option("--url", "-u", help="A server that hosts the reference, to score again.")
    ] = None,
    model: Model = None,
    metrics: Annotated[
        Path | None, typer.Option(help="The run's metrics.jsonl; by default the one beside the input.")
    ] = None,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    console = Console(stderr=True)
    with told(console), ExitStack() as stack:
        if model is not None and not url:
            raise InvalidSetting("--model names a reference of a server; say which server, with --url")
        status = stack.enter_context(console.status(f"reading {input}"))
        try:
            samples = read_samples(input)
            if not len(samples):
                raise SamplesError(f"{input} holds no completions; give it a run's samples.jsonl")
            records = _metrics(metrics or input.with_name("metrics.jsonl"), wanted=metrics is not None)
        except (SamplesError, OSError) as error:
            console.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
            raise typer.Exit(2) from error
        client = stack.enter_context(ReferenceClient(url, max_wait=60, model=model)) if url else None
        findings = check(samples, served=client, metrics=records, tell=lambda what: status.update(what))
    if as_object:
        typer.echo(json.dumps(as_json(input, samples, findings), allow_nan=False))
    else:
        show(Console(), input, samples, findings)
    if any(f.verdict is Verdict.CHECK for f in findings):
        raise typer.Exit(1)


def show(console: Console, path: Path, samples: Samples, findings: Sequence[Finding]) -> None:
    """What fired in full; what passed or could not be asked by name."""
    size = f"{len(samples.records):,} groups, {len(samples):,} completions, {len(samples.ids):,} tokens"
    cut = "; its last line is cut off and left out" if samples.cut_lines else ""
    console.print(f"{path}: {size}{cut}", highlight=False, soft_wrap=True)
    for f in (f for f in findings if f.verdict in (Verdict.CHECK, Verdict.LOOK)):
        word, style = _STYLES[f.verdict]
        table = Table.grid(padding=(0, 1))
        table.add_row(Text(f"{word:5}", style), Text.assemble((f.name, "bold"), f"  {f.says} ({f.n:,} {f.unit})"))
        table.add_row("", Text(f"what to do: {f.remedy}"))
        if f.tokens:
            where = ", ".join(f"{s}:{i}" for s, i in f.tokens[:5])
            table.add_row("", Text(f"look at completion:token {where}", "dim"))
        console.print(table)
    passed = [f.name for f in findings if f.verdict is Verdict.PASSED]
    console.print(Text.assemble((f"{len(passed)} passed", "green"), f": {', '.join(passed) or '-'}"), soft_wrap=True)
    for f in (f for f in findings if f.verdict is Verdict.NEEDS_DATA):
        console.print(Text(f"no data: {f.name} {f.says}", "dim"), soft_wrap=True)


def as_json(path: Path, samples: Samples, findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs. A figure that is not finite is null."""
    return {
        "file": str(path),
        "groups": len(samples.records),
        "completions": len(samples),
        "tokens": len(samples.ids),
        "cut_lines": samples.cut_lines,
        "passed": not any(f.verdict is Verdict.CHECK for f in findings),
        "findings": [f.as_json() for f in findings],
    }


def _metrics(path: Path, *, wanted: bool) -> list[dict[str, Any]]:
    """The records of a metrics file; none where there is no file and nobody asked for one."""
    if not wanted and not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    for number, line in numbered_lines(path):
        try:
            record = from_json(line)
        except ValueError:
            break  # a line that is still being written
        if not isinstance(record, dict):
            raise SamplesError(f"{path} line {number}: must be a JSON object with a step's figures")
        records.append(cast(dict[str, Any], record))
    return records
