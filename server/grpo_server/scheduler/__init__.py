"""Which tokens are computed when. No torch and no HTTP in here.

`queue` decides which requests share a batch, `engine_loop` when it is taken and computed, `admission` who may join the queue,
`cutting` what a large request is taken in, `cache` what need not be computed again; `scheduler` is the way through them."""

from grpo_server.scheduler.scheduler import Scheduler, SchedulerLimits

__all__ = ["Scheduler", "SchedulerLimits"]
