"""Plots as inline SVG: no script, no font and no file is fetched to show them.

Text and lines take the page's own colour (`currentColor`), so a plot reads on light and dark
pages and on paper; what matters is told by shape and label too, never by colour alone. The same
figures always give the same text.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import groupby

from vllm_rollout.judge.verdict import Verdict
from vllm_rollout.report.axis import Axis
from vllm_rollout.report.evidence import LoadMoment, LoadSummary
from vllm_rollout.report.words import bound_text
from vllm_rollout.units import format_value

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 704, 34, 214
_STRIP = 30
"""Height of the strip of failures under the plot over time."""
_LABEL_ROOM = 34
_BLUE, _RED = "#3b82c4", "#d0453b"


def latency_plot(load: LoadSummary, verdict: Verdict | None = None) -> str:
    """The distribution of the answered requests' latencies on a logarithmic axis.

    `verdict`, if there is one, is a latency verdict reached on the load: its limit is a labelled
    line and its bounds are a band around the measured value. "" when no request was answered.
    """
    if not load.histogram:
        return ""
    uppers = [b.upper_seconds for b in load.histogram]
    # The first bin begins one bin's width (the same ratio for all) below its upper edge.
    lowest = uppers[0] ** 2 / uppers[1] if len(uppers) > 1 else uppers[0] * 0.95
    verdict = _drawable(verdict)
    marks = _marks(verdict)
    x = Axis(
        min([lowest, *marks]) * 0.97,
        max([uppers[-1], *marks]) * 1.05,
        _LEFT,
        _RIGHT,
        logarithmic=True,
    )
    y = Axis(0, max(b.count for b in load.histogram) * 1.05, _BOTTOM, _TOP)
    parts = [*_x_axis(x, "latency, seconds"), *_y_axis(y, "requests per bin", "count")]
    parts += [
        _rect(x.at(low), y.at(b.count), x.at(b.upper_seconds), _BOTTOM, f'fill="{_BLUE}"')
        for low, b in zip([lowest, *uppers], load.histogram, strict=False)
        if b.count
    ]
    if verdict is not None and verdict.limit is not None:
        parts += _upright(x.at(verdict.limit), f"limit {_seconds(verdict.limit)}", _RED, "5 4", 14)
    parts += _value_band(x, load, verdict)
    answered = load.total - load.failures
    return _svg(
        "Latency distribution",
        f"Latency of {answered:,} answered requests from {_seconds(lowest)} to "
        f"{_seconds(uppers[-1])}; {load.failures:,} failed requests are not shown and count as "
        "slower than all.",
        parts,
    )


def over_time_plot(load: LoadSummary, verdict: Verdict | None = None) -> str:
    """P50 and P95 of each slice of the run, with a strip of failures under them.

    `verdict` gives the limit line. "" when there is no slice.
    """
    if not load.timeline:
        return ""
    moments = load.timeline
    length = moments[1].at_seconds - moments[0].at_seconds if len(moments) > 1 else 0.0
    length = length or load.duration_seconds or 1.0
    x = Axis(moments[0].at_seconds, moments[-1].at_seconds + length, _LEFT, _RIGHT)
    verdict = _drawable(verdict)
    limit = verdict.limit if verdict is not None else None
    highest = max([m.p95_seconds or 0.0 for m in moments] + [limit or 0.0])
    floor = _BOTTOM - _STRIP
    y = Axis(0, highest * 1.08 or 1.0, floor, _TOP)
    parts = [*_x_axis(x, "seconds since the start of the run"), *_y_axis(y, "latency", "s", 5)]
    parts += _failures(x, moments, length)
    p50 = [(x.at(m.at_seconds + length / 2), m.p50_seconds) for m in moments]
    p95 = [(x.at(m.at_seconds + length / 2), m.p95_seconds) for m in moments]
    parts += _line(p50, y, f'stroke="{_BLUE}" stroke-width="1.5" stroke-dasharray="3 3"')
    parts += _line(p95, y, f'stroke="{_BLUE}" stroke-width="2"')
    parts += _legend()
    if limit is not None:
        at = y.at(limit)
        parts.append(_path(f"M{_LEFT} {at:.1f}H{_RIGHT}", _RED, "5 4"))
        parts.append(_text(_RIGHT, at - 4, f"limit {_seconds(limit)}", "end", _RED))
    failed = sum(m.failures for m in moments)
    return _svg(
        "Latency over time",
        f"P50 and P95 latency in {len(moments)} slices by intended send time; {failed:,} of "
        f"{load.total:,} requests failed.",
        parts,
    )


def _drawable(verdict: Verdict | None) -> Verdict | None:
    """The verdict without figures that have no place on an axis (an unbounded percentile)."""
    if verdict is None:
        return None
    return replace(
        verdict,
        measured=_finite(verdict.measured),
        lower=_finite(verdict.lower),
        upper=_finite(verdict.upper),
        limit=_finite(verdict.limit),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def _marks(verdict: Verdict | None) -> list[float]:
    if verdict is None:
        return []
    found = (verdict.lower, verdict.upper, verdict.measured, verdict.limit)
    return [mark for mark in found if mark]


def _value_band(x: Axis, load: LoadSummary, verdict: Verdict | None) -> list[str]:
    measured = load.p95_seconds if verdict is None else verdict.measured
    if measured is None:
        return []
    name = "P95" if measured == load.p95_seconds else "measured"
    parts = []
    label = f"{name} {_seconds(measured)}"
    if verdict is not None and (verdict.lower is not None or verdict.upper is not None):
        low = x.low if verdict.lower is None else verdict.lower
        high = x.high if verdict.upper is None else verdict.upper
        paint = 'fill="currentColor" fill-opacity="0.15"'
        parts.append(_rect(x.at(low), _TOP, x.at(high), _BOTTOM, paint))
        label += f" ({bound_text(verdict)})"
    return parts + _upright(x.at(measured), label, "currentColor", "", 28)


def _failures(x: Axis, moments: Sequence[LoadMoment], length: float) -> list[str]:
    most = max(m.failures for m in moments)
    if not most:
        return [_text(_LEFT + 4, _BOTTOM - 8, "no failures")]
    y = Axis(0, most, _BOTTOM, _BOTTOM - _STRIP + 8)
    bars = [
        _rect(
            x.at(m.at_seconds),
            y.at(m.failures),
            x.at(m.at_seconds + length),
            _BOTTOM,
            f'fill="{_RED}"',
        )
        for m in moments
        if m.failures
    ]
    failed = f"{sum(m.failures for m in moments):,} failed"
    label = _text(_LEFT - 6, _BOTTOM - _STRIP / 2 + 8, failed, "end", _RED)
    return [*bars, label]


def _legend() -> list[str]:
    return [
        _path(f"M{_LEFT} 15h24", _BLUE, "", 2),
        _text(_LEFT + 30, 19, "P95"),
        _path(f"M{_LEFT + 70} 15h24", _BLUE, "3 3", 1.5),
        _text(_LEFT + 100, 19, "P50"),
    ]


def _line(points: Sequence[tuple[float, float | None]], y: Axis, paint: str) -> list[str]:
    """A line through the points, broken where a slice has no value."""
    parts = []
    for known, run in groupby(points, key=lambda point: point[1] is not None):
        if not known:
            continue
        places = [f"{at:.1f} {y.at(value or 0.0):.1f}" for at, value in run]
        # A lone slice is a dot: a round cap on a line of no length.
        path = "M" + "L".join(places if len(places) > 1 else places * 2)
        parts.append(f'<path d="{path}" fill="none" stroke-linecap="round" {paint}/>')
    return parts


def _x_axis(x: Axis, title: str) -> list[str]:
    parts = [_path(f"M{_LEFT} {_BOTTOM}H{_RIGHT}", "currentColor")]
    for tick in _apart(x):
        at = x.at(tick)
        parts.append(_path(f"M{at:.1f} {_BOTTOM}v5", "currentColor"))
        parts.append(_text(at, _BOTTOM + 18, f"{tick:.6g}", "middle"))
    return [*parts, _text((_LEFT + _RIGHT) / 2, _BOTTOM + 38, title, "middle")]


def _apart(x: Axis) -> list[float]:
    """The axis' ticks without those whose labels would touch the one before."""
    kept: list[float] = []
    for tick in x.ticks(8):
        if not kept or x.at(tick) - x.at(kept[-1]) >= _LABEL_ROOM:
            kept.append(tick)
    return kept


