"""Reservations: who comes back when it was told to is let in, whatever the crowd at the door does, and no room stays empty."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter

import pytest
from grpo_server.errors import ServiceError
from grpo_server.scheduler.admission import TOKENS_MARGIN, Admission
from grpo_server.scheduler.reservations import GRACE_SECONDS, MAX_RESERVATIONS, PROMISED, Reservations
from server_fakes import FakeClock


def admission_with_full_queue(clock: FakeClock) -> Admission:
    """1000 tokens wait, none more fit, 100 are computed a second."""
    admission = Admission(1000, 10**6, clock)
    admission.throughput.add(100, 1.0)
    admission.admit(1000, 0, lambda: b"first")
    return admission


def wait_told(admission: Admission, name: bytes, tokens: int = 400) -> float:
    with pytest.raises(ServiceError) as caught:
        admission.admit(tokens, 0, lambda: name)
    assert caught.value.retry_after is not None
    return caught.value.retry_after


def test_each_finds_room_when_it_comes_back_at_its_own_time() -> None:
    clock = FakeClock()
    admission = admission_with_full_queue(clock)
    began = clock.now
    waits = {name: wait_told(admission, name) for name in (b"a", b"b")}
    assert waits == {b"a": pytest.approx(4.0), b"b": pytest.approx(4.0 + 4.0 / PROMISED)}
    for name, wait in waits.items():
        admission.computed(round((began + wait - clock.now) * 100))  # the engine keeps its speed
        clock.now = began + wait
        wait_told(admission, b"newcomer", tokens=300)  # the room is there, and it is not for this one
        admission.admit(400, 0, lambda name=name: name)
    assert admission.tokens == pytest.approx(1000, abs=50)


def test_an_engine_that_became_slower_does_not_make_a_liar_of_the_door() -> None:
    clock = FakeClock()
    admission = admission_with_full_queue(clock)
    clock.now += wait_told(admission, b"a")
    admission.computed(200)  # half of what was expected
    admission.admit(400, 0, lambda: b"a")
    assert admission.tokens <= TOKENS_MARGIN * 1000


def test_a_reservation_that_nobody_claims_lapses_and_counts_for_less() -> None:
    clock = FakeClock()
    admission = admission_with_full_queue(clock)
    clock.now += wait_told(admission, b"a") - 0.5
    admission.computed(400)
    assert admission.reservations.kept == 400
    clock.now += 1.5 + GRACE_SECONDS
    admission.admit(400, 0, lambda: b"newcomer")
    for n in range(500):
        admission.reservations.reserve(n.to_bytes(4, "little"), 10, 1.0, 1e6)
    clock.now += 2.0 + GRACE_SECONDS
    admission.reservations.reserve(b"b", 400, 1.0, 1e6)
    clock.now += 1.0
    assert admission.reservations.kept < 250  # a twentieth, and two deviations of one request that may come or not


def test_who_comes_before_its_time_is_no_better_than_a_newcomer() -> None:
    clock = FakeClock()
    admission = admission_with_full_queue(clock)
    clock.now += wait_told(admission, b"a") - 1.0
    admission.computed(300)
    assert wait_told(admission, b"a") > 1.0


def test_one_of_two_equal_requests_does_not_use_up_both_reservations() -> None:
    clock = FakeClock()
    reservations = Reservations(clock)
    assert [reservations.reserve(b"same", 10, seconds, 1e6) for seconds in (1.0, 2.0)] == [1.0, 2.0]
    clock.now += 2.0
    assert [reservations.claim(b"same") for _ in range(3)] == [True, True, False]
    assert reservations.kept == pytest.approx(0)
    assert len(reservations) == 0


def test_those_who_never_come_back_hold_a_bounded_memory() -> None:
    clock = FakeClock()
    reservations = Reservations(clock)
    for n in range(MAX_RESERVATIONS + 100):
        reservations.reserve(n.to_bytes(4, "little"), 1, 5.0, 1e9)
    assert len(reservations) == MAX_RESERVATIONS
    clock.now += 6.0 + GRACE_SECONDS
    assert reservations.kept == 0
    assert len(reservations) == 0


# everybody returning to an engine that became slower is left out: minutes of promises at full speed cannot all be kept by it
@pytest.mark.parametrize(
    ("returning", "slower"),
    [(0.0, False), (0.1, False), (0.5, False), (1.0, False), (0.0, True), (0.1, True), (0.5, True)],
)
@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize(("limit", "batch"), [(2048, 256), (4096, 2048), (12288, 2048)])
def test_under_overload_every_return_is_admitted_and_the_engine_never_idles(
    returning: float, times: int, limit: int, batch: int, slower: bool
) -> None:
    """Two minutes of requests at a multiple of the capacity; a share of the refused comes back, late by up to half a second.
    slower: after ten seconds the engine loses a quarter of its speed, which nobody could know."""
    clock, draw = FakeClock(), random.Random(1)
    speed, seconds = 1000.0, 120.0
    admission = Admission(limit, 10**9, clock)
    admission.throughput.add(1000, 1.0)
    end = clock.now + seconds
    engine = Batches(admission, clock, batch, speed)
    number = itertools.count()
    tally: Counter[str] = Counter()
    most = wait = 0.0
    arrivals: list[tuple[float, int, int, bool]] = []  # when, number, tokens, whether told to come
    when = clock.now
    while (when := when + draw.expovariate(times * speed / 100)) < end:
        arrivals.append((when, next(number), draw.randrange(20, 180), False))
    heapq.heapify(arrivals)
    while arrivals and arrivals[0][0] < end:
        when, name, tokens, told = heapq.heappop(arrivals)
        engine.compute_until(when)
        if slower and when > end - seconds + 10:
            engine.speed = 0.75 * speed
        try:
            admission.admit(tokens, 0, lambda name=name: name.to_bytes(4, "little"))
            tally["returned, admitted" if told else "admitted"] += 1
        except ServiceError as error:
            tally["returned, refused" if told else "refused"] += 1
            wait = error.retry_after or math.inf
            if not told and draw.random() < returning:
                heapq.heappush(arrivals, (when + wait + draw.random() / 2, name, tokens, True))
        most = max(most, admission.waiting)
    assert tally["returned, refused"] == 0, tally
    assert most <= TOKENS_MARGIN * limit
    assert slower or most <= 1.5 * limit
    assert engine.busy + clock.now - engine.began >= 0.98 * seconds
    if returning:
        assert tally["returned, admitted"] > 20
    if returning <= 0.1 and not slower:
        assert wait < 30  # nobody waits for a crowd that does not come


class Batches:
    """An engine that takes what waits, up to `batch` tokens, and reports when it is done with all of them."""

    def __init__(self, admission: Admission, clock: FakeClock, batch: int, speed: float) -> None:
        self.admission, self.clock, self.batch, self.speed = admission, clock, batch, speed
        self.running, self.began, self.done, self.busy = 0, 0.0, math.inf, 0.0

    def compute_until(self, when: float) -> None:
        while min(self.done, self._begin()) <= when:
            self.clock.now = self.done
            self.busy += self.done - self.began
            self.admission.throughput.add(self.running, self.done - self.began)
            self.admission.computing(0)
            self.admission.computed(self.running)
            self.running, self.done = 0, math.inf
        self.clock.now = when

    def _begin(self) -> float:
        if not self.running and self.admission.tokens:
            self.running = min(self.batch, self.admission.tokens)
            self.began, self.done = self.clock.now, self.clock.now + self.running / self.speed
            self.admission.computing(self.running)
        return self.done
