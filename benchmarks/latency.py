"""Latency under 1, 8 and 32 concurrent clients, and what each encoding costs.

python -m benchmarks.latency
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from grpo_client import ReferenceClient, wire_json, wire_tensors
from rich.console import Console
from rich.table import Table

from .contenders import server
from .workloads import Workload, client_tokens

SMALL = Workload("one group of 4, 64 + 32", 1, 4, (64, 64), (32, 32))
REQUESTS_PER_CLIENT = 4


def main() -> None:
    console = Console()
    table = Table("clients", "encoding", "p50 ms", "p99 ms", "client tokens/s", title=f"{SMALL.name}: latency")
    with server() as (url, _):
        for clients in (1, 8, 32):
            for encoding in ("tensors", "json"):
                with ReferenceClient(url, encoding=encoding, timeout=600) as client:
                    client.score_request(SMALL.request(10_000))

                    def ask(seed: int, client: ReferenceClient = client) -> float:
                        start = time.perf_counter()
                        client.score_request(SMALL.request(seed))
                        return time.perf_counter() - start

                    start = time.perf_counter()
                    with ThreadPoolExecutor(clients) as pool:
                        took = list(pool.map(ask, range(clients * REQUESTS_PER_CLIENT)))
                    elapsed = time.perf_counter() - start
                p50, p99 = np.percentile(np.array(took) * 1e3, [50, 99])
                rate = client_tokens(SMALL.request()) * len(took) / elapsed
                table.add_row(str(clients), encoding, f"{p50:.0f}", f"{p99:.0f}", f"{rate:,.0f}")
    console.print(table)
    encodings(console)


def encodings(console: Console) -> None:
    """Milliseconds to encode and decode a request of 64 x (512 + 128), and its size."""
    request = Workload("wire", 1, 64, (512, 512), (128, 128)).request()
    table = Table("encoding", "request bytes", "encode ms", "decode ms", title="64 x (512 + 128) on the wire")
    for name, wire in (("json", wire_json), ("tensors", wire_tensors)):
        encode, decode = [], []
        for _ in range(20):
            start = time.perf_counter()
            body = wire.encode_request(request)
            encode.append(time.perf_counter() - start)
            start = time.perf_counter()
            wire.decode_request(body)
            decode.append(time.perf_counter() - start)
        table.add_row(name, f"{len(body):,}", f"{np.median(encode) * 1e3:.2f}", f"{np.median(decode) * 1e3:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
