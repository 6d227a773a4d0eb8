"""Goodput and P95 against the rate: where the SLOs hold, where they do not, and the interval."""

import math
from collections.abc import Sequence

from vllm_rollout.capacity.headroom import interval_text
from vllm_rollout.capacity.model import Capacity, Probe
from vllm_rollout.capacity.rate_probe import Slos
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome
from vllm_rollout.report.axis import Axis
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

_GREEN = "#2f9e58"


def capacity_plot(
    probes: Sequence[Probe], capacity: Capacity, slos: Slos, expected_per_second: float
) -> tuple[str, ...]:
    """Two plots, goodput and latency; none where nothing was measured.

    A dot is a probe that passed or held, a cross one that failed or was doubtful.
    """
    shown = sorted((p for p in probes if p.requests), key=lambda probe: probe.per_second)
    if not shown:
        return ()
    rates = [p.per_second for p in shown]
    ends = [end for end in (capacity.lower, capacity.upper) if 0 < end < math.inf]
    lowest = min([*rates, *ends, expected_per_second])
    highest = max([*rates, *ends, expected_per_second])
    x = Axis(lowest / 1.1, highest * 1.1, LEFT, RIGHT, logarithmic=True)
    plots = (
        _goodput(x, shown, capacity, expected_per_second),
        _latency(x, shown, capacity, slos),
    )
    return tuple(filter(None, plots))


def _goodput(x: Axis, shown: Sequence[Probe], capacity: Capacity, expected: float) -> str:
    good = [(p, p.good_per_second) for p in shown if p.good_per_second is not None]
    most = max([rate for _, rate in good] + [expected])
    y = Axis(0, most * 1.1, BOTTOM, TOP)
    parts = [*x_axis(x, "requests sent per second"), *y_axis(y, "goodput", "1/s")]
    parts += _interval(x, capacity)
    # What was sent, as far as the plot is high: goodput can only be below it.
    edge = min(x.high, y.high)
    steps = [x.low * (edge / x.low) ** (i / 40) for i in range(41)]
    parts += line(
        [(x.at(rate), rate) for rate in steps],
        y,
        'stroke="currentColor" stroke-opacity="0.5" stroke-dasharray="2 4"',
    )
    parts += _points(x, y, good)
    parts += upright(
        x.at(expected), f"expected {format_value(expected, '1/s')}", "currentColor", "2 3", 28
    )
    return svg(
        "Goodput against rate",
        "Requests answered within every limit each second, at "
        f"{_listed(shown)}; interval of the capacity: {_words(capacity)}.",
        parts,
    )


def _latency(x: Axis, shown: Sequence[Probe], capacity: Capacity, slos: Slos) -> str:
    known = [(p, p.p95_seconds) for p in shown if p.p95_seconds is not None]
    limit = slos.latency_seconds
    marks = [
        *(seconds for _, seconds in known if 0 < seconds < math.inf),
        *([limit] if limit else []),
    ]
    if not marks:
        return ""
    y = Axis(min(marks) / 1.3, max(marks) * 1.3, BOTTOM, TOP, logarithmic=True)
    parts = [*x_axis(x, "requests sent per second"), *y_axis(y, "P95 latency", "s")]
    parts += _interval(x, capacity)
    # An infinite P95 is drawn at the upper edge.
    parts += _points(x, y, [(p, min(seconds, y.high)) for p, seconds in known])
    if limit:
        at = y.at(limit)
        parts.append(path(f"M{LEFT} {at:.1f}H{RIGHT}", RED, "5 4"))
        name = f"P{slos.percentile:g} limit {format_value(limit, 's')}"
        parts.append(text(LEFT + 6, at - 5, name, "start", RED))
    return svg(
        "P95 latency against rate",
        f"95th percentile of latency at {_listed(shown)}; one where more than one request in "
        "twenty failed is drawn at the upper edge.",
        parts,
    )


def _interval(x: Axis, capacity: Capacity) -> list[str]:
    low = capacity.lower if capacity.lower > 0 else x.low
    high = capacity.upper if math.isfinite(capacity.upper) else x.high
    if capacity.lower <= 0 and not math.isfinite(capacity.upper):
        return []
    paint = 'fill="currentColor" fill-opacity="0.12"'
    parts = [rect(x.at(low), TOP, x.at(high), BOTTOM, paint)]
    if capacity.estimate is not None:
        label = f"capacity {_words(capacity)}"
        parts += upright(x.at(capacity.estimate), label, "currentColor", "", 14)
    return parts


def _points(x: Axis, y: Axis, values: Sequence[tuple[Probe, float]]) -> list[str]:
    """A line along the latest probe of each rate, and a mark for every probe."""
    latest = {probe.per_second: value for probe, value in values if math.isfinite(value)}
    parts = line(
        [(x.at(rate), value) for rate, value in latest.items()],
        y,
        f'stroke="{BLUE}" stroke-width="1.5"',
    )
    for probe, value in values:
        if math.isfinite(value):
            parts.append(_mark(probe, x.at(probe.per_second), y.at(value)))
    return parts


def _mark(probe: Probe, x: float, y: float) -> str:
    if probe.good:
        filled = _GREEN if probe.outcome is Outcome.PASS else "Canvas"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{filled}" stroke="{_GREEN}"/>'
    return path(f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", RED, "", 2)


def _listed(shown: Sequence[Probe]) -> str:
    return ", ".join(f"{p.per_second:.4g}" for p in shown) + " requests per second"


def _words(capacity: Capacity) -> str:
    return interval_text(capacity.lower, capacity.upper, capacity.confidence)
