"""What a server is at: for its probes, for people, and for requests that come too early."""

from __future__ import annotations

from enum import StrEnum

from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler.door import draining

RETRY_AFTER_LOADING_SECONDS = 2.0


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    SWAPPING = "swapping"
    DRAINING = "draining"
    FAILED = "failed"


def words(phase: Phase, *, loading: str, stage: str, failure: str) -> str:
    """For people. loading: the references that come up. stage: of that, or empty. failure: why they do not."""
    match phase:
        case Phase.LOADING:
            return f"loading {loading}: {stage}" if stage else f"loading {loading}"
        case Phase.SWAPPING:
            return "the next reference is being loaded"
        case Phase.DRAINING:
            return "finishing what was accepted"
        case Phase.FAILED:
            return failure
        case Phase.READY:
            return "ready"


def not_loaded(phase: Phase, progress: str) -> ServiceError:
    """503 while there is nobody to answer. progress: `words` of it."""
    if phase is Phase.DRAINING:
        return draining("the server is shutting down before it was ready")
    if phase is Phase.FAILED:
        return ServiceError(ErrorCode.LOAD_FAILED, f"{progress}; the server's log has the details")
    return ServiceError(
        ErrorCode.LOADING,
        f"the server is not ready yet ({progress}); come back soon",
        retry_after=RETRY_AFTER_LOADING_SECONDS,
    )
