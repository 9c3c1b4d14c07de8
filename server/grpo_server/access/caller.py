"""Whose request this is: the holder of a named key, known to every layer that serves it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from grpo_server.scheduler.accounts import Account

Scope = Literal["score", "admin", "metrics"]


@dataclass(frozen=True, slots=True)
class Caller:
    """name: of the key, never the key. scopes: what it opens. account: what it has asked of the engine, and may."""

    name: str
    scopes: frozenset[Scope]
    account: Account


# Of the request that this task serves; None: no named key came with it.
caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def account() -> Account | None:
    """The account that this task's request goes to."""
    return None if (known := caller.get()) is None else known.account
