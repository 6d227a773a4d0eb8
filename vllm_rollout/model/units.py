"""Durations, shares and rates as people write them, and back.

| written                            | read as                                     |
|------------------------------------|---------------------------------------------|
| `500ms` `10s` `15m` `24h` `1h30m`  | `timedelta` (`d` is read too, never written)|
| `at least 15m`                     | `AtLeast`, a `timedelta`                    |
| `0.1%` `50%`                       | fraction, 0.001 and 0.5                     |
| `10/s` `600/m` `36000/h`           | float per second                            |

A bare number is refused everywhere but for a share of 0: 15 has no unit, and 0.1 as a share is
0.1% to one reader and 10% to the next. Text that `format_*` wrote is read back to the same value.
"""

import math
import re
from datetime import timedelta
from decimal import Decimal

from vllm_rollout.model.errors import UsageError

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,30})?"
# ECMA-262 and Python read these alike, so the JSON Schema carries the very patterns used here.
_PARTS = "".join(f"(?:{_NUMBER}{unit})?" for unit in ("d", "h", "m(?!s)", "s", "ms"))
DURATION_PATTERN = f"^(?=[0-9]){_PARTS}$"
SHARE_PATTERN = f"^{_NUMBER}%$"
RATE_PATTERN = f"^{_NUMBER}/[smh]$"

_MICROSECONDS = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}
_SECONDS_IN = {"s": 1, "m": 60, "h": 3600}
_HOW_DURATION = "write a duration as 500ms, 10s, 15m, 24h or 1h30m"
_HOW_SHARE = "write a share from 0% to 100%, as 0.1% or 50%"
_HOW_RATE = "write a rate as 10/s, 600/m or 36000/h"


_AT_LEAST = "at least "
LIMIT_PATTERN = f"^({_AT_LEAST})?{DURATION_PATTERN[1:]}"


class AtLeast(timedelta):
    """A time limit that is longer where what it limits is known to need more."""


class UnitError(UsageError, ValueError):
    """Text that is not the duration, share or rate asked for; the message shows how to write it."""


def parse_duration(value: object) -> timedelta:
    """Read `15m`, `24h`, `1h30m`, `500ms`, `0s`: largest unit first, each at most once.

    Raises:
        UnitError: no unit, an unknown unit, negative, finer than a microsecond or beyond
            `timedelta`.
    """
    text = _text(value, "duration", _HOW_DURATION)
    if re.fullmatch(_NUMBER, text):
        raise UnitError(f"{text} has no unit: {_HOW_DURATION}")
    if not re.fullmatch(DURATION_PATTERN, text):
        raise UnitError(f"{text!r} is not a duration: {_HOW_DURATION}")
    microseconds = sum(
        Decimal(number) * _MICROSECONDS[unit]
        for number, unit in re.findall(f"({_NUMBER})(ms|[dhms])", text)
    )
    if microseconds != int(microseconds):
        raise UnitError(f"{text!r} is finer than a microsecond: {_HOW_DURATION}")
    try:
        return timedelta(microseconds=int(microseconds))
    except OverflowError:
        raise UnitError(f"{text!r} is too long: {_HOW_DURATION}") from None


def parse_share(value: object) -> float:
    """Read `0.1%` as the fraction 0.001. Bare 0 is read, every other bare number refused.

    Raises:
        UnitError: no percent sign, negative or above 100%.
    """
    text = _text(value, "share", _HOW_SHARE)
    if re.fullmatch(r"0+(\.0+)?", text):
        return 0.0
    if re.fullmatch(_NUMBER, text):
        raise UnitError(f"{text} is a share without its % sign: {_HOW_SHARE}")
    if not re.fullmatch(SHARE_PATTERN, text):
        raise UnitError(f"{text!r} is not a share: {_HOW_SHARE}")
    share = Decimal(text.removesuffix("%")) / 100
    if share > 1:
        raise UnitError(f"{text} is more than all: {_HOW_SHARE}")
    return float(share)


