"""The order in which refused requests are told to come back."""

from __future__ import annotations

import pytest
from grpo_server.scheduler.timeline import HORIZON_SECONDS, Timeline
from server_fakes import FakeClock


def test_promises_follow_one_another_at_the_speed_of_the_engine() -> None:
    timeline = Timeline(FakeClock())
    assert [timeline.place(25, 2.0, 100) for _ in range(5)] == pytest.approx([2.0, 2.25, 2.5, 2.75, 3.0])


def test_one_that_takes_seconds_is_not_overlapped() -> None:
    timeline = Timeline(FakeClock())
    assert timeline.place(250, 1.0, 100) == 1.0
    assert timeline.place(10, 1.0, 100) == pytest.approx(3.5)


def test_what_needs_to_wait_longer_leaves_the_seconds_before_to_others() -> None:
    timeline = Timeline(FakeClock())
    assert timeline.place(10, 5.0, 100) == 5.0
    assert timeline.place(10, 1.0, 100) == 1.0
    assert timeline.place(10, 5.0, 100) == pytest.approx(5.1)


def test_a_smaller_share_that_returns_makes_room_between_promises_made_before() -> None:
    timeline = Timeline(FakeClock())
    for _ in range(10):
        timeline.place(100, 1.0, 100)  # everybody was expected: ten seconds are full
    assert timeline.place(100, 1.0, 200) == pytest.approx(
        1.5
    )  # half of them are: every second has half of its room left


def test_what_has_passed_is_forgotten() -> None:
    clock = FakeClock()
    timeline = Timeline(clock)
    for _ in range(100):
        timeline.place(100, 1.0, 100)
    clock.now += 1000
    assert timeline.place(100, 1.0, 100) == 1.0
    assert len(timeline._promised) == 1


def test_a_flood_is_told_an_hour_and_held_in_bounded_memory() -> None:
    timeline = Timeline(FakeClock())
    waits = [timeline.place(10_000_000, 1.0, 100) for _ in range(50)]
    assert waits[0] == 1.0
    assert set(waits[1:]) == {HORIZON_SECONDS}
    assert len(timeline._promised) <= HORIZON_SECONDS
    assert timeline.place(1, 7200.0, 100) == 7200.0
