"""Plots: whole XML, the same every time, and true to the figures."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest

from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.verdict import Outcome, Verdict
from vllm_rollout.report.axis import Axis
from vllm_rollout.report.plots import latency_plot, over_time_plot

VERDICT = Verdict(
    outcome=Outcome.PASS,
    reason="below",
    measured=1.21,
    lower=1.13,
    upper=1.3,
    limit=3.0,
    confidence=0.95,
    n=1_200,
    unit="s",
)
SVG = "{http://www.w3.org/2000/svg}"


def texts(plot: str) -> list[str]:
    """All text in a plot."""
    return [element.text or "" for element in ET.fromstring(plot).iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", [latency_plot, over_time_plot])
@pytest.mark.parametrize(
    "verdict",
    [
        None,
        VERDICT,
        replace(VERDICT, upper=None, outcome=Outcome.INCONCLUSIVE),
        replace(VERDICT, measured=math.inf, lower=math.nan, upper=math.inf),
        replace(VERDICT, measured=0.0, lower=0.0, upper=0.0, limit=0.0),
    ],
)
def test_a_plot_is_well_formed_small_and_the_same_every_time(
    draw: Callable[[LoadSummary, Verdict | None], str], verdict: Verdict | None, load: LoadSummary
) -> None:
    """Whatever figures a verdict lacks, the plot is XML with a title, a description and units."""
    plot = draw(load, verdict)
    root = ET.fromstring(plot)
    assert plot == draw(load, verdict)
    assert len(plot) < 30_000
    assert [root[0].tag, root[1].tag] == [f"{SVG}title", f"{SVG}desc"]
    assert root.get("role") == "img"
    assert not re.search(r"\b(nan|inf)\b", plot)
    assert any("seconds" in text for text in texts(plot))


def test_the_distribution_shows_limit_value_and_bounds(load: LoadSummary) -> None:
    """The limit is labelled; the value carries its bounds and is called P95 only if it is."""
    shown = texts(latency_plot(load, VERDICT))
    assert "limit 3 s" in shown
    assert "measured 1.21 s (1.13 s – 1.3 s at 95%)" in shown
    own = replace(VERDICT, measured=load.p95_seconds)
    assert any(text.startswith("P95 ") for text in texts(latency_plot(load, own)))


def test_failures_are_counted_over_time_and_named_in_the_distribution(load: LoadSummary) -> None:
    """Failed requests have no latency; neither plot lets them vanish."""
    assert f"{load.failures} failed" in texts(over_time_plot(load, VERDICT))
    assert f"{load.failures} failed requests are not shown" in latency_plot(load, VERDICT)
    healthy = replace(load, timeline=tuple(replace(m, failures=0) for m in load.timeline))
    assert "no failures" in texts(over_time_plot(healthy, VERDICT))


def test_a_gap_in_the_data_is_a_gap_in_the_line(load: LoadSummary) -> None:
    """A slice nobody answered breaks the line; nothing is drawn across it."""
    middle = len(load.timeline) // 2
    holed = tuple(
        replace(m, p50_seconds=None, p95_seconds=None) if i == middle else m
        for i, m in enumerate(load.timeline)
    )
    whole = over_time_plot(load).count('stroke-linecap="round"')
    assert (
        over_time_plot(replace(load, timeline=holed)).count('stroke-linecap="round"') == 2 * whole
    )


def test_nothing_measured_draws_nothing(load: LoadSummary) -> None:
    """An empty plot would look like a quiet server."""
    empty = replace(load, histogram=(), timeline=())
    assert latency_plot(empty, VERDICT) == over_time_plot(empty, VERDICT) == ""


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0.15, 9, 0, 100, logarithmic=True), [0.2, 0.5, 1, 2, 5]),
        (Axis(1.0, 1.5, 0, 100, logarithmic=True), [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]),
        (Axis(0, 10, 0, 100), [0, 2, 4, 6, 8, 10]),
    ],
)
def test_ticks_are_round_and_inside_the_axis(axis: Axis, ticks: list[float]) -> None:
    """1-2-5 over decades, even steps within one."""
    assert axis.ticks() == pytest.approx(ticks)
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high * 2) == 100
