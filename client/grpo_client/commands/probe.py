"""The command `grpo-client probe`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from grpo_client.addresses import without_secrets
from grpo_client.commands.terminal import told
from grpo_client.probe.checks import CheckResult, run_checks
from grpo_client.probe.dialects import DIALECTS
from grpo_client.probe.endpoint import Endpoint, EndpointFailed
from grpo_client.probe.oracle import OracleFailed, open_oracle
from grpo_client.probe.report import as_json, as_table, passed

PROBE_HELP = f"""
Check any endpoint that gives log-probs, ours or another's, against transformers in fp32.

Dialects: {", ".join(DIALECTS)}.

    grpo-client probe http://localhost:8000 --against demo
    grpo-client probe http://localhost:8001 --dialect vllm --against ./checkpoint --json
    grpo-client probe http://localhost:8001 --dialect openai --against http://localhost:8000

The last takes a grpo-server in exact mode as the oracle and needs no torch here. "differs" is an answer that changed its
bits within the tolerance; a FAIL makes the exit status 1, an impossible command line 2.
"""


def probe(
    url: Annotated[str, typer.Argument(help="The endpoint's base URL, without the route.")],
    against: Annotated[
        str, typer.Option(help="The oracle: a model as grpo-server takes it, or the URL of an exact grpo-server.")
    ],
    dialect: Annotated[str, typer.Option(help=f"One of {', '.join(DIALECTS)}.")] = "native",
    model: Annotated[
        str | None, typer.Option(help="Name of the model there; by default the first of /v1/models.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest error that passes, in nats.")] = 1e-3,
    long: Annotated[int, typer.Option(min=2, help="Tokens of the long input.")] = 1024,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    console = Console(stderr=True)
    results: list[CheckResult] = []
    try:
        with (
            told(console),
            console.status(f"the oracle gets ready ({without_secrets(against)})") as status,
            Endpoint(url, dialect, model=model) as endpoint,  # first: a wrong address need not wait for a model
            open_oracle(against) as oracle,
        ):
            status.update("checking")
            for result in run_checks(endpoint, oracle, tolerance=tolerance, long=long):
                results.append(result)
                status.update(f"checked: {result.check}")
    except (OracleFailed, EndpointFailed) as error:
        console.print(Text.assemble(("error: ", "red"), str(error)))
        raise typer.Exit(1) from error
    if as_object:
        typer.echo(json.dumps(as_json(url, dialect, against, tolerance, results)))
    else:
        Console().print(as_table(f"{url} as {dialect}, against {against}, tolerance {tolerance:g} nats", results))
    if not passed(results):
        raise typer.Exit(1)
