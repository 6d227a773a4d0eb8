"""Times between the tokens of streamed answers, every one of them, in a histogram that merges.

An HDR histogram (3 significant digits, 1 µs to an hour) for each worker; those of several workers
add up exactly to that of all.
"""

from collections.abc import Iterable

from vllm_rollout.model.load_result import MOST_UNKNOWN, ItlSummary

_LONGEST_MICROSECONDS = 3600 * 1_000_000
_SIGNIFICANT_DIGITS = 3
_PER_SECOND = 1_000_000
_AT_ONCE = 4096


class ItlHistogram:
    """Counts gaps. Adding is cheap: they are sorted into the histogram many at once."""

    def __init__(self) -> None:
        import numpy  # noqa: F401 - a load would stand still for as long as that takes
        from hdrh.histogram import HdrHistogram

        self._histogram = HdrHistogram(1, _LONGEST_MICROSECONDS, _SIGNIFICANT_DIGITS)
        self._waiting: list[float] = []

    def add(self, gaps_seconds: Iterable[float]) -> None:
        """Count each gap."""
        self._waiting += gaps_seconds
        if len(self._waiting) >= _AT_ONCE:
            self._count()

    def encoded(self) -> str:
        """The histogram as text, for `merged`; empty where it counts nothing."""
        self._count()
        if self._histogram.get_total_count() == 0:
            return ""
        encoded: bytes = self._histogram.encode()
        return encoded.decode("ascii")

    def _count(self) -> None:
        import numpy as np

        micros = np.rint(np.asarray(self._waiting) * _PER_SECOND).clip(1, _LONGEST_MICROSECONDS)
        self._waiting.clear()
        # To 11 binary digits: all values that the histogram counts as one are one from here on.
        mantissas, exponents = np.frexp(micros)
        micros = np.ldexp(np.floor(np.ldexp(mantissas, 11)), exponents - 11)
        for value, count in zip(*np.unique(micros, return_counts=True), strict=True):
            self._histogram.record_value(int(value), int(count))


def merged(encoded: Iterable[str], *, unknown: int = 0) -> ItlSummary:
    """The gaps of several histograms together, and how many more are `unknown`.

    Raises:
        ValueError: a text is no histogram.
    """
    from hdrh.histogram import HdrHistogram

    whole = HdrHistogram(1, _LONGEST_MICROSECONDS, _SIGNIFICANT_DIGITS)
    for text in filter(None, encoded):
        try:
            whole.decode_and_add(text.encode("ascii"))
        except Exception as error:  # the library raises what its decoder happens to raise
            raise ValueError(f"not a histogram: {text[:40]!r}") from error
    count = whole.get_total_count()
    if count == 0 or unknown > MOST_UNKNOWN * (count + unknown):
        return ItlSummary(count=count, unknown=unknown)
    at = {p: whole.get_value_at_percentile(p) / _PER_SECOND for p in (50, 95, 99)}
    return ItlSummary(
        count=count,
        unknown=unknown,
        p50_seconds=at[50],
        p95_seconds=at[95],
        p99_seconds=at[99],
        longest_seconds=whole.get_max_value() / _PER_SECOND,
    )
