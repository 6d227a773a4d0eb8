"""Percentiles of a sample by nearest rank: a value that was really seen, never one between two."""

import math
from collections.abc import Sequence
from fractions import Fraction


def check_percentile(percentile: float) -> None:
    """Refuse what is no percentile, and a fraction that was meant as one.

    Raises:
        ValueError: not from 1 to below 100.
    """
    if 0 < percentile < 1:
        raise ValueError(
            f"percentile {percentile:g} is a fraction: write {100 * percentile:g} for "
            f"P{100 * percentile:g}"
        )
    if not 0 < percentile < 100:
        raise ValueError(f"percentile must lie between 0 and 100 (95 for P95), not {percentile}")


def nearest_rank(n: int, percentile: float | str) -> int:
    """The rank (1 is the smallest of `n` > 0) that is called the percentile, 95 for P95.

    Of the decimal as it is written: 99.9% of 1,000 is rank 999, and in binary it would be 1,000.
    """
    return max(1, math.ceil(Fraction(str(percentile)) * n / 100))


def percentile_of(ordered: Sequence[float], percentile: float | str) -> float | None:
    """The percentile of values in rising order; None of nothing."""
    return ordered[nearest_rank(len(ordered), percentile) - 1] if len(ordered) else None
