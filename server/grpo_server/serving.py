"""Runs the application under uvicorn, and ends it well: on SIGTERM new work is refused while accepted work is finished.

uvicorn alone would close its listening socket at once, so that clients met a refused connection in place of a 503 with
Retry-After, and would leave by the signal instead of with exit status 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from types import FrameType

import uvicorn

from grpo_server.app import create_app
from grpo_server.config import ServerConfig
from grpo_server.hosting import EngineLoader
from grpo_server.service import Service

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
# After the drain every answer is computed; this long may a slow client still take to read its own.
SECONDS_TO_FLUSH = 5
# An idle connection is kept this long: longer than clients keep theirs, so that none sends into one that is being closed
# (httpx and uvicorn both say 5 seconds by default, and a training step often takes as long).
SECONDS_IDLE = 75


def serve(config: ServerConfig, engine_loader: EngineLoader) -> int:
    """Until a signal or a failed start. Returns the exit status: 0 after a complete drain, 1 otherwise.

    Does not return, but ends the process with that status, when the compute thread was left in the middle of something:
    the interpreter would wait for it, however long it took.
    """
    app = create_app(config, engine_loader)
    server = DrainingServer(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            root_path=config.root_path.rstrip("/"),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_FLUSH,
            timeout_keep_alive=SECONDS_IDLE,
        ),
        app.state.service,
    )
    server.run()
    if server.force_exit or app.state.service.abandoned:
        logging.shutdown()
        os._exit(server.exit_status)
    return server.exit_status


class DrainingServer(uvicorn.Server):
    """First signal: drain, then exit. Second signal: exit now."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.exit_status = EXIT_OK
        self._service = service
        self._told_to_end = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._end_task = asyncio.create_task(self._end_in_order(), name="wait for the end")
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler: it only leaves word. uvicorn's own records the signal, to raise it again at the end."""
        if self._loop is None or self._told_to_end.is_set():
            self.exit_status = EXIT_FAILED
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._told_to_end.set)

    async def _end_in_order(self) -> None:
        """Wait for word from outside, or of a failed load; let accepted work finish; end."""
        told = asyncio.create_task(self._told_to_end.wait())
        failed = asyncio.create_task(self._service.failed.wait())
        await asyncio.wait({told, failed}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        failed.cancel()
        if self._service.failed.is_set():
            self.exit_status = EXIT_FAILED
        else:
            timeout = self._service.config.drain_timeout
            logger.info("told to end: new work is refused, accepted work has %g s", timeout)
            if not await self._service.drain(timeout):
                logger.error(
                    "not all accepted work was done in %g s (--drain-timeout); what is left gets a 503", timeout
                )
                self.exit_status = EXIT_FAILED
            else:
                logger.info("all accepted work is done")
        self.should_exit = True
