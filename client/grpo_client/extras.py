"""What a command says when the extra that it needs is not installed: `pip install grpo-refserver` brings the client alone.

Here, on the ground floor, because the server's and the training's commands both need it and do not know each other.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from grpo_client.version import package_version


@contextmanager
def needs_extra(extra: str, command: str) -> Generator[None]:
    """Put it around the imports of a command. Ends the process, naming the extra, when one of them is not installed.

    Asked for its version alone, a command answers without its extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("grpo_"):
            raise  # not a missing extra but a fault of ours
        if sys.argv[1:] == ["--version"]:
            sys.stdout.write(f"{command} {package_version()}\n")
            raise SystemExit(0) from error
        raise SystemExit(
            f"{command} needs the extra `{extra}` ({error.name} is not installed); "
            f"type: pip install 'grpo-refserver[{extra}]'"
        ) from error