def _y_axis(y: Axis, title: str, unit: str, about: int = 4) -> list[str]:
    parts = []
    for tick in y.ticks(about):
        at = y.at(tick)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_RIGHT}" stroke="currentColor" opacity="0.15"/>')
        parts.append(_text(_LEFT - 6, at + 4, format_value(tick, unit), "end"))
    return [*parts, _text(4, _TOP - 12, title)]


def _upright(at: float, label: str, colour: str, dashes: str, label_y: float) -> list[str]:
    """An upright line and its label, on the side with more room."""
    anchor, shift = ("end", -5) if at > (_LEFT + _RIGHT) / 2 else ("start", 5)
    return [
        _path(f"M{at:.1f} {label_y - 10}V{_BOTTOM}", colour, dashes, 1.5),
        _text(at + shift, label_y, label, anchor, colour),
    ]


def _rect(left: float, top: float, right: float, bottom: float, paint: str) -> str:
    width = max(right - left, 0.5)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{bottom - top:.1f}" {paint}/>'
    )


def _path(path: str, colour: str, dashes: str = "", width: float = 1) -> str:
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor"
) -> str:
    return (
        # The halo in the page's colour keeps a label readable where a line crosses it.
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        'stroke="Canvas" stroke-width="3" paint-order="stroke">'
        f"{escape(text)}</text>"
    )


def _seconds(value: float) -> str:
    return format_value(value, "s")


def _svg(title: str, description: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="12" '
        f'aria-label="{escape(f"{title}. {description}")}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
        f"{''.join(parts)}</svg>"
    )
