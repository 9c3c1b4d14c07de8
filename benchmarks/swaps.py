"""Swaps under load, a hub that never answers, and kill -9 in the middle: what a client sees of each, on a real server.

    python -m benchmarks.swaps                     100 swaps under load, then a silent hub
    python -m benchmarks.swaps --kills 20          and 20 times kill -9 at a random moment of a swap or a mix

Random Llamas stand in for the references. Every answer is computed again, without a server, under the fingerprint that it
names; a figure that does not hold ends the program with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from grpo_client import wire_json
from grpo_client.protocol import Group, ScoreRequest

KEY = "benchmark"
VOCAB = 2000
MOST_TIMES_SLOWER = 3.0
PATIENCE = 600.0


@dataclass
class Seen:
    """What the clients saw: seconds of every answer, the answers, and whatever was no answer."""

    seconds: list[float] = field(default_factory=list)
    answers: list[tuple[int, str, np.ndarray]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return float(np.percentile(self.seconds, 99))


def main() -> int:
    """Run what was asked for. 1 where a promise does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--undisturbed", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--port", type=int, default=8797)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        models = [_model(Path(place) / f"model-{seed}", seed) for seed in range(3)]
        held = under_load(models, asked)
        held &= silent_hub(models, asked.port, Path(place))
        if asked.kills:
            held &= kills(models, asked, Path(place) / "state")
    return 0 if held else 1


# --- swaps under load ---------------------------------------------------------------------------------------------


def under_load(models: list[Path], asked: argparse.Namespace) -> bool:
    """Clients ask all the while; one reference after the other is hosted."""
    requests = [_request(seed) for seed in range(8)]
    with _server(["--model", str(models[0]), "--cache-bytes", "0"], asked.port) as client:
        alone = _load(client, requests, asked.clients, lambda: time.sleep(asked.undisturbed))

        def swap_all() -> None:
            for n in range(1, asked.swaps + 1):
                answer = _swap(client, models[n % len(models)])
                assert answer.status_code == 200, answer.text
                print(f"\rswap {n} of {asked.swaps}", end="", file=sys.stderr)

        began = time.perf_counter()
        swapped = _load(client, requests, asked.clients, swap_all)
        seconds = time.perf_counter() - began
        print(file=sys.stderr)
        version = client.get("/v1/reference").json()["version"]
    wrong = _wrong(models, requests, swapped)
    times = swapped.p99 / alone.p99
    _tell(
        f"{asked.swaps} swaps in {seconds:.0f} s under {asked.clients} clients: {len(swapped.seconds)} answers, "
        f"{len(swapped.failures)} refused or failed {swapped.failures[:3]}, {wrong} with other numbers than those of the "
        f"reference "
        f"that they name; version {version}"
    )
    _tell(
        f"p99 {swapped.p99 * 1000:.0f} ms, undisturbed {alone.p99 * 1000:.0f} ms ({len(alone.seconds)} answers): {times:.2f} "
        f"times; "
        f"median {np.median(swapped.seconds) * 1000:.0f} and {np.median(alone.seconds) * 1000:.0f} ms"
    )
    return not swapped.failures and not wrong and times < MOST_TIMES_SLOWER and version == asked.swaps + 1


