"""The door for verl: a reference and a teacher that are served, in place of workers that hold a model.

    actor_rollout_ref.ref._target_=grpo_client.verl.RemoteReference  +actor_rollout_ref.ref.url=http://host:8000

rows       what verl hands over, as one request in which each prompt stands once
engine     the engine of a reference worker, found through its configuration
trainer    a trainer without a reference worker, which asks before the actor's forward and waits after it
teacher    a teacher for on-policy distillation

In the client, and nothing beside it is needed: verl pins an older transformers than the trainers of this project. Written for
verl 0.9; torch comes with verl. Imports nothing of verl by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_client.verl.engine import RemoteMegatronReference, RemoteReference
    from grpo_client.verl.teacher import ServedTeacher

__all__ = ["RemoteMegatronReference", "RemoteReference", "ServedTeacher"]


def __getattr__(name: str) -> Any:
    # Hydra looks `_target_` up here; whoever wants only the teacher need not have verl's workers.
    if name in ("RemoteReference", "RemoteMegatronReference"):
        from grpo_client.verl import engine

        return getattr(engine, name)
    if name == "ServedTeacher":
        from grpo_client.verl.teacher import ServedTeacher

        return ServedTeacher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
