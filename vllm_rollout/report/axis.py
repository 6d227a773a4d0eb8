"""Axes of a plot: positions of values and ticks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 5.0, 10.0)
_DECADE = 10.0


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps `low`…`high` to the pixels `start`…`end`, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel of `value`, kept inside the axis."""
        scale: Callable[[float], float] = math.log if self.logarithmic else float
        inside = min(max(value, self.low), self.high)
        share = (scale(inside) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 6) -> list[float]:
        """Round values inside the axis: 1-2-5 of each decade when it spans one, else even steps."""
        if self.logarithmic and self.high / self.low >= _DECADE:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            mantissas = _STEPS[:3] if last - first <= about // 2 else _STEPS[:1]
            values = [m * 10.0**e for e in range(first, last + 1) for m in mantissas]
        else:
            step = _round_step((self.high - self.low) / about)
            first = math.ceil(self.low / step)
            values = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [value for value in values if self.low <= value <= self.high]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * 0.999)
