"""What a run is told: one frozen value, read from YAML, corrected on the command line, checked once.

    config = load_config("examples/arithmetic.yaml", overrides=["optimizer.lr=2e-5", "rollout.temperature=0.7"])

An unknown field is refused with the name it was probably meant to be. Nothing here opens a model or a connection.
"""

from __future__ import annotations

from .data import EvalConfig, RolloutConfig, TaskConfig
from .distillation import DistillConfig, TeacherKind, TeacherSupport, TeacherTail
from .environment import EnvironmentConfig
from .errors import (
    CheckpointError,
    ConfigError,
    EnvironmentFailed,
    NothingTrained,
    OutputError,
    RewardError,
    RolloutError,
    TeacherError,
)
from .learning import (
    CollapseConfig,
    Correction,
    Granularity,
    KlKind,
    LossConfig,
    LossKind,
    OptimizerConfig,
    OrthoGradConfig,
)
from .model import LoraConfig, ModelConfig, ReferenceConfig
from .reading import load_config
from .rewards import BUILT_IN, OnError, RewardConfig
from .run import DistributedConfig, TrainConfig, TrainerConfig

__all__ = [
    "BUILT_IN",
    "CheckpointError",
    "CollapseConfig",
    "ConfigError",
    "Correction",
    "DistillConfig",
    "DistributedConfig",
    "EnvironmentConfig",
    "EnvironmentFailed",
    "EvalConfig",
    "Granularity",
    "KlKind",
    "LoraConfig",
    "LossConfig",
    "LossKind",
    "ModelConfig",
    "NothingTrained",
    "OnError",
    "OptimizerConfig",
    "OrthoGradConfig",
    "OutputError",
    "ReferenceConfig",
    "RewardConfig",
    "RewardError",
    "RolloutConfig",
    "RolloutError",
    "TaskConfig",
    "TeacherError",
    "TeacherKind",
    "TeacherSupport",
    "TeacherTail",
    "TrainConfig",
    "TrainerConfig",
    "load_config",
]
