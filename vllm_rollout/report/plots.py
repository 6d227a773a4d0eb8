"""Plots as inline SVG: no script, no font and no file is fetched to show them.

Text and lines take the page's own colour (`currentColor`), so a plot reads on light and dark
pages and on paper; meaning is in shape and label too, never in colour alone. The same
figures always give the same text.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from vllm_rollout.model.load_figures import LoadMoment, LoadSummary
from vllm_rollout.model.units import counted, format_value, of_total
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.report.axis import Axis
from vllm_rollout.report.formatting import bound_text
from vllm_rollout.report.svg import (
    BLUE,
    BOTTOM,
    LEFT,
    RED,
    RIGHT,
    TOP,
    line,
    path,
    rect,
    svg,
    text,
    upright,
    x_axis,
    y_axis,
)

_STRIP = 30
"""Height of the strip of failures under the plot over time."""


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
        LEFT,
        RIGHT,
        logarithmic=True,
    )
    y = Axis(0, max(b.count for b in load.histogram) * 1.05, BOTTOM, TOP)
    parts = [*x_axis(x, "latency, seconds"), *y_axis(y, "requests per bin", "count")]
    parts += [
        rect(x.at(low), y.at(b.count), x.at(b.upper_seconds), BOTTOM, f'fill="{BLUE}"')
        for low, b in zip([lowest, *uppers], load.histogram, strict=False)
        if b.count
    ]
    if verdict is not None and verdict.limit is not None:
        parts += upright(x.at(verdict.limit), f"limit {_seconds(verdict.limit)}", RED, "5 4", 14)
    parts += _value_band(x, load, verdict)
    answered = load.total - load.failures
    return svg(
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
    x = Axis(moments[0].at_seconds, moments[-1].at_seconds + length, LEFT, RIGHT)
    verdict = _drawable(verdict)
    limit = verdict.limit if verdict is not None else None
    highest = max([m.p95_seconds or 0.0 for m in moments] + [limit or 0.0])
    floor = BOTTOM - _STRIP
    y = Axis(0, highest * 1.08 or 1.0, floor, TOP)
    parts = [*x_axis(x, "seconds since the start of the run"), *y_axis(y, "latency", "s", 5)]
    parts += _failures(x, moments, length)
    p50 = [(x.at(m.at_seconds + length / 2), m.p50_seconds) for m in moments]
    p95 = [(x.at(m.at_seconds + length / 2), m.p95_seconds) for m in moments]
    parts += line(p50, y, f'stroke="{BLUE}" stroke-width="1.5" stroke-dasharray="3 3"')
    parts += line(p95, y, f'stroke="{BLUE}" stroke-width="2"')
    parts += _legend()
    if limit is not None:
        at = y.at(limit)
        parts.append(path(f"M{LEFT} {at:.1f}H{RIGHT}", RED, "5 4"))
        parts.append(text(RIGHT, at - 4, f"limit {_seconds(limit)}", "end", RED))
    failed = sum(m.failures for m in moments)
    return svg(
        "Latency over time",
        f"P50 and P95 latency in {counted(len(moments), 'slice')} by intended send time; "
        f"{of_total(failed, load.total, 'request')} failed.",
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
        parts.append(rect(x.at(low), TOP, x.at(high), BOTTOM, paint))
        label += f" ({bound_text(verdict)})"
    return parts + upright(x.at(measured), label, "currentColor", "", 28)


def _failures(x: Axis, moments: Sequence[LoadMoment], length: float) -> list[str]:
    most = max(m.failures for m in moments)
    if not most:
        return [text(LEFT + 4, BOTTOM - 8, "no failures")]
    y = Axis(0, most, BOTTOM, BOTTOM - _STRIP + 8)
    bars = [
        rect(
            x.at(m.at_seconds),
            y.at(m.failures),
            x.at(m.at_seconds + length),
            BOTTOM,
            f'fill="{RED}"',
        )
        for m in moments
        if m.failures
    ]
    failed = f"{sum(m.failures for m in moments):,} failed"
    label = text(LEFT - 6, BOTTOM - _STRIP / 2 + 8, failed, "end", RED)
    return [*bars, label]


def _legend() -> list[str]:
    return [
        path(f"M{LEFT} 15h24", BLUE, "", 2),
        text(LEFT + 30, 19, "P95"),
        path(f"M{LEFT + 70} 15h24", BLUE, "3 3", 1.5),
        text(LEFT + 100, 19, "P50"),
    ]


def _seconds(value: float) -> str:
    return format_value(value, "s")
