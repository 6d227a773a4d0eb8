"""Latency distributions, written `0.05` or `lognormal(median=0.2, sigma=0.5)`."""

import math
import random
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True)
class Distribution(ABC):
    """A distribution of times in seconds with the given `median`."""

    median: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be a finite number, 0 or more, not {value}")

    @abstractmethod
    def draw(self, rng: random.Random) -> float:
        """One time in seconds."""

    def __str__(self) -> str:
        inside = ", ".join(f"{field.name}={getattr(self, field.name):g}" for field in fields(self))
        return f"{type(self).__name__.lower()}({inside})"


@dataclass(frozen=True)
class Constant(Distribution):
    """Always the median."""

    def draw(self, rng: random.Random) -> float:  # noqa: ARG002 - the others need it
        """The median."""
        return self.median

    def __str__(self) -> str:
        return f"{self.median:g}"


@dataclass(frozen=True)
class Lognormal(Distribution):
    """`median · exp(sigma · Z)`, Z standard normal: what most services look like."""

    sigma: float = 0.5

    def draw(self, rng: random.Random) -> float:
        """One time in seconds."""
        return self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0))


@dataclass(frozen=True)
class Pareto(Distribution):
    """A heavy tail: P(T > t) falls as `t ** -alpha`."""

    alpha: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0.1:
            raise ValueError(f"alpha must be 0.1 or more, not {self.alpha}")

    def draw(self, rng: random.Random) -> float:
        """One time in seconds."""
        scale: float = self.median / 2 ** (1 / self.alpha)
        return scale * rng.paretovariate(self.alpha)


@dataclass(frozen=True)
class Bimodal(Distribution):
    """`slow_share` of the draws take `slow_factor` times the median."""

    slow_share: float = 0.05
    slow_factor: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slow_share > 0.5:
            raise ValueError(f"slow_share must be 0.5 or less, not {self.slow_share}")

    def draw(self, rng: random.Random) -> float:
        """One time in seconds."""
        return self.median * (self.slow_factor if rng.random() < self.slow_share else 1.0)


DISTRIBUTIONS: dict[str, type[Distribution]] = {
    kind.__name__.lower(): kind for kind in (Constant, Lognormal, Pareto, Bimodal)
}


def parse_distribution(value: object) -> Distribution:
    """Return the distribution for a distribution, a number of seconds or `name(median=…, …)`.

    Raises:
        ValueError: it is none; the message says how to write one.
    """
    if isinstance(value, Distribution):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Constant(float(value))
    text = str(value)
    seconds = _number(text)
    if seconds is not None:
        return Constant(seconds)
    call = _CALL.fullmatch(text)
    if call is None or call[1] not in DISTRIBUTIONS:
        raise ValueError(
            f"{text!r} is not a latency distribution; write seconds (0.05) or "
            f"one of {', '.join(DISTRIBUTIONS)}, as lognormal(median=0.2, sigma=0.5)"
        )
    kind = DISTRIBUTIONS[call[1]]
    names = [field.name for field in fields(kind)]
    arguments: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in call[2].split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in names:
            raise ValueError(f"{call[1]} takes {', '.join(names)}, not {part!r}")
        arguments[name] = float(number)
    if "median" not in arguments:
        raise ValueError(f"{call[1]} needs median=SECONDS")
    return kind(**arguments)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
