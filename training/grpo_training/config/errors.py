"""What can be wrong with a run, by whose it is to put right."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration cannot be used; the message names each field and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says why and what to do."""


class RolloutError(RuntimeError):
    """The rollout server failed, or what it answers cannot be trained on; the message says why and what to do."""


class EnvironmentFailed(RuntimeError):
    """An environment failed, took too long or said what cannot be used; the message names it, the row, the turn and why."""


class TeacherError(RuntimeError):
    """A teacher failed, or what it answers cannot be learnt from; the message names it and says why."""


class RewardError(RuntimeError):
    """A reward function failed or took too long; the message names it, the row and what went wrong."""


class OutputError(RuntimeError):
    """What a run makes cannot be written: the disk is full or read-only; the message says where and why."""


class NothingTrained(RuntimeError):
    """A run came to its end and no step of it changed a weight; the message says what each lacked."""
