"""Who is hosted, told to whoever must know: the log, the metrics, and the scheduler, whose batches must fit them all."""

from __future__ import annotations

import logging
from concurrent.futures import Executor

from grpo_server.config import ServerConfig
from grpo_server.engine.contract import HostedEngine
from grpo_server.naming import Named
from grpo_server.observability import Metrics
from grpo_server.scheduler import Scheduler
from grpo_server.swapping.house import House
from grpo_server.swapping.opening import Opened, common_limits
from grpo_server.swapping.references import References

logger = logging.getLogger(__name__)


class Hosting:
    """Belongs to the event loop. opened: what came up, the default first. compute: the thread in which weights are let go
    of."""

    def __init__(
        self, config: ServerConfig, opened: Opened, scheduler: Scheduler, metrics: Metrics, compute: Executor
    ) -> None:
        self._config, self._scheduler, self._metrics, self._compute = config, scheduler, metrics, compute
        self.references = References()
        for n, (named, engine) in enumerate(opened):
            self.references.add(House(named, engine, scheduler, compute, default=n == 0))

    def add(self, named: Named, engine: HostedEngine) -> House:
        """From now on this further reference can be asked."""
        house = House(named, engine, self._scheduler, self._compute, default=False)
        self.references.add(house)
        self._fit()
        return house

    async def drop(self, house: House) -> None:
        """From now on it is asked no more. Over when it has answered what it accepted, and its memory is free."""
        self._metrics.by_reference.forget(house.named.label)
        await self.references.drop(house)
        self._fit()
        self._metrics.peak_flops(self._common_peak())

    def announce(self, house: House) -> None:
        """Another reference is hosted in this house, or the first one."""
        info = house.engine.info
        self._metrics.by_reference.hosted(house.named.label, info)
        self._metrics.peak_flops(self._common_peak())
        if house.default:
            self._metrics.reference(info)
        logger.info(
            "serving %s%s version %d, fingerprint %s, %s, %s mode%s, tier %s, context %d",
            info.model,
            "" if len(self.references) == 1 or house.named.label == info.model else f" as {house.named.label}",
            info.version,
            info.fingerprint[:16],
            info.dtype,
            info.mode,
            " (bitwise)" if info.bitwise else "",
            info.tier,
            info.max_length,
        )

    def _common_peak(self) -> float | None:
        """None where references differ: what they do is counted together."""
        peaks = {house.engine.peak_flops for house in self.references}
        return peaks.pop() if len(peaks) == 1 else None

    def _fit(self) -> None:
        limits = self._config.scheduler(common_limits([house.engine for house in self.references]))
        self._scheduler.resize(limits)
        self._metrics.limits(limits)
