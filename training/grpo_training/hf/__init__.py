"""The door for the Hugging Face Trainer: StableMax in place of softmax in the loss, orthogonal gradients in the optimizer.

    from grpo_training.hf import StableMaxTrainer, StableMaxTrainingArguments

    args = StableMaxTrainingArguments("out", use_stable_max=True, use_orthogonal_optimizer=True)
    StableMaxTrainer(model=model, args=args, train_dataset=dataset).train()

Needs the extra `training`.
"""

from grpo_training.hf.architectures import MODEL_CONFIG_MAPPING, Architecture
from grpo_training.hf.arguments import StableMaxTrainingArguments
from grpo_training.hf.loss import StableMaxLoss
from grpo_training.hf.trainer import StableMaxTrainer

__all__ = [
    "MODEL_CONFIG_MAPPING",
    "Architecture",
    "StableMaxLoss",
    "StableMaxTrainer",
    "StableMaxTrainingArguments",
]