def parse_rate(value: object) -> float:
    """Read `10/s`, `600/m`, `36000/h` as a number per second.

    Raises:
        UnitError: no unit, an unknown one, or negative.
    """
    text = _text(value, "rate", _HOW_RATE)
    if re.fullmatch(_NUMBER, text):
        raise UnitError(f"{text} has no unit: {_HOW_RATE}")
    if not re.fullmatch(RATE_PATTERN, text):
        raise UnitError(f"{text!r} is not a rate: {_HOW_RATE}")
    number, unit = text.split("/")
    return float(Decimal(number) / _SECONDS_IN[unit])


def format_duration(duration: timedelta) -> str:
    """Write a duration as `parse_duration` reads it: `1h30m`, `2.5s`, `500ms`, `0s`.

    Hours are the largest unit, so a soak of 24h stays 24h. A negative one begins with `-`.
    """
    if duration < timedelta(0):
        return "-" + format_duration(-duration)
    microseconds = duration // timedelta(microseconds=1)
    if 0 < microseconds < _MICROSECONDS["s"]:
        return f"{_plain(Decimal(microseconds) / 1000)}ms"
    hours, rest = divmod(microseconds, _MICROSECONDS["h"])
    minutes, rest = divmod(rest, _MICROSECONDS["m"])
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if rest or not microseconds:
        parts.append(f"{_plain(Decimal(rest) / _MICROSECONDS['s'])}s")
    return "".join(parts)


def parse_limit(value: object) -> timedelta:
    """Read a duration, or `at least 15m` as an `AtLeast`. Raises: as `parse_duration`."""
    if not isinstance(value, str) or not value.startswith(_AT_LEAST):
        return parse_duration(value)
    least = parse_duration(value.removeprefix(_AT_LEAST))
    return AtLeast(days=least.days, seconds=least.seconds, microseconds=least.microseconds)


def format_limit(limit: timedelta) -> str:
    """Write a limit as `parse_limit` reads it."""
    return _AT_LEAST * isinstance(limit, AtLeast) + format_duration(limit)


def format_about(duration: timedelta) -> str:
    """Write a duration to the tenth of a second, for display: `5s` where 4.996 s are left."""
    return format_duration(timedelta(seconds=round(duration.total_seconds(), 1)))


def counted(number: int, noun: str) -> str:
    """`1 replica`, `3,750 replicas`: the number with its noun, whose plural has an s."""
    return f"{number:,} {noun}{'s'[: number != 1]}"


def of_total(part: int, total: int, noun: str) -> str:
    """`2 of 3 replicas`, `1 of 1 replica`."""
    return f"{part:,} of {counted(total, noun)}"


def format_share(fraction: float) -> str:
    """Write the fraction 0.001 as `0.1%`, exactly: no digit of the float is lost."""
    return f"{_plain(Decimal(repr(fraction)) * 100)}%"


def format_rate(per_second: float) -> str:
    """Write a rate as `10/s`, exactly."""
    return f"{_plain(Decimal(repr(per_second)))}/s"


def format_value(value: float | None, unit: str) -> str:
    """Format a verdict's figure for display, rounded: `1.234 s`, `0.12%`, `9.98/s`, `3`.

    `unit` is a verdict's: "s", "ratio", "1/s", "count" or "". No value (None or NaN) reads
    `unknown`. A figure too small for its decimals keeps two significant digits, so that only
    zero reads as zero.

    Raises:
        ValueError: an unknown unit.
    """
    if unit not in {"s", "ratio", "1/s", "count", ""}:
        raise ValueError(f"{unit!r} is not a unit of a verdict")
    if value is None or math.isnan(value):
        return "unknown"
    if unit == "s":
        return f"{_rounded(value, 3)} s"
    if unit == "ratio":
        return f"{_rounded(value * 100, 2)}%"
    if unit == "1/s":
        return f"{_rounded(value, 2)}/s"
    return _rounded(value, 2)


def _text(value: object, kind: str, how: str) -> str:
    """The text of what a file or an option held, with an error that shows how to write it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnitError(f"a {type(value).__name__} is not a {kind}: {how}")
    text = str(value).strip()
    if text.startswith("-"):
        raise UnitError(f"{text} is negative: {how}")
    return text


def _plain(number: Decimal) -> str:
    """Decimal digits without an exponent and without trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _rounded(value: float, decimals: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and abs(value) < 0.5 * 10**-decimals:
        decimals = 1 - math.floor(math.log10(abs(value)))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
