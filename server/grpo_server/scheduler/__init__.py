"""Which tokens are computed when: admission, fair queue, batches, cache. No torch and no HTTP in here."""

from grpo_server.scheduler.scheduler import Scheduler, SchedulerLimits

__all__ = ["Scheduler", "SchedulerLimits"]