def _load(client: httpx.Client, requests: list[ScoreRequest], clients: int, work: Callable[[], None]) -> Seen:
    """What clients see that ask one thing after the other while work is done."""
    seen, over = Seen(), threading.Event()

    def ask(first: int) -> None:
        for n in itertools.count(first):
            if over.is_set():
                return
            which = n % len(requests)
            began = time.perf_counter()
            try:
                answer = client.post("/v1/logprobs", content=wire_json.encode_request(requests[which]), headers=_JSON)
            except httpx.HTTPError as error:
                seen.failures.append(repr(error))
                continue
            if answer.status_code != 200:
                seen.failures.append(answer.text)
                continue
            seen.seconds.append(time.perf_counter() - began)
            result = wire_json.decode_result(answer.content)
            seen.answers.append((which, result.reference.fingerprint, result.logprobs))

    threads = [threading.Thread(target=ask, args=(2 * n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return seen


def _wrong(models: list[Path], requests: list[ScoreRequest], seen: Seen) -> int:
    """Answers that are not, bit by bit, what the reference that they name gives without a server."""
    from grpo_server.engine import EngineConfig, Piece, load_engine

    truth: dict[tuple[int, str], np.ndarray] = {}
    for model in models:
        engine = load_engine(EngineConfig(model=str(model), device="cpu"))
        for which, request in enumerate(requests):
            pieces = [Piece(g.prompt, tuple(g.completions), g.temperature) for g in request.groups]
            scores = engine.compute(engine.prepare(pieces))
            truth[which, engine.info.fingerprint] = np.concatenate([p.logprobs for p in scores.pieces])
        engine.close()
    return sum(
        not np.array_equal(truth.get((which, print_), np.empty(0)), logprobs)
        for which, print_, logprobs in seen.answers
    )


# --- a hub that never answers -------------------------------------------------------------------------------------


def silent_hub(models: list[Path], port: int, place: Path, timeout: float = 5.0) -> bool:
    """It accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HOME": str(place / "hub")}
        flags = ["--model", str(models[0]), "--swap-timeout", str(timeout)]
        with _server(flags, port, environment) as client:
            requests = [_request(0)]
            answers: list[httpx.Response] = []
            began = time.perf_counter()
            seen = _load(client, requests, 1, lambda: answers.append(_swap(client, "owner/model")))
            seconds = time.perf_counter() - began
            after = _swap(client, models[1])
    code = answers[0].json()["error"]["code"]
    _tell(
        f"a hub that never answers: {code} after {seconds:.1f} s (deadline {timeout:g} s), {len(seen.seconds)} answers "
        f"meanwhile, "
        f"{len(seen.failures)} refused or failed; the next swap: {after.status_code}"
    )
    return code == "swap_timeout" and not seen.failures and bool(seen.seconds) and after.status_code == 200


# --- kill -9 ------------------------------------------------------------------------------------------------------


def kills(models: list[Path], asked: argparse.Namespace, state: Path) -> bool:
    """Kill the server at random moments of swaps and mixes, start it again, and see who is hosted."""
    flags = ["--model", str(models[0]), "--state-dir", str(state)]
    held, kept, changed = True, 0, 0
    rng = random.Random(0)
    for n in range(asked.kills):
        with _server(flags, asked.port) as client:
            before = client.get("/v1/reference").json()
            threading.Thread(target=_change_quietly, args=(client, models[1 + n % 2], n % 2 == 1)).start()
            time.sleep(rng.uniform(0.0, 2.5))
            now = client.get("/v1/reference").json()
            client.headers["X-Kill"] = "yes"  # tells `_server`
        with _server(flags, asked.port) as client:
            after = client.get("/v1/reference").json()
            score = client.post("/v1/logprobs", content=wire_json.encode_request(_request(0)), headers=_JSON)
        same = (after["version"], after["fingerprint"]) == (before["version"], before["fingerprint"])
        kept, changed = kept + same, changed + (not same)
        held &= score.status_code == 200 and (same or after["version"] == before["version"] + 1)
        held &= after["version"] >= now["version"]
    _tell(
        f"{asked.kills} times kill -9: the restart served the old reference {kept} times, the new one {changed} times; whole: "
        f"{held}"
    )
    return held


def _change_quietly(client: httpx.Client, model: Path, mixes: bool) -> None:
    with contextlib.suppress(httpx.HTTPError):
        _swap(client, model, **({"decay": 0.5} if mixes else {}))


# --- the server and what is asked of it ---------------------------------------------------------------------------

_JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def _server(flags: list[str], port: int, environment: dict[str, str] | None = None) -> Generator[httpx.Client]:
    """A server in a process of its own, once it is ready; killed where its client carries X-Kill, else ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_server", "--port", str(port), "--log-level", "warning", *flags],
        env={**os.environ, "GRPO_SERVER_ADMIN_KEY": KEY, **(environment or {})},
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
            while process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                time.sleep(0.1)
            assert process.poll() is None, f"the server ended with status {process.returncode}"
            yield client
            process.send_signal(signal.SIGKILL if "X-Kill" in client.headers else signal.SIGTERM)
    finally:
        process.kill() if sys.exc_info()[0] else process.wait()


def _swap(client: httpx.Client, model: Path | str, **more: Any) -> httpx.Response:
    route = "/admin/reference/ema" if "decay" in more else "/admin/reference"
    return client.post(route, json={"model": str(model), **more}, headers={"Authorization": f"Bearer {KEY}"})


def _request(seed: int) -> ScoreRequest:
    rng = np.random.default_rng(seed)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, VOCAB, n, dtype=np.int32)

    return ScoreRequest(tuple(Group(ids(96), tuple(ids(64) for _ in range(4))) for _ in range(2)))


def _model(path: Path, seed: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
