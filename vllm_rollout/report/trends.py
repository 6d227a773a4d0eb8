"""Trends over runs as inline SVG: a figure of each run, its bounds, and the limit.

Meaning is in shape as well as in colour, which the page's style gives. A plot is narrow enough to
be readable on a phone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from vllm_rollout.model.text import printable
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.axis import Axis
from vllm_rollout.report.run_index import RunIndex
from vllm_rollout.report.run_rows import EnvironmentRow
from vllm_rollout.report.svg import grid, text

WIDTH, HEIGHT = 340, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 330, 14, 152
_MOST_RUNS = 60
_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Point:
    """A run's figure: the value that is drawn, and the verdict that it is of."""

    run: str
    at: str
    value: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One figure of one deployment over its runs, the oldest first."""

    title: str
    model: str
    environment: str
    points: tuple[Point, ...]

    @property
    def summary(self) -> str:
        """The plot in a sentence."""
        first, last = self.points[0], self.points[-1]
        unit = last.verdict.unit
        return (
            f"{len(self.points)} runs, from {format_value(first.value, unit)} to "
            f"{format_value(last.value, unit)}; limit {format_value(last.verdict.limit, unit)}"
        )


def trends(index: RunIndex) -> list[Trend]:
    """Each figure that at least two runs of a deployment have, the newest deployments first."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for row in index.runs:
        for each in row.environments:
            for title, verdict, value in _figures(each):
                points = found.setdefault((row.model, each.environment, title), [])
                if value is not None and 0 < value < math.inf and len(points) < _MOST_RUNS:
                    points.append(Point(row.run, f"{row.started:%Y-%m-%d}", value, verdict))
    return [
        Trend(title=title, model=model, environment=environment, points=tuple(reversed(points)))
        for (model, environment, title), points in found.items()
        if len(points) > 1
    ]


def trend_svg(trend: Trend) -> str:
    """The plot: a point for each run with its bounds, the limit as a dashed line."""
    points, unit = trend.points, trend.points[-1].verdict.unit
    y = _axis(points)
    step = (_RIGHT - 8 - _LEFT - 8) / (len(points) - 1)
    places = [_LEFT + 8 + step * number for number in range(len(points))]
    parts = grid(y, unit, 4, _LEFT, _RIGHT)
    line = "L".join(f"{x:.1f} {y.at(p.value):.1f}" for x, p in zip(places, points, strict=True))
    parts.append(f'<path class="line" d="M{line}"/>')
    limits = [(x, p.verdict.limit) for x, p in zip(places, points, strict=True)]
    parts.append(f'<path class="limit" d="{_steps(limits, y)}"/>')
    for x, point in zip(places, points, strict=True):
        parts.append(_point(x, point, y))
    parts.append(text(_LEFT, HEIGHT - 8, points[0].at))
    parts.append(text(_RIGHT, HEIGHT - 8, points[-1].at, "end"))
    label = f"{trend.title} of {trend.environment}/{trend.model}: {trend.summary}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" aria-label="{escape(printable(label))}">'
        f"{''.join(parts)}</svg>"
    )


def _figures(each: EnvironmentRow) -> Iterator[tuple[str, Verdict, float | None]]:
    """The name of each figure that an environment has, its verdict and the value to draw."""
    if verdict := each.latency:
        yield f"P{verdict.percentile or 95:g} latency", verdict, verdict.measured
    if verdict := each.error_rate:
        yield "Error rate, upper bound", verdict, verdict.upper
    if verdict := each.capacity:
        yield "Capacity", verdict, verdict.measured


def _axis(points: tuple[Point, ...]) -> Axis:
    """A logarithmic axis: a figure far below its limit is seen to move as well."""
    limits = [p.verdict.limit for p in points]
    drawn = [v for v in (*(p.value for p in points), *limits) if v and 0 < v < math.inf]
    return Axis(min(drawn) / _MARGIN, max(drawn) * _MARGIN, _BOTTOM, _TOP, logarithmic=True)


def _steps(limits: list[tuple[float, float | None]], y: Axis) -> str:
    """The limit of each run, which a change of the policy moves."""
    drawn = [(x, y.at(limit)) for x, limit in limits if limit is not None and limit > 0]
    if not drawn:
        return ""
    first, *rest = drawn
    path = f"M{_LEFT} {first[1]:.1f}"
    for x, at in rest:
        path += f"H{x:.1f}V{at:.1f}"
    return f"{path}H{_RIGHT}"


def _point(x: float, point: Point, y: Axis) -> str:
    verdict, at = point.verdict, y.at(point.value)
    lower, upper = (
        point.value if bound is None or math.isnan(bound) else max(bound, y.low)
        for bound in (verdict.lower, verdict.upper)
    )
    is_bound = point.value == verdict.upper
    whisker = "" if is_bound else f"M{x:.1f} {y.at(lower):.1f}V{y.at(upper):.1f}"
    mark = {
        Outcome.PASS: f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3.5"/>',
        Outcome.FAIL: f'<path d="M{x - 4:.1f} {at - 4:.1f}l8 8m0 -8l-8 8"/>',
        Outcome.INCONCLUSIVE: f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3.5"/>',
    }[verdict.outcome]
    value = format_value(point.value, verdict.unit)
    return (
        f'<g class="{verdict.outcome.value}">'
        f"<title>{escape(f'{point.run}: {value}, {verdict.outcome}')}</title>"
        f'<path class="bounds" d="{whisker}"/>{mark}</g>'
    )
