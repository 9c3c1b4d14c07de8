"""verl's trainers (v1) without a reference worker: the request leaves before the actor's forward and is waited for after it.

    export VERL_USE_EXTERNAL_MODULES=grpo_client.verl.trainer
    python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=sync_refserver +trainer.v1.refserver.url=http://host:8000

One process, the trainer's, asks; so each prompt is sent once, and no GPU is held for the reference. `reference/wait_s` is what
the step still waited for it, `reference/prompts` how many were sent. `+trainer.v1.refserver.reference_model=NAME` names the
reference, where the server hosts several.
"""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false, reportUntypedBaseClass=false
# pyright: reportUnknownArgumentType=false, reportUntypedClassDecorator=false
from __future__ import annotations

from typing import Any

import torch
import transfer_queue
from tensordict import TensorDict
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer
from verl.utils.config import omega_conf_to_dataclass

from grpo_client.client import ReferenceClient
from grpo_client.verl.rows import Waiting, refuse_adapter, refuse_vocabulary, rows_of, submit

SUFFIX = "_refserver"


def without_reference_worker(base: type[Any], mode: str) -> type[Any]:
    """A trainer like `base`, which verl knows as `mode`, whose reference is served."""

    class Served(base):
        def __init__(self, config: Any) -> None:
            refuse_adapter(config.actor_rollout_ref.model)
            asked = config.trainer.v1.get("refserver") or {}
            url = asked.get("url")
            if not url:
                raise ValueError(
                    "trainer.v1.refserver.url is missing: +trainer.v1.refserver.url=http://host:8000 names the server"
                )
            # Replay buffer, refill and checkpoints compare this name with the base's.
            config.trainer.v1.trainer_mode = mode
            super().__init__(config)
            self._reference = ReferenceClient(url, fingerprint="first", model=asked.get("reference_model"))
            self._reference_checked = False
            self._waiting: Waiting | None = None

        def _init_resource_pool_mgr(self) -> None:
            super()._init_resource_pool_mgr()
            for table in (self.role_worker_mapping, self.mapping):
                table.pop(Role.RefPolicy, None)
                if Role.ActorRolloutRef in table:
                    table[Role.ActorRollout] = table.pop(Role.ActorRolloutRef)

        def _setup(self) -> None:
            wanted, self.use_reference_policy = self.use_reference_policy, False
            super()._setup()
            self.use_reference_policy = wanted

        def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
            if self.use_reference_policy:
                self._waiting = self._asked(batch)
            return super()._compute_old_log_prob(batch, metrics)

        def _compute_ref_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
            # A trainer that leaves the old log-probs out comes here first.
            waiting, self._waiting = self._waiting or self._asked(batch), None
            scores = torch.nested.as_nested_tensor(waiting.collect(), layout=torch.jagged)
            transfer_queue.kv_batch_put(
                keys=batch.keys,
                partition_id=batch.partition_id,
                fields=TensorDict({"ref_log_prob": scores}, batch_size=len(batch)),
            )
            metrics["reference/wait_s"] = waiting.waited_s
            metrics["reference/prompts"] = waiting.prompts
            return batch

        def _asked(self, batch: Any) -> Waiting:
            if not self._reference_checked:
                refuse_vocabulary(self._reference.wait_ready().vocab_size, self._vocab_size())
                self._reference_checked = True
            data = transfer_queue.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts", "responses"]
            )
            return submit(self._reference, *rows_of(data), self.config.actor_rollout_ref.rollout.temperature)

        def _vocab_size(self) -> int:
            return int(omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config.vocab_size)

    Served.__name__ = Served.__qualname__ = f"{base.__name__}Served"
    return Served


for _mode, _base in tuple(TRAINER_REGISTRY.items()):
    if not _mode.endswith(SUFFIX):
        register_trainer(f"{_mode}{SUFFIX}")(without_reference_worker(_base, _mode))
