"""The engine of a reference worker that holds no model: chosen by the configuration of that worker, asked through the server.

Hydra instantiates `actor_rollout_ref.ref` by its `_target_` inside each worker, and that import registers the engine. One rank
asks for the whole batch; the others answer nothing, which verl knows of model-parallel ranks.
"""

# verl is no requirement of this project and has no types.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportUntypedClassDecorator=false
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from verl.utils import tensordict_utils
from verl.workers.config import FSDPActorConfig, McoreActorConfig
from verl.workers.engine import BaseEngine, EngineRegistry

from grpo_client.client import ReferenceClient
from grpo_client.verl.rows import refuse_adapter, refuse_vocabulary, rows_of, submit

BACKEND = "grpo-refserver"


@dataclass
class RemoteReference(FSDPActorConfig):
    """What stands under actor_rollout_ref.ref of an FSDP actor, and the server's URL. reference_model: which of those that the
    server hosts; None: its default."""

    url: str = ""
    reference_model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", BACKEND)
        super().__post_init__()
        _tell(self)


@dataclass
class RemoteMegatronReference(McoreActorConfig):
    """The same of a Megatron actor."""

    url: str = ""
    reference_model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", BACKEND)
        super().__post_init__()
        _tell(self)


def _tell(config: Any) -> None:
    """The engine is given `engine` alone: what it is and whom it asks stand there. verl freezes these objects."""
    if not config.url:
        raise ValueError("actor_rollout_ref.ref.url is empty: +actor_rollout_ref.ref.url=http://host:8000")
    object.__setattr__(config.engine, "strategy", BACKEND)
    object.__setattr__(config.engine, "url", config.url)
    object.__setattr__(config.engine, "reference_model", config.reference_model)


@EngineRegistry.register(model_type="language_model", backend=BACKEND, device=["cuda", "npu", "cpu"])
class RemoteReferenceEngine(BaseEngine):
    """`infer_batch` asks the server. Raises ValueError for another vocabulary, images, and a score that is not finite."""

    is_param_offload_enabled = is_optimizer_offload_enabled = False

    def __init__(
        self, model_config: Any, engine_config: Any, optimizer_config: Any, checkpoint_config: Any, **_: Any
    ) -> None:
        refuse_adapter(model_config)
        self._vocab_size = int(model_config.hf_config.vocab_size)
        self._url, self._model = engine_config.url, engine_config.reference_model
        self._client: ReferenceClient | None = None

    def initialize(self) -> None:
        if not self.is_mp_src_rank_with_outputs():
            return
        self._client = ReferenceClient(self._url, fingerprint="first", model=self._model)
        refuse_vocabulary(self._client.wait_ready().vocab_size, self._vocab_size)

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_size(self) -> int:
        return 1  # the whole batch in one piece, or a prompt would be asked by every rank that has a row of it

    def get_data_parallel_group(self) -> None:
        return None

    def is_mp_src_rank_with_outputs(self) -> bool:
        return torch.distributed.get_rank() == 0

    def eval_mode(self, **_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def to(self, *_: Any, **__: Any) -> None:
        """Nothing is on a device."""

    def infer_batch(self, data: Any, loss_function: Any = None) -> dict[str, Any]:
        """The log-probs of whole rows, (P + R,) each: position t has the score of token t + 1, as a model's forward does."""
        if self._client is None:
            return {}
        prompts, responses = rows_of(data)
        temperature = tensordict_utils.get_non_tensor_data(data, "temperature", 1.0)
        warmth = temperature.tolist() if isinstance(temperature, torch.Tensor) else float(temperature)
        waiting = submit(self._client, prompts, responses, warmth)
        scores = waiting.collect()
        rows = [torch.cat([torch.zeros(len(p) - 1), s, torch.zeros(1)]) for p, s in zip(prompts, scores, strict=True)]
        return {
            "model_output": {"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)},
            "loss": [],
            "metrics": {},
        }
