"""Runs the application under uvicorn, and ends it well: on SIGTERM new work is refused while accepted work is finished.

uvicorn alone would close its listening socket at once, so that clients met a refused connection in place of a 503 with
Retry-After, and would leave by the signal instead of with exit status 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from grpo_client import tracing

from grpo_server.app import create_app
from grpo_server.config import ServerConfig
from grpo_server.connections import allow_connections, server_settings
from grpo_server.engine.contract import EngineLoader
from grpo_server.lifecycle import Service
from grpo_server.stages import Stages
from grpo_server.swapping.state import StateDir

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
# After the drain every answer is computed; this long may a slow client still take to read its own.
SECONDS_TO_FLUSH = 5
# An idle connection is kept this long: longer than clients keep theirs, so that none sends into one that is being closed
# (httpx and uvicorn both say 5 seconds by default, and a training step often takes as long).
SECONDS_IDLE = 75
# Connections that the kernel keeps until they are accepted; uvicorn's own figure.
BACKLOG = 2048


# Cut off at a second signal: so long may it take to tell those who still wait for an answer.
SECONDS_TO_CUT_OFF = 2


class ModelRefused(Exception):
    """The server has ended because its model cannot be served. The message is the reason."""


def serve(
    config: ServerConfig, engine_loader: EngineLoader, stages: Stages | None = None, state: StateDir | None = None
) -> int:
    """Until a signal or a failed start. Returns the exit status: 0 after a complete drain, 1 otherwise.

    Does not return, but ends the process with that status, when the compute thread was left in the middle of something:
    the interpreter would wait for it, however long it took. Raises ValueError for an address that cannot be had, and
    ModelRefused, once all is closed, when the model cannot be served.
    """
    allow_connections(config.max_connections)
    with _listen(config.host, config.port) as listener:
        app = create_app(config, engine_loader, stages, state)
        service: Service = app.state.service
        service.address = _url(listener, "http" if config.tls_cert is None else "https")
        server = DrainingServer(
            uvicorn.Config(
                app,
                **server_settings(app),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=SECONDS_TO_FLUSH,
                timeout_keep_alive=SECONDS_IDLE,
            ),
            service,
            app.state.reloading.now if app.state.reloading.files else None,
        )
        logger.info("listening on %s; ready when /readyz says so", service.address)
        server.run([listener])
    if service.refusal is not None:
        raise ModelRefused(service.refusal)
    logger.info("ends with status %d", server.exit_status)
    if server.force_exit or service.abandoned:
        tracing.flush()
        logging.shutdown()
        os._exit(server.exit_status)
    return server.exit_status


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, before minutes go into loading a model for an address that somebody else has."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}; give another --port or --host") from error


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """First signal: drain, then exit. Second signal: exit now, and those who wait get a 503. at_hangup: what SIGHUP does; None:
    it ends the process, as everywhere."""

    def __init__(self, config: uvicorn.Config, service: Service, at_hangup: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self.exit_status = EXIT_OK
        self._service = service
        self._at_hangup = at_hangup
        self._told_to_end = asyncio.Event()
        self._signals = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if self._signals:  # it came before there was a loop to tell
            self._told_to_end.set()
        self._end_task = asyncio.create_task(self._end_in_order(), name="wait for the end")
        if self._at_hangup is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self._at_hangup)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.force_exit:
            await self._cut_off()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal handler: it only leaves word. uvicorn's own records the signal, to raise it again at the end."""
        self._signals += 1
        if self._signals > 1:
            self.exit_status = EXIT_FAILED
            self.should_exit = self.force_exit = True
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._told_to_end.set)

    async def _cut_off(self) -> None:
        """Cancel every request; `middleware.boundary` answers those that have no answer yet."""
        logger.warning("told to end a second time: what is under way gets a 503")
        self._service.close_door()
        requests = list(self.server_state.tasks)
        for request in requests:
            request.cancel()
        if requests:
            await asyncio.wait(requests, timeout=SECONDS_TO_CUT_OFF)

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
