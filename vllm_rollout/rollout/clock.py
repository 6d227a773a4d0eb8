"""Clock of a rollout; a test's own clock lets weeks pass in seconds."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

# CLOCK_MONOTONIC stands still while a Linux machine is suspended: a lease would seem to last.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Source of time for a rollout."""

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""

    def monotonic(self) -> float:
        """Seconds that never run backwards, and go on while the machine sleeps."""

    def sleep(self, duration: timedelta) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment, time asleep included where the system tells it."""
        return time.clock_gettime(_ELAPSED)

    def sleep(self, duration: timedelta) -> None:
        """Wait."""
        time.sleep(max(0.0, duration.total_seconds()))
