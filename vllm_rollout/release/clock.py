"""Time, as a seam: weeks of rollout pass in seconds under a test's clock."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the rollout knows of time."""

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""

    def sleep(self, duration: timedelta) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment."""
        return time.monotonic()

    def sleep(self, duration: timedelta) -> None:
        """Wait."""
        time.sleep(max(0.0, duration.total_seconds()))
