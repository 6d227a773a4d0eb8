"""Recorded times of each request by the server's clock, for benchmarks to compare with."""

import math
import time
from collections import deque
from typing import Any, Literal

Outcome = Literal[
    "ok", "refused", "error", "overloaded", "dead", "malformed", "truncated", "aborted"
]

_FIELDS = (
    "id",
    "stream",
    "outcome",
    "received",
    "first_token",
    "end",
    "tokens",
    "target_ttft_seconds",
    "target_seconds",
)


class RecordedTimes:
    """The last `keep` inference requests that ended, in order of their end."""

    def __init__(self, keep: int = 200_000) -> None:
        # Plain tuples of plain values: the garbage collector stops looking at them.
        self._rows: deque[tuple[object, ...]] = deque(maxlen=keep)

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()

    def add(
        self,
        *,
        request_id: str,
        stream: bool,
        outcome: Outcome,
        received: float,
        first_token: float,
        end: float,
        tokens: int,
        target_ttft_seconds: float,
        target_seconds: float,
    ) -> None:
        """Record a request.

        Times are `time.monotonic` seconds, NaN if they never came. The targets are what was drawn:
        the latencies there would be without queue, stall or lateness.
        """
        self._rows.append(
            (
                request_id,
                stream,
                outcome,
                received,
                first_token,
                end,
                tokens,
                target_ttft_seconds,
                target_seconds,
            )
        )

    def document(self) -> dict[str, Any]:
        """All of it, NaN as None. A monotonic time plus `unix_minus_monotonic` is Unix time.

        A full ring takes about a second, in which no token comes: ask when the load is over.
        """
        return {
            "unix_minus_monotonic": time.time() - time.monotonic(),
            "requests": [dict(zip(_FIELDS, map(_plain, row), strict=True)) for row in self._rows],
        }


def _plain(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
