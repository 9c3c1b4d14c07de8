"""Admission: what can never fit, what does not fit now, and when to come back."""

from __future__ import annotations

import pytest
from grpo_server.errors import ErrorCode, ServiceError
from grpo_server.scheduler.admission import Admission, Throughput
from server_fakes import FakeClock


def anybody() -> bytes:
    return b""


def refused(admission: Admission, tokens: int, nbytes: int = 0) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        admission.admit(tokens, nbytes, anybody)
    return caught.value


def test_what_can_never_fit_is_413_and_names_the_flag() -> None:
    admission = Admission(100, 1000, FakeClock())
    by_tokens, by_bytes = refused(admission, 101), refused(admission, 1, 1001)
    assert by_tokens.code is by_bytes.code is ErrorCode.REQUEST_TOO_LARGE
    assert "--max-queue-tokens" in by_tokens.message
    assert "--max-queue-bytes" in by_bytes.message
    assert by_tokens.retry_after is None


def test_what_does_not_fit_now_is_429_with_the_time_that_the_queue_needs() -> None:
    admission = Admission(1000, 10**6, FakeClock())
    admission.throughput.add(50, 1.0)
    admission.admit(900, 0, anybody)
    error = refused(admission, 300)
    assert error.code is ErrorCode.QUEUE_FULL
    assert error.retry_after == pytest.approx(200 / 50)
    assert error.headers()["Retry-After"] == "4"


def test_a_queue_full_of_bytes_asks_for_the_time_to_empty_it() -> None:
    admission = Admission(1000, 100, FakeClock())
    admission.throughput.add(10, 1.0)
    admission.admit(200, 90, anybody)
    error = refused(admission, 10, 20)
    assert error.code is ErrorCode.QUEUE_FULL
    assert error.retry_after == pytest.approx(20.0)


def test_the_ledger_balances() -> None:
    admission = Admission(100, 100, FakeClock())
    admission.admit(60, 70, anybody)
    admission.admit(40, 30, anybody)
    assert (admission.requests, admission.tokens, admission.bytes) == (2, 100, 100)
    admission.computed(100)
    admission.leave(70)
    admission.leave(30)
    assert (admission.requests, admission.tokens, admission.bytes) == (0, 0, 0)


def test_throughput_forgets_the_assumption_at_the_first_measurement_and_follows_change() -> None:
    throughput = Throughput()
    throughput.add(50, 1.0)
    assert throughput.tokens_per_second == pytest.approx(50)
    for _ in range(20):
        throughput.add(500, 1.0)
    assert throughput.tokens_per_second == pytest.approx(500, rel=0.02)
    throughput.add(0, 1.0)
    throughput.add(10, 0.0)
    assert throughput.tokens_per_second == pytest.approx(500, rel=0.02)
