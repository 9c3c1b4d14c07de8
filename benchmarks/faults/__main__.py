"""A training run under faults: it must end with the numbers of a run that nobody disturbed, with nothing lost and nothing
scored by the wrong reference.

    python -m benchmarks.faults
    python -m benchmarks.faults --only network --rounds 3 --seed 1 --json faults.json

Two replicas of a tiny model serve `grpo-train` through proxies, and a witness that asks all the while and knows the answers.
Every fault happens once a round, in random order, at a random moment of a step. All processes have a wall clock that jumps. A
fault may end a run with an error (a full disk, another reference): it is started again with --resume, as an orchestrator
would. Status 1 where a number differs, a step is lost, an answer is wrong, or an error comes where none may.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grpo_client import ReferenceClient
from grpo_training.report.metrics import read_records
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..small import ServerProcess
from .kinds import Fault, network, processes
from .policy import QUESTIONS, run_values, tiny_policy
from .proxy import Proxy
from .world import Trainer, Witness, World, small_disk, write_config

SKEWED = ("benchmarks.faults.skewed", "grpo_server")


def learned(output: Path) -> list[dict[str, Any]]:
    """The metrics of every step, without those that are times."""
    return [
        {k: v for k, v in record.items() if not k.startswith("time/") and k != "reference/latency_s"}
        for record in read_records(output / "metrics.jsonl")
    ]


def weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def storm(world: World, faults: list[Fault], witness: Witness, console: Console) -> list[dict[str, Any]]:
    """One fault after the other, each while a step goes on. What was seen of each."""
    seen: list[dict[str, Any]] = []
    trainer = world.trainer
    assert trainer is not None
    with Progress(console=console) as progress:
        bar = progress.add_task("faults", total=len(faults))
        for n, fault in enumerate(faults, 1):
            progress.update(bar, description=f"{fault.name:42}")
            loud, starts, answered = len(witness.loud), trainer.starts, witness.answered
            began, done, harmed = time.monotonic(), trainer.steps, world.harmed
            trainer.allowed = n + 1
            world.step_later()
            note = fault.begin(world)
            went_on = trainer.wait(done + 1)
            fault.end(world)
            row = {"fault": fault.name, "seen": note, "seconds": round(time.monotonic() - began, 1)}
            row |= {"starts": trainer.starts - starts, "answers": witness.answered - answered}
            row |= {"harmed": world.harmed - harmed}
            row |= {"errors": witness.loud[loud:], "held": went_on}
            row["held"] = went_on and (fault.loud or not row["errors"])
            seen.append(row)
            progress.advance(bar)
    trainer.allowed = sys.maxsize
    return seen


def run(place: Path, kinds: list[Fault], rounds: int, seed: int, console: Console) -> tuple[dict[str, Any], bool]:
    rng = random.Random(seed)
    faults = [fault for _ in range(rounds) for fault in rng.sample(kinds, len(kinds))]
    steps = len(faults) + 2
    reference, other = tiny_policy(place / "reference", 0), tiny_policy(place / "other", 1)
    with small_disk(place / "disk", 24) as small:
        disk = place / "disk"
        servers = []
        for n in range(2):
            flags = ["--model", str(reference), "--device", "cpu", "--state-dir", str(disk / f"state-{n}")]
            flags += ["--cache-bytes", "0", "--log-level", "warning", "--stall-timeout", "5"]
            servers.append(ServerProcess(flags, place / f"server-{n}.log", SKEWED))
        for server in servers:
            server.start()
        proxies = [Proxy(server.port, seed + n) for n, server in enumerate(servers)]
        world = World(servers, proxies, reference, other, disk, small, rng)
        try:
            for server in servers:
                server.wait_ready()
            return _runs(world, place, faults, steps, console)
        finally:
            if world.trainer is not None:
                world.trainer.close()
            for proxy in proxies:
                proxy.close()
            for server in servers:
                server.stop()


def _runs(world: World, place: Path, faults: list[Fault], steps: int, console: Console) -> tuple[dict[str, Any], bool]:
    def trainer(name: str, where: Path, urls: list[str]) -> Trainer:
        output = where / name
        config = write_config(place / f"{name}.yaml", run_values(world.reference, urls, steps, output))
        made = Trainer(config, output, place / f"{name}.log", skewed=True)
        made.start()
        return made

    with ReferenceClient(world.servers[0].url) as client:
        fingerprint = client.info().fingerprint
        truth = [client.score_request(question).logprobs for question in QUESTIONS]
    calm = trainer("calm", place, [server.url for server in world.servers])
    with console.status("the undisturbed run"):
        assert calm.wait(), "the undisturbed run takes too long"
        assert calm.status == 0, (place / "calm.log").read_text()[-2000:]
    urls = [proxy.url for proxy in world.proxies]
    witness = Witness(urls, fingerprint, truth)
    world.trainer = stormy = trainer("stormy", world.disk, urls)
    stormy.allowed = 1
    stormy.wait(1)
    seen = storm(world, faults, witness, console)
    ended = stormy.wait() and stormy.status == 0
    witness.close()
    same = ended and learned(stormy.output) == learned(calm.output)
    same_weights = ended and weights(stormy.output) == weights(calm.output)
    figures: dict[str, Any] = {
        "steps": steps,
        "faults": len(faults),
        "disk": "a tmpfs of its own" if world.small else "not small: nothing could be mounted",
        "memory": "RLIMIT_AS",
        "clock": "time.time() jumps by up to a day at every reading, in every process",
        "starts of the trainer": stormy.starts,
        "metrics of every step the same": same,
        "weights the same": same_weights,
        "witness": {"answers": witness.answered, "wrong": witness.wrong, "errors": len(witness.loud)},
        "each": seen,
    }
    if not ended:
        figures["the end of the trainer's log"] = (place / "stormy.log").read_text(errors="replace")[-3000:]
    return figures, same and same_weights and not witness.wrong and all(row["held"] for row in seen)


def tell(figures: dict[str, Any], held: bool, console: Console) -> None:
    table = Table(
        "fault", "seen", "s", "starts", "answers", "harmed", "errors", "", title="a training run under faults"
    )
    for row in figures["each"]:
        good = "[green]held" if row["held"] else "[red]did not hold"
        numbers = (str(row[name]) for name in ("seconds", "starts", "answers", "harmed"))
        table.add_row(row["fault"], row["seen"], *numbers, str(len(row["errors"])), good)
    console.print(table)
    console.print({name: value for name, value in figures.items() if name != "each"})
    for row in figures["each"]:
        if not row["held"]:
            console.print(row["fault"], row["errors"][:3])
    console.print("[green]held" if held else "[red]did not hold")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["network", "processes"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a directory for logs and runs")
    asked = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as own:
        place = asked.keep or Path(own)
        place.mkdir(exist_ok=True)
        kinds = [*(network() if asked.only != "processes" else []), *(processes() if asked.only != "network" else [])]
        figures, held = run(place, kinds, asked.rounds, asked.seed, console)
    tell(figures, held, console)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
