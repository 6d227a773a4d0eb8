"""Figures of deployments as they run, in words and as JSON.

On a terminal a table: a row for each figure, a column for each environment and side of a ramp.
Elsewhere lines, one for each figure. What is not known has its reason, and a reason of several
figures stands once.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vllm_rollout.model.deployment import strict_json
from vllm_rollout.model.live_figures import Figure, FigureName, SideFigures
from vllm_rollout.model.text import shown
from vllm_rollout.report.figure_words import (
    LABELS,
    Limits,
    compared_value,
    figure_text,
    origin_text,
    unknown_reason,
)
from vllm_rollout.report.formatting import NONE

if TYPE_CHECKING:
    from rich.console import RenderableType

_INDENT = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """Figures of one model, read `at` that time, and the policy's limits by environment.

    `problems` says of environments why they have none.
    """

    model: str
    at: datetime
    sides: Sequence[SideFigures] = ()
    limits: Mapping[str, Limits] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    def limit(self, side: SideFigures, name: FigureName) -> float | None:
        """The limit of a figure there, None without one."""
        return self.limits.get(side.environment, {}).get(name)


def figures_json(found: ModelFigures) -> dict[str, Any]:
    """Return the figures as JSON data, in SI units and fractions."""

    def figure_of(side: SideFigures, name: FigureName) -> dict[str, Any]:
        return _figure_json(name, side.figures[name], found.at, found.limit(side, name))

    sides = [
        {
            "environment": side.environment,
            "revision": side.revision,
            "side": side.side,
            "figures": {
                name.value: figure_of(side, name) for name in FigureName if name in side.figures
            },
        }
        for side in found.sides
    ]
    data: dict[str, Any] = strict_json(
        {
            "model": found.model,
            "at": found.at.isoformat(),
            "sides": sides,
            "problems": {name: shown(why) for name, why in found.problems.items()},
        }
    )
    return data


def _figure_json(
    name: FigureName, figure: Figure, now: datetime, limit: float | None
) -> dict[str, Any]:
    unknown = unknown_reason(figure)
    if limit is not None and name is FigureName.GPU_MEMORY:
        limit = limit * figure.of if figure.of else None
    age = None if figure.at is None else (now - figure.at).total_seconds()
    return {
        "value": None if unknown else figure.value,
        "upper": None if unknown else figure.upper,
        "of": None if figure.of is None or math.isnan(figure.of) else figure.of,
        "unit": LABELS[name][1],
        "limit": limit,
        "source": shown(figure.source),
        "at": figure.at.isoformat() if figure.at else None,
        "age_seconds": age,
        "unknown": unknown,
    }


def figures_lines(found: ModelFigures, *, width: int | None = None) -> list[str]:
    """Return the figures as lines, a block for each side; wrapped where a width is given."""
    lines = [f"{found.at:%Y-%m-%d %H:%M:%S %Z}  {found.model}"]
    for side in found.sides:
        lines.append(_title(side))
        for name, figure in side.figures.items():
            if not unknown_reason(figure):
                text = figure_text(name, figure, found.limit(side, name))
                origin = origin_text(figure, found.at)
                lines.append(f"{_INDENT}{LABELS[name][0]}: {text} ({origin})")
        lines += [f"{_INDENT}not known: {note}" for note in _unknowns(side)]
    lines += [f"{environment}: {shown(why)}" for environment, why in found.problems.items()]
    if width is None:
        return lines
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, max(width, 20), subsequent_indent=_INDENT * 2)
    ]


def figures_table(found: ModelFigures, *, width: int) -> "RenderableType":
    """Return the figures as tables for a terminal so wide, and below them where they are from."""
    from rich.console import Group
    from rich.text import Text

    heading = Text(f"{found.model}  ", style="bold")
    heading.append(f"{found.at:%H:%M:%S %Z}", style="dim")
    notes: dict[str, list[str]] = {}
    for side in found.sides:
        for note in (*_origins(side, found.at), *(f"not known: {n}" for n in _unknowns(side))):
            notes.setdefault(note, []).append(_title(side))
    below = [
        Text(note if len(titles) == len(found.sides) else f"{'; '.join(titles)}: {note}")
        for note, titles in notes.items()
    ]
    below += [Text(f"{name}: {shown(why)}", "yellow") for name, why in found.problems.items()]
    return Group(heading, *_tables(found, width), *below)


def _tables(found: ModelFigures, width: int) -> Iterator["RenderableType"]:
    """The columns, as many side by side as there is room for."""
    from rich.table import Table
    from rich.text import Text

    names = [
        name
        for name in FigureName
        if any(name in s.figures and not unknown_reason(s.figures[name]) for s in found.sides)
    ]
    label_width = max((len(LABELS[name][0]) for name in names), default=0)
    in_head = max((len(_title(side).split(", ")) for side in found.sides), default=0)
    columns: list[tuple[list[str], list[Text]]] = []
    for side in found.sides:
        cells = [
            Text(figure_text(name, side.figures[name], found.limit(side, name)))
            if name in side.figures
            else Text(NONE)
            for name in names
        ]
        for name, cell in zip(names, cells, strict=True):
            limit = found.limit(side, name)
            measured = compared_value(name, side.figures[name]) if name in side.figures else None
            if limit is not None and measured is not None and measured >= limit:
                cell.stylize("bold red")
        heads = _title(side).split(", ")
        columns.append((heads + [""] * (in_head - len(heads)), cells))
    while columns:
        room, taken = width - label_width, 0
        while taken < len(columns):
            heads, cells = columns[taken]
            room -= 2 + max(len(str(each)) for each in (*heads, *cells))
            if room < 0 and taken:
                break
            taken += 1
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("", no_wrap=True)
        for heads, _ in columns[:taken]:
            table.add_column(Text("\n".join(heads)), overflow="fold")
        for row, name in enumerate(names):
            table.add_row(LABELS[name][0], *(cells[row] for _, cells in columns[:taken]))
        yield table
        yield Text()
        del columns[:taken]


def _title(side: SideFigures) -> str:
    revision = "no revision" if side.revision is None else f"revision {side.revision}"
    return ", ".join(filter(None, [side.environment, revision, side.side]))


def _unknowns(side: SideFigures) -> list[str]:
    """Reasons, each with all figures that are not known for it."""
    found = _grouped((unknown_reason(figure), name) for name, figure in side.figures.items())
    return [f"{', '.join(names)}: {why}" for why, names in found.items() if why]


def _origins(side: SideFigures, now: datetime) -> list[str]:
    """Sources and ages, each with the figures that are from there; last the one of most."""
    known = {name: f for name, f in side.figures.items() if not unknown_reason(f)}
    found = _grouped((origin_text(figure, now), name) for name, figure in known.items())
    *few, most = sorted(found.items(), key=lambda item: len(item[1])) or [("", [])]
    lines = [f"{', '.join(names)}: {text}" for text, names in few]
    rest = "the other figures" if few else "all figures"
    return [*lines, f"{rest}: {most[0]}"] if known else []


def _grouped(pairs: Iterable[tuple[str, FigureName]]) -> dict[str, list[str]]:
    """Names of figures by what is the same of them."""
    found: dict[str, list[str]] = {}
    for text, name in pairs:
        found.setdefault(text, []).append(LABELS[name][0])
    return found
