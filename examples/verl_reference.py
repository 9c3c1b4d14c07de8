"""verl with its reference over HTTP: an engine that verl finds through the configuration of its reference worker.

    grpo-server --model Qwen/Qwen3-0.6B
    PYTHONPATH=examples python -m verl.trainer.main_ppo ... actor_rollout_ref.actor.use_kl_loss=True \
        actor_rollout_ref.ref._target_=verl_reference.RemoteReference +actor_rollout_ref.ref.url=http://localhost:8000

For verl 0.9 with its default (v1) trainer and an FSDP actor. The reference worker loads no weights; one rank asks for the
whole batch, each prompt once. Every node must be able to import this file, and needs `pip install grpo-refserver`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from grpo_client import ReferenceClient, Status
from verl.utils import tensordict_utils
from verl.workers.config import FSDPActorConfig
from verl.workers.engine import BaseEngine, EngineRegistry


@dataclass
class RemoteReference(FSDPActorConfig):
    """What stands under actor_rollout_ref.ref, and the server's URL."""

    url: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", "grpo-refserver")
        super().__post_init__()
        object.__setattr__(self.engine, "url", self.url)


@EngineRegistry.register(model_type="language_model", backend="grpo-refserver", device=["cuda", "npu", "cpu"])
class RemoteReferenceEngine(BaseEngine):
    """Holds no model: `infer_batch` asks the server."""

    is_param_offload_enabled = is_optimizer_offload_enabled = False

    def __init__(self, model_config: Any, engine_config: Any, optimizer_config: Any, checkpoint_config: Any, **_: Any):
        self._vocab_size = model_config.hf_config.vocab_size
        self._url = engine_config.url
        self._client: ReferenceClient | None = None

    def initialize(self) -> None:
        if not self.is_mp_src_rank_with_outputs():
            return
        self._client = ReferenceClient(self._url, fingerprint="first")
        served = self._client.wait_ready().vocab_size
        if served != self._vocab_size:
            raise ValueError(f"the reference has a vocabulary of {served}, the policy one of {self._vocab_size}")

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_size(self) -> int:
        return 1

    def get_data_parallel_group(self) -> None:
        return None

    def is_mp_src_rank_with_outputs(self) -> bool:
        return torch.distributed.get_rank() == 0

    def eval_mode(self, **_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def to(self, *_: Any, **__: Any) -> None:
        pass

    def infer_batch(self, data: Any, loss_function: Any = None) -> dict[str, Any]:
        """data: `prompts` and `responses`, nested (B, P) and (B, R). The score of token t + 1 stands at t, as verl expects."""
        if self._client is None:
            return {}
        prompts = [tuple(row.tolist()) for row in data["prompts"].unbind()]
        responses = [row.tolist() for row in data["responses"].unbind()]
        temperature = float(tensordict_utils.get_non_tensor_data(data, "temperature", 1.0))

        groups: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(row)
        result = self._client.score(
            prompts=[list(prompt) for prompt in groups],
            completions=[[responses[row] for row in rows] for rows in groups.values()],
            temperature=temperature,
        )
        scores: dict[int, torch.Tensor] = {}
        for row, completion in zip([row for rows in groups.values() for row in rows], result, strict=True):
            if completion.status is not Status.OK:
                raise ValueError(f"row {row}: the reference has no finite score for every token")
            scores[row] = torch.from_numpy(completion.logprobs.copy())
        rows = [torch.cat([torch.zeros(len(prompts[i]) - 1), scores[i], torch.zeros(1)]) for i in range(len(prompts))]
        return {
            "model_output": {"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)},
            "loss": [],
            "metrics": {},
        }
