"""Due times are absolute, nothing comes early, and a stopped timetable loses nothing."""

from typing import Any

import pytest

from vllm_rollout.simulator.timetable import Lateness, Timetable


class Ticker:
    """Items that are due every `period` seconds; notes when each came."""

    def __init__(self, loop: Any, period: float) -> None:
        self.seen: list[tuple[str, float]] = []
        self.settled = 0
        self.timetable: Timetable[str] = Timetable(loop, self._fire, self._settle)
        self._begin = loop.now
        self._due: dict[str, float] = {}
        self._period = period

    def start(self, item: str, delay: float) -> None:
        self._due[item] = self.timetable.now() + delay
        self.timetable.add(self._due[item], item)

    def times(self, item: str) -> list[float]:
        return [round(when - self._begin, 6) for one, when in self.seen if one == item]

    def _fire(self, item: str, now: float) -> float:
        self.seen.append((item, now))
        self._due[item] += self._period
        return self._due[item]

    def _settle(self) -> None:
        self.settled += 1


def test_no_item_is_early_or_drifts(manual_loop: Any) -> None:
    ticker = Ticker(manual_loop, period=0.0137)
    ticker.start("a", 0.0005)
    manual_loop.advance(14)
    times = ticker.times("a")
    assert len(times) == 1022
    late = [when - (0.0005 + 0.0137 * number) for number, when in enumerate(times)]
    assert min(late) >= -1e-6
    assert max(late) <= 0.002


def test_items_come_in_the_order_they_are_due(manual_loop: Any) -> None:
    ticker = Ticker(manual_loop, period=10)
    for item, delay in (("late", 0.5), ("first", 0.1), ("second", 0.1)):
        ticker.start(item, delay)
    manual_loop.advance(1)
    assert [item for item, _ in ticker.seen] == ["first", "second", "late"]


def test_what_was_to_come_is_later_by_the_pause(manual_loop: Any) -> None:
    ticker = Ticker(manual_loop, period=1)
    ticker.start("a", 1)
    manual_loop.advance(1.5)
    ticker.timetable.stop()
    ticker.timetable.stop()
    manual_loop.advance(100)
    ticker.start("b", 0.2)
    assert ticker.times("a") == [1.001] or ticker.times("a") == [1.0]
    ticker.timetable.go()
    ticker.timetable.go()
    manual_loop.advance(1)
    assert ticker.times("a")[1:] == pytest.approx([102], abs=0.0021)
    assert ticker.times("b") == pytest.approx([101.7], abs=0.0021)
    assert ticker.timetable.lateness.summary()["max_seconds"] <= 0.0021  # a pause is not lateness


def test_a_burst_lets_the_loop_breathe_and_loses_nothing(manual_loop: Any) -> None:
    ticker = Ticker(manual_loop, period=1000)
    for number in range(200):
        ticker.start(str(number), 0.01)
    manual_loop.advance(0.02)
    assert [item for item, _ in ticker.seen] == [str(number) for number in range(200)]
    assert ticker.settled >= 4


def test_lateness_is_none_until_there_is_some() -> None:
    lateness = Lateness(keep=100)
    assert lateness.summary() == {
        "count": 0,
        "p50_seconds": None,
        "p99_seconds": None,
        "max_seconds": None,
    }
    for number in range(1, 201):
        lateness.record(number / 1000)
    assert lateness.summary() == {
        "count": 200,
        "p50_seconds": 0.150,
        "p99_seconds": 0.199,
        "max_seconds": 0.200,
    }
