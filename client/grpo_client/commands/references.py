"""The commands `grpo-client load` and `drop`, and the reference that a command is about."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from grpo_client.client import ReferenceClient
from grpo_client.commands.terminal import told
from grpo_client.commands.upload import ADMIN_KEY_VARIABLE
from grpo_client.http.retry import RetryPolicy

_KEY = f"The admin key is read from {ADMIN_KEY_VARIABLE}, else from GRPO_API_KEY."
LOAD_HELP = f"""
Have servers host one more reference, beside those that serve, and wait until they do.

    grpo-client load judge /models/judge --url http://localhost:8000

{_KEY}
"""
DROP_HELP = f"""
Have servers let go of a reference, once it has answered what it accepted.

    grpo-client drop judge --url http://localhost:8000

{_KEY}
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
        told(console),
        console.status(f"{', '.join(url)}: bringing {source} up as {name}"),
        ReferenceClient(url, timeout=timeout, retry=RetryPolicy(max_wait=0)) as client,
    ):
        key = os.environ.get(ADMIN_KEY_VARIABLE) or None
        reference = client.load(name, source, revision=revision, base=base, admin_key=key)
    typer.echo(f"{reference.model} version {reference.version} {reference.fingerprint}")


def drop(
    name: Annotated[str, typer.Argument(help="What clients call it.")],
    url: Urls,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a server may take without a word.")] = 1800.0,
) -> None:
    console = Console(stderr=True)
    with told(console), ReferenceClient(url, timeout=timeout, retry=RetryPolicy(max_wait=0)) as client:
        client.drop(name, admin_key=os.environ.get(ADMIN_KEY_VARIABLE) or None)
    typer.echo(f"{name} is let go of")
