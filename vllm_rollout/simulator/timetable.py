"""Timetable of due tokens: one heap and one timer for all sequences, on a stoppable clock.

Due times are absolute, so lateness never adds up from token to token.
"""

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")

# libuv's timers count whole milliseconds; asking for less would spin.
_TICK_SECONDS = 0.001
# Entries handled before the loop may write and read again: a burst must not starve the sockets.
_BATCH = 64


class Lateness:
    """How late things were, in seconds: exact percentiles of the last `keep`, maximum of all."""

    def __init__(self, keep: int = 100_000) -> None:
        self._recent: deque[float] = deque(maxlen=keep)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._recent.clear()
        self._count = 0
        self._max = 0.0

    def record(self, seconds: float) -> None:
        """Add one."""
        self._recent.append(seconds)
        self._count += 1
        if seconds > self._max:
            self._max = seconds

    def summary(self) -> dict[str, float | None]:
        """`count`, `p50_seconds`, `p99_seconds`, `max_seconds`; None where nothing was recorded."""
        ordered = sorted(self._recent)

        def at(share: float) -> float | None:
            return ordered[math.ceil(len(ordered) * share) - 1] if ordered else None

        return {
            "count": self._count,
            "p50_seconds": at(0.5),
            "p99_seconds": at(0.99),
            "max_seconds": self._max if ordered else None,
        }


class Timetable(Generic[Item]):
    """Fires items when they are due.

    `fire(item, now)` gets the monotonic time and returns when the item is due next, or None.
    `settle()` is called once after each group of firings. Due times are in this timetable's own
    seconds (`now`), which stand still while it is stopped.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fire: Callable[[Item, float], float | None],
        settle: Callable[[], None],
    ) -> None:
        self.lateness = Lateness()
        self._loop = loop
        self._fire = fire
        self._settle = settle
        self._heap: list[tuple[float, int, Item]] = []
        self._order = count()
        self._offset = 0.0
        self._stopped_at: float | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_due = math.inf

    def now(self) -> float:
        """This timetable's time in seconds."""
        return (time.monotonic() if self._stopped_at is None else self._stopped_at) - self._offset

    def add(self, due: float, item: Item) -> None:
        """Fire `item` at `due`."""
        heapq.heappush(self._heap, (due, next(self._order), item))
        self._arm()

    def stop(self) -> None:
        """Stand still: nothing fires until `go`."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self._disarm()

    def go(self) -> None:
        """Go on where `stop` stopped: whatever was still to come is later by the pause."""
        if self._stopped_at is not None:
            self._offset += time.monotonic() - self._stopped_at
            self._stopped_at = None
            self._arm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = None, math.inf

    def _arm(self) -> None:
        if self._stopped_at is not None or not self._heap:
            return
        due = self._heap[0][0]
        if due >= self._timer_due:
            return
        self._disarm()
        ticks = math.ceil((due - self.now()) / _TICK_SECONDS)
        self._timer_due = due
        self._timer = self._loop.call_later(max(1, ticks) * _TICK_SECONDS, self._wake)

    def _wake(self) -> None:
        # Nothing that is fired may arm the timer: the last lines do.
        self._timer_due = -math.inf
        more = self._fire_due()
        self._settle()
        self._disarm()
        if more:
            self._timer, self._timer_due = self._loop.call_soon(self._wake), -math.inf
        else:
            self._arm()

    def _fire_due(self) -> bool:
        """Fire what is due, a batch at most; return whether some is left."""
        heap = self._heap
        for _ in range(_BATCH):
            if not heap or self._stopped_at is not None:
                return False
            now = time.monotonic()
            late = now - self._offset - heap[0][0]
            if late < 0:
                return False
            item = heapq.heappop(heap)[2]
            self.lateness.record(late)
            following = self._fire(item, now)
            if following is not None:
                heapq.heappush(heap, (following, next(self._order), item))
        return bool(heap)
