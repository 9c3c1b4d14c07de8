"""The commands `grpo-client load` and `drop`, and the reference that a command is about."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from grpo_client.client import ReferenceClient
from grpo_client.commands.admin import FROM_WHERE, admin_key, told_of_admin
from grpo_client.http.retry import RetryPolicy

LOAD_HELP = f"""
Have servers host one more reference, beside those that serve, and wait until they do.

    grpo-client load judge /models/judge --url http://localhost:8000

{FROM_WHERE}
"""
DROP_HELP = f"""
Have servers let go of a reference, once it has answered what it accepted.

    grpo-client drop judge --url http://localhost:8000

{FROM_WHERE}
"""

Urls = Annotated[list[str], typer.Option("--url", "-u", help="A server's base URL; repeat it for each replica.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Name of the reference, where a server hosts several; else its default.")
]


def load(
    name: Annotated[str, typer.Argument(help="What clients will call it.")],
    source: Annotated[str, typer.Argument(help="As the servers find it: a path, a hub id, or upload:ID.")],
    url: Urls,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    base: Annotated[
        str | None, typer.Option(help="For an adapter: the name of the reference that it is laid on.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server may take without a word.")] = 1800.0,
) -> None:
    console = Console(stderr=True)
    with (
        told_of_admin(console),
        console.status(f"{', '.join(url)}: bringing {source} up as {name}"),
        ReferenceClient(url, timeout=timeout, retry=RetryPolicy(max_wait=0)) as client,
    ):
        reference = client.load(name, source, revision=revision, base=base, admin_key=admin_key())
    typer.echo(f"{reference.model} version {reference.version} {reference.fingerprint}")


def drop(
    name: Annotated[str, typer.Argument(help="What clients call it.")],
    url: Urls,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server may take without a word.")] = 1800.0,
) -> None:
    console = Console(stderr=True)
    with (
        told_of_admin(console),
        console.status(f"{', '.join(url)}: {name} answers what it has accepted"),
        ReferenceClient(url, timeout=timeout, retry=RetryPolicy(max_wait=0)) as client,
    ):
        client.drop(name, admin_key=admin_key())
    typer.echo(f"{name} is let go of")
