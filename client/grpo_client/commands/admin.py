"""What the commands that want an admin key share: where it comes from, and what is said when it is not the right one."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console

from grpo_client.addresses import read_key
from grpo_client.commands.terminal import told
from grpo_client.errors import InvalidSetting, NotAuthorized

ADMIN_KEY_VARIABLE = "GRPO_ADMIN_KEY"
FROM_WHERE = f"The admin key is read from {ADMIN_KEY_VARIABLE}, else from GRPO_API_KEY."
_SOURCE_FORBIDDEN = "source_forbidden"


def admin_key() -> str | None:
    """None: the client's own serves. Raises InvalidSetting for what can be no key."""
    try:
        return read_key(os.environ.get(ADMIN_KEY_VARIABLE))
    except InvalidSetting as error:
        raise InvalidSetting(f"{ADMIN_KEY_VARIABLE}: {error}") from error


@contextmanager
def told_of_admin(console: Console) -> Generator[None]:
    """`told`, for a command that wants an admin key."""
    with told(console):
        try:
            yield
        except NotAuthorized as error:
            if error.code == _SOURCE_FORBIDDEN:  # the key was right
                raise
            raise error.also(f"this command takes the key from {ADMIN_KEY_VARIABLE}, else from GRPO_API_KEY") from error
