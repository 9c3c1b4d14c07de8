"""verl itself on a CPU: its configuration, its workers, its trainer and TransferQueue, against a running server.

Not part of `make test`: `make test-verl` gives these tests an environment of their own. The server runs from the project's
.venv.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

# Read when verl is imported, and by the workers that Ray starts: as one would export them.
HERE = Path(__file__).parent
os.environ |= {
    "VERL_USE_EXTERNAL_MODULES": "cpu_platform,grpo_client.verl.trainer",
    "VERL_PLATFORM": "cpu",
    "PYTHONPATH": str(HERE),
    "WORLD_SIZE": "1",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

import verl  # noqa: E402
from grpo_client import ReferenceClient  # noqa: E402
from grpo_client.models.demo import locate  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from verl.utils import tensordict_utils  # noqa: E402
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.engine_workers import ActorRolloutRefWorker  # noqa: E402

EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(FSDPEngineWithLMHead)

COMMAND = HERE.parents[1] / ".venv/bin/grpo-server"
MODEL = "demo"
PROMPTS, RESPONSES = (7, 12), (9, 16, 1, 5)

# Two float32 forwards of a 30-layer model differ by some 1e-5 nats.
TOLERANCE = 1e-4

Config = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def process_group() -> Iterator[None]:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    torch.distributed.init_process_group("gloo")
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a ready server that hosts the demo model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        command = [COMMAND, "--model", MODEL, "--port", str(port), "--share-cores", "--cache-bytes", "0"]
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        with ReferenceClient(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(300)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="session")
def config(url: str) -> Config:
    """config(*overrides): verl's own configuration with what docs/verl.md says, in float32 and with padding."""
    path = locate(MODEL).path
    single = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"

    def composed(*overrides: str) -> Any:
        given = [
            f"actor_rollout_ref.model.path={path}",
            "actor_rollout_ref.model.use_remove_padding=False",
            "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "actor_rollout_ref.actor.strategy=fsdp2",
            "actor_rollout_ref.actor.fsdp_config.dtype=float32",
            f"+actor_rollout_ref.actor.fsdp_config.mixed_precision={single}",
            "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.temperature=0.7",
            "actor_rollout_ref.rollout.calculate_log_probs=False",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
            "algorithm.adv_estimator=grpo",
            "data.train_batch_size=2",
            "transfer_queue.enable=True",
        ]
        where = str(Path(verl.__file__).parent / "trainer/config")
        with initialize_config_dir(where, version_base=None):
            return compose("ppo_trainer", overrides=[*given, *overrides])

    return composed


@pytest.fixture(scope="session")
def served(url: str) -> list[str]:
    """The overrides of docs/verl.md for a reference worker that asks."""
    return [
        "actor_rollout_ref.ref._target_=grpo_client.verl.RemoteReference",
        f"+actor_rollout_ref.ref.url={url}",
    ]


def worker(config: Any, role: str) -> ActorRolloutRefWorker:
    made = ActorRolloutRefWorker(config.actor_rollout_ref, role=role)
    made.init_model()
    return made


@pytest.fixture(scope="session")
def own(config: Config) -> ActorRolloutRefWorker:
    """verl's FSDP2 engine with the same weights: what its own reference says."""
    return worker(config(), "actor")


def rows(seed: int) -> list[dict[str, torch.Tensor]]:
    """Eight rows of two prompts, scattered as verl scatters them."""
    random = torch.Generator().manual_seed(seed)
    found: list[dict[str, torch.Tensor]] = []
    for length in PROMPTS:
        prompt = torch.randint(3, 49000, (length,), generator=random)
        for size in RESPONSES:
            response = torch.randint(3, 49000, (size,), generator=random)
            ids = torch.cat([prompt, response])
            found.append(
                {
                    "prompts": prompt,
                    "responses": response,
                    "input_ids": ids,
                    "position_ids": torch.arange(len(ids)),
                    "response_mask": torch.ones_like(response),
                    "loss_mask": torch.ones_like(response),
                }
            )
    return [found[i] for i in (3, 7, 0, 4, 1, 5, 2, 6)]


def batch(seed: int, temperature: float) -> Any:
    """The same as a worker gets them: nested, without padding."""
    columns = {
        name: torch.nested.as_nested_tensor([row[name] for row in rows(seed)], layout=torch.jagged)
        for name in rows(seed)[0]
    }
    about = {"temperature": temperature, "calculate_entropy": False, "compute_loss": False}
    return tensordict_utils.get_tensordict(columns, non_tensor_dict=about)


def of_responses(output: Any, seed: int) -> torch.Tensor:
    """All response tokens' log-probs of a worker's answer, one after the other."""
    whole = output["log_probs"].unbind()
    return torch.cat([w[len(row["prompts"]) - 1 : -1].float() for w, row in zip(whole, rows(seed), strict=True)])


@pytest.fixture
def counted(url: str) -> Callable[[], tuple[float, float]]:
    """Requests that the server scored so far, and tokens that went through its model."""

    def read() -> tuple[float, float]:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        asked = 'grpo_server_requests_total{route="/v1/logprobs",status="200"} '
        return tuple(
            sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
            for name in (asked, "grpo_server_computed_tokens_total ")
        )

    return read


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Leave a figure in the test report (`pytest --junit-xml`) and on the terminal (`pytest -s`)."""

    def write(name: str, value: object) -> None:
        record_property(name, value)
        print(f"\n    {name}: {value:.2e}" if isinstance(value, float) else f"\n    {name}: {value}")

    return write
