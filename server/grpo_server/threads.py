"""The threads that a server has beside its event loop, one place for each kind of work."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Decoding and encoding of bodies: two, so that a body of 64 MB does not hold up a small one.
CODEC_THREADS = 2


# Of a processor that two threads want, one that is this much "nicer" gets two fifths.
GIVES_WAY_BY = 2


def _give_way() -> None:
    """Serving comes first: on Linux a thread has a priority of its own, which those that it starts inherit."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GIVES_WAY_BY)


class Threads:
    """compute: the one in which the model is loaded and runs. prepare: lays batches out meanwhile. aside: where the next
    model is loaded. codec: for bodies, and for looking large requests over. One more has the tokenizer to itself."""

    def __init__(self) -> None:
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.prepare = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self.aside = ThreadPoolExecutor(1, thread_name_prefix="swap", initializer=_give_way)
        self.codec = ThreadPoolExecutor(CODEC_THREADS, thread_name_prefix="codec")
        self._tokenizer = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    async def in_codec(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run decoding or encoding of a body off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.codec, lambda: work(*args, **kwargs))

    async def in_tokenizer(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run tokenizer work off the event loop, in one thread only: tokenizers are not made to be shared. Not the thread
        that lays batches out: no text holds up a client that sends ids."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer, lambda: work(*args, **kwargs))

    def shut_down(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        for thread in (self.codec, self._tokenizer, self.aside, self.prepare, self.compute):
            thread.shutdown(wait=False, cancel_futures=True)
