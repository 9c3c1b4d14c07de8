"""OpenRLHF's PPO and GRPO with a served reference: no GPU and no worker is held for it.

    GRPO_REFERENCE_URL=http://host:8000 python openrlhf_reference.py --actor.model_name_or_path ...

in place of `python -m openrlhf.cli.train_ppo_ray`, with the same arguments. `--algo.kl.init_coef` must be above 0, or nobody
is asked. GRPO_REFERENCE_MODEL names the reference, where the server hosts several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from grpo_client import ReferenceClient
from grpo_client.verl.rows import submit
from torch import Tensor


class ServedReference:
    """What OpenRLHF asks of the group of actors that holds its reference.

    put: Ray's. copies: OpenRLHF reads one of so many answers, those of its ring attention and tensor parallelism.
    """

    def __init__(
        self, url: str, put: Callable[[Any], Any], copies: int = 1, reference_model: str | None = None
    ) -> None:
        self._client = ReferenceClient(url, fingerprint="first", model=reference_model)
        self._put, self._copies = put, copies
        self._temperature = 1.0

    def async_init_model_from_pretrained(self, strategy: Any, pretrain: str) -> list[Any]:
        self._temperature = float(strategy.args.rollout.temperature)
        return []

    def async_run_method(self, method_name: str, *_: Any, **__: Any) -> list[Any]:
        return []  # nothing to empty, offload or save

    def async_run_method_batch(
        self,
        method_name: str,
        *,
        sequences: Sequence[Tensor],
        action_mask: Sequence[Tensor],
        attention_mask: Sequence[Tensor],
        mm_train_inputs_list: Any = None,
    ) -> list[Any]:
        """One answer for all micro-batches, in order. Each is (B, A) fp32 of the last A columns of its `sequences` (B, S)."""
        if mm_train_inputs_list is not None:
            raise ValueError("the batch has images, and the reference service scores text alone")
        prompts, responses = [], []
        for ids, acted, real in zip(sequences, action_mask, attention_mask, strict=True):
            start = ids.shape[1] - acted.shape[1]
            for row, mask in zip(ids, real.bool(), strict=True):
                prompts.append(row[:start][mask[:start]].tolist())
                responses.append(row[start:][mask[start:]].tolist())
        scores = iter(submit(self._client, prompts, responses, self._temperature).collect())
        answers = []
        for ids, acted, real in zip(sequences, action_mask, attention_mask, strict=True):
            out = torch.zeros(acted.shape, dtype=torch.float32)
            for row, mask in zip(out, real.bool()[:, ids.shape[1] - acted.shape[1] :], strict=True):
                row[mask] = next(scores)
            answers.append(out * acted.float())
        return [self._put(answers)] * self._copies


def main() -> None:
    import runpy

    import ray
    from openrlhf.trainer.ray import launcher

    group = launcher.RayActorGroup

    def made(nodes: int, gpus: int, actor: Any, *rest: Any, **options: Any) -> Any:
        if actor is not launcher.ReferenceModelActor:
            return group(nodes, gpus, actor, *rest, **options)
        url, name = os.environ["GRPO_REFERENCE_URL"], os.environ.get("GRPO_REFERENCE_MODEL")
        return ServedReference(url, ray.put, options.get("duplicate_actors", 1), name)

    launcher.RayActorGroup = made
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
