"""Offset between the wall clock and the monotonic clock."""

import time

_READINGS = 20


def wall_less_monotonic() -> float:
    """`time.time()` less `time.monotonic()`, in seconds.

    Of several readings the quickest counts: a process that loses its core between two clocks would
    have them apart by that.
    """
    readings = []
    for _ in range(_READINGS):
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, wall - (before + after) / 2))
    return min(readings)[1]
