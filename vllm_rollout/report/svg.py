"""SVG elements of plots, inline: axes, lines, labels.

Text and lines take the page's own colour (`currentColor`), so a plot reads on light and dark
pages and on paper.
"""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from vllm_rollout.model.units import format_value
from vllm_rollout.report.axis import Axis

WIDTH, HEIGHT = 560, 270
LEFT, RIGHT, TOP, BOTTOM = 64, 548, 44, 218
# The page's own colours, which differ on light and dark pages.
BLUE, RED = "var(--plot, #2f6fb0)", "var(--fail, #b8281e)"
_LABEL_ROOM = 48


def line(points: Sequence[tuple[float, float | None]], y: Axis, paint: str) -> list[str]:
    """A line through the points, broken where a slice has no value."""
    parts = []
    for known, run in groupby(points, key=lambda point: point[1] is not None):
        if not known:
            continue
        places = [f"{at:.1f} {y.at(value or 0.0):.1f}" for at, value in run]
        # A lone slice is a dot: a round cap on a line of no length.
        along = "M" + "L".join(places if len(places) > 1 else places * 2)
        parts.append(f'<path d="{along}" fill="none" stroke-linecap="round" {paint}/>')
    return parts


def x_axis(x: Axis, title: str) -> list[str]:
    """The axis at the bottom, with ticks."""
    parts = [path(f"M{LEFT} {BOTTOM}H{RIGHT}", "currentColor")]
    for tick in _apart(x):
        at = x.at(tick)
        parts.append(path(f"M{at:.1f} {BOTTOM}v5", "currentColor"))
        parts.append(text(at, BOTTOM + 18, f"{tick:.6g}", "middle"))
    return [*parts, text((LEFT + RIGHT) / 2, BOTTOM + 42, title, "middle")]


def _apart(x: Axis) -> list[float]:
    """The axis' ticks without those whose labels would touch the one before."""
    kept: list[float] = []
    for tick in x.ticks(8):
        if not kept or x.at(tick) - x.at(kept[-1]) >= _LABEL_ROOM:
            kept.append(tick)
    return kept


def y_axis(y: Axis, title: str, unit: str, about: int = 4) -> list[str]:
    """The axis on the left: a grid and its title."""
    return [*grid(y, unit, about), text(4, TOP - 30, title)]


def grid(y: Axis, unit: str, about: int, left: float = LEFT, right: float = RIGHT) -> list[str]:
    """Lines across the plot with their values on the left."""
    parts = []
    for tick in y.ticks(about):
        at = y.at(tick)
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="currentColor" opacity="0.15"/>')
        parts.append(text(left - 6, at + 4, format_value(tick, unit), "end"))
    return parts


def upright(at: float, label: str, colour: str, dashes: str, label_y: float) -> list[str]:
    """An upright line and its label, on the side with more room."""
    anchor, shift = ("end", -5) if at > (LEFT + RIGHT) / 2 else ("start", 5)
    return [
        path(f"M{at:.1f} {label_y - 10}V{BOTTOM}", colour, dashes, 1.5),
        text(at + shift, label_y, label, anchor, colour),
    ]


def rect(left: float, top: float, right: float, bottom: float, paint: str) -> str:
    """A filled box, half a pixel wide at least."""
    width = max(right - left, 0.5)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{bottom - top:.1f}" {paint}/>'
    )


def path(along: str, colour: str, dashes: str = "", width: float = 1) -> str:
    """A line along an SVG path."""
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{along}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def text(x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor") -> str:
    return (
        # The halo in the page's colour keeps a label readable where a line crosses it.
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        'stroke="var(--page, Canvas)" stroke-width="3" paint-order="stroke">'
        f"{escape(text)}</text>"
    )


def svg(title: str, description: str, parts: list[str]) -> str:
    """The whole plot, with what it shows in words for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" font-family="sans-serif" font-size="14" '
        f'aria-label="{escape(f"{title}. {description}")}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
        f"{''.join(parts)}</svg>"
    )
