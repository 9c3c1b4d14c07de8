"""A program of its own for test_processes: a client used here, then in forked and spawned children. Argument: a server's URL.

Prints one line for each thing that held.
"""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable

from grpo_client import AsyncReferenceClient, ReferenceClient

IDS = ([[1, 2, 3], [7]], [[[4, 5], [6]], [[8]]])


def in_child(work: Callable[[], None]) -> int:
    """Run work in a forked child; its exit status. A child that hangs is ended by SIGALRM, which is a status of its own."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.alarm(20)
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # a child must not run the parent's code
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def scored(client: ReferenceClient) -> list[float]:
    return client.score(*IDS).logprobs.tolist()


def of_pool(client: ReferenceClient) -> list[float]:
    return client.submit(*IDS).result(20).logprobs.tolist()


def put(client: ReferenceClient, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(scored(client))


def sync(url: str) -> None:
    with ReferenceClient(url, max_request_tokens=4, fingerprint="first", max_wait=5) as client:
        expected = scored(client)

        def same() -> None:
            assert scored(client) == of_pool(client) == expected
            client.close()

        assert in_child(same) == 0
        assert in_child(lambda: in_child(same) and os._exit(1)) == 0
        # Locks that another thread holds at the fork are never let go of in the child.
        held, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            core = client._workers.get().core
            with core.balancer._lock, core._pin._lock, core.log._lock:
                held.set()
                let_go.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        assert in_child(same) == 0
        let_go.set()
        holder.join()
        assert scored(client) == expected, "the parent's connections are its own still"
        print("fork", flush=True)

        twin = copy.deepcopy(client)
        assert scored(twin) == scored(copy.copy(client)) == expected
        twin.close()
        assert scored(client) == expected
        print("copy", flush=True)

        for method in ("spawn", "fork"):
            context = multiprocessing.get_context(method)
            answers = context.SimpleQueue()
            process = context.Process(target=put, args=(client, answers))
            process.start()
            assert answers.get() == expected
            process.join()
            with context.Pool(2) as pool:
                assert pool.map(of_pool, [client] * 3) == [expected] * 3
            print(method, flush=True)


async def awaited(url: str) -> None:
    async with AsyncReferenceClient(url, max_request_tokens=4) as client:
        expected = (await client.score(*IDS)).logprobs.tolist()

        async def again() -> None:
            assert (await client.score(*IDS)).logprobs.tolist() == expected

        def other_loop() -> None:
            asyncio.set_event_loop(None)
            asyncio._set_running_loop(None)  # the parent's loop, which a child cannot go on with
            asyncio.run(again())

        assert in_child(other_loop) == 0
        await again()
        assert (await copy.deepcopy(client).score(*IDS)).logprobs.tolist() == expected
        thread = threading.Thread(target=lambda: asyncio.run(again()))
        thread.start()
        await asyncio.to_thread(thread.join)
        await again()
    print("async", flush=True)


if __name__ == "__main__":
    sync(sys.argv[1])
    asyncio.run(awaited(sys.argv[1]))
