"""A client that left is not computed for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from grpo_server.errors import ErrorCode, ServiceError

T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `contract` returns, unless the client disconnects first: then work is cancelled and ServiceError (499) raised.

    receive: the ASGI callable of a request whose body has been read to its end.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ServiceError(ErrorCode.CLIENT_LEFT, "the client closed the connection before the answer was ready")
        return task.result()
    finally:
        await _cancel(task)
        await _cancel(gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
