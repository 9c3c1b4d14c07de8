"""The door for TRL: trainers whose reference, or teacher, is the service, so that no second model is ever loaded.

    from grpo_training.trl import RemoteReferenceGRPOTrainer

    RemoteReferenceGRPOTrainer(
        "Qwen/Qwen3-0.6B", reward, args=GRPOConfig(beta=0.04), train_dataset=data, reference="http://localhost:8000"
    ).train()

Needs the extra `trl` (made and tested with trl 1.16).
"""

from grpo_training.trl.dpo import RemoteReferenceDPOTrainer
from grpo_training.trl.grpo import RemoteReferenceGRPOTrainer
from grpo_training.trl.private import TrlChanged
from grpo_training.trl.served import ReferenceUnusable, ServedReference
from grpo_training.trl.teacher import RemoteTeacherTrainer

__all__ = [
    "ReferenceUnusable",
    "RemoteReferenceDPOTrainer",
    "RemoteReferenceGRPOTrainer",
    "RemoteTeacherTrainer",
    "ServedReference",
    "TrlChanged",
]
