"""The command `grpo-client swap`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from grpo_client.client import ReferenceClient
from grpo_client.commands.admin import FROM_WHERE, admin_key, told_of_admin
from grpo_client.http.retry import RetryPolicy

SWAP_HELP = f"""
Have servers host another model, or with --decay its average with what they host, and wait until they do.

    grpo-client swap /models/step-200 --url http://a:8000 --url http://b:8000

Several servers move together or not at all: each brings the model up beside the one that serves, and all are told to serve it,
under one version, when it is there on all of them and the same. {FROM_WHERE}
"""


def swap(
    model: Annotated[str, typer.Argument(help="As the servers find it: a path, a hub id, or upload:ID.")],
    url: Annotated[list[str], typer.Option("--url", "-u", help="A server's base URL; repeat it for each replica.")],
    decay: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the hosted weights that stays; without it none does.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    which: Annotated[
        str | None,
        typer.Option("--reference", help="Name of the reference that is replaced, where a server hosts several."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server may take without a word.")] = 1800.0,
    max_wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait, once it is decided, for a server that is away.")
    ] = 900.0,
) -> None:
    console = Console(stderr=True)
    with told_of_admin(console), console.status(f"{', '.join(url)}: bringing {model} up"):
        retry = RetryPolicy(max_wait=max_wait, limit="--max-wait")
        with ReferenceClient(url, timeout=timeout, retry=retry, model=which) as client:
            reference = client.move(model, decay=decay, revision=revision, admin_key=admin_key())
    typer.echo(f"{reference.model} version {reference.version} {reference.fingerprint}")
