"""The command `grpo-client upload`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from grpo_client.client import ReferenceClient
from grpo_client.commands.admin import FROM_WHERE, admin_key, told_of_admin
from grpo_client.http.retry import RetryPolicy

UPLOAD_HELP = f"""
Bring a model to a server that cannot read its directory (`grpo-server --upload-dir`), and print what to host it by.

    MODEL=$(grpo-client upload ./checkpoint --url http://localhost:8000)

Safetensors, config and tokenizer files are sent, hashed here and there. Run it again after any failure: it goes on where it
was. {FROM_WHERE}
"""


def upload(
    directory: Annotated[Path, typer.Argument(help="Directory of a model, as save_pretrained leaves it.")],
    url: Annotated[list[str], typer.Option("--url", "-u", help="A server's base URL; repeat it for several.")],
    max_wait: Annotated[float, typer.Option(min=0, help="Seconds to go on trying while no byte arrives.")] = 60.0,
) -> None:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with told_of_admin(console), Progress(*columns, console=console) as progress:
        bar = progress.add_task("hashing", total=None)
        with ReferenceClient(url, retry=RetryPolicy(max_wait=max_wait, limit="--max-wait")) as client:
            model = client.upload(
                directory,
                admin_key=admin_key(),
                on_progress=lambda done, total: progress.update(
                    bar, description="uploading", completed=done, total=total
                ),
            )
    typer.echo(model)
