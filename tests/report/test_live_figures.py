"""Figures in words, on a terminal of 80 columns, as lines and as JSON."""

import io
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console
from support.samples import sample

from vllm_rollout.model.live_figures import Figure, FigureName, SideFigures
from vllm_rollout.model.text import own_secret
from vllm_rollout.policy import load_policy
from vllm_rollout.report.figure_words import figure_text, limits_of
from vllm_rollout.report.live_figures import (
    ModelFigures,
    figures_json,
    figures_lines,
    figures_table,
)

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
GIB = 2**30
NO_GPU = Figure(unknown="Prometheus knows no DCGM exporter")


def known(value: float, **more: Any) -> Figure:
    return Figure(value=value, source="Prometheus", at=NOW - timedelta(seconds=12), **more)


def side(environment: str = "production", name: str = "", **figures: Figure) -> SideFigures:
    """A side all of whose figures are known but for the GPUs' and those given."""
    every: Mapping[str, Figure] = {
        **{each: known(0.5) for each in FigureName},
        "gpu_use": NO_GPU,
        "gpu_memory": NO_GPU,
        **figures,
    }
    return SideFigures(
        environment=environment,
        revision=4,
        side=name,
        figures={each: every[each] for each in FigureName},
    )


def found_of(*sides: SideFigures, **problems: str) -> ModelFigures:
    policy = load_policy(None, overrides={"triggers.queue": {"above": 100, "for": "1m"}})
    return ModelFigures(
        model="llama-2-7b", at=NOW, sides=sides, problems=problems,
        limits={name: limits_of(policy, name) for name in policy.order},
    )  # fmt: skip


def table(found: ModelFigures, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(figures_table(found, width=width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "figure", "limit", "words"),
    [
        ("latency_p95", known(0.64), 3, "0.64 s of 3 s"),
        ("latency_p95", known(0.5, upper=0.75), 3, "0.5 to 0.75 s of 3 s"),
        ("latency_p95", known(5, upper=math.inf), 3, "above 5 s, not below 3 s"),
        ("ttft_p50", known(0, upper=0.25), None, "at most 0.25 s"),
        ("request_rate", known(12.34), None, "12.3 requests/s"),
        ("kv_cache", known(0.41), None, "41%"),
        ("kv_cache", known(0.97), 0.95, "97%, not below 95%"),
        ("memory", known(7.2 * GIB), None, "7.2 GiB"),
        ("gpu_memory", known(31.2 * GIB, of=40 * GIB), None, "31.2 of 40 GiB"),
        ("gpu_memory", known(30 * GIB, of=40 * GIB), 0.9, "30 of 40 GiB, 75% (limit 90%)"),
        ("gpu_memory", known(30 * GIB), 0.9, "30 GiB"),
        ("ready", known(3, of=4), None, "3 of 4 replicas"),
        ("ready", known(1, of=1), None, "1 of 1 replica"),
        ("queue", known(1), None, "1 request"),
        ("queue", known(0), 100, "0 requests (limit 100)"),
        ("network_in", known(1234567), None, "1.18 MiB/s"),
        ("output_token_rate", known(4321.4), None, "4,321 tokens/s"),
        ("preemption_rate", known(0.0123), None, "0.012 preemptions/s"),
        ("cpu", known(1.5), None, "1.5 cores"),
        ("restarts", known(12), None, "12"),
        ("error_rate", known(math.nan), 0.001, "–"),
        ("error_rate", Figure(unknown="nobody asked"), 0.001, "–"),
        ("error_rate", known(0, upper=0.02), 0.001, "at most 2% (limit 0.1%)"),
        ("latency_p95", known(0, upper=math.nan), None, "–"),
        ("memory", known(GIB, of=math.nan), None, "1 GiB"),
        ("cpu", known(1.5, of=4), None, "1.5 of 4 cores"),
    ],
)
def test_each_figure_is_in_words_that_people_read(
    name: str, figure: Figure, limit: float | None, words: str
) -> None:
    assert figure_text(FigureName(name), figure, limit) == words


def test_three_environments_stand_side_by_side_in_80_columns() -> None:
    lines = table(found_of(side("development"), side("staging"), side(name="canary")))

    assert max(map(len, lines)) <= 80
    assert "development" in lines[1]
    assert ("staging" in lines[1], "production" in lines[1]) == (True, True)
    (latency,) = (line for line in lines if line.startswith("P95 latency"))
    assert latency.endswith(" 0.5 s of 3 s")
    text = " ".join(lines)
    assert text.count("Prometheus knows no DCGM exporter") == 1
    assert "not known: GPU use, GPU memory: Prometheus knows no" in text
    assert "Prometheus, 12s old" in text


def test_the_sample_of_the_documentation_is_what_is_printed() -> None:
    def one(environment: str, revision: int, name: str, **figures: Figure) -> SideFigures:
        every: dict[str, Figure] = {**dict.fromkeys(FigureName, NO_GPU), **figures}
        each = {figure: every[figure] for figure in FigureName}
        return SideFigures(environment=environment, revision=revision, side=name, figures=each)

    found = found_of(
        one(
            "staging", 7, "", ready=known(1, of=1), request_rate=known(2.04), error_rate=known(0),
            latency_p95=known(0.5, upper=0.8), kv_cache=known(0.032),
            gpu_memory=known(31.2 * GIB, of=40 * GIB),
        ),
        one(
            "production", 4, "baseline", ready=known(3, of=3), request_rate=known(9.12),
            error_rate=known(0), latency_p95=known(0.5, upper=0.8), kv_cache=known(0.41),
            gpu_memory=known(94.1 * GIB, of=120 * GIB),
        ),
        one(
            "production", 5, "canary", ready=known(1, of=1), request_rate=known(3.1),
            error_rate=known(0), latency_p95=known(0.8, upper=1), kv_cache=known(0.38),
            gpu_memory=known(31.4 * GIB, of=40 * GIB),
        ),
    )  # fmt: skip
    shown = sample("how-to/watch.md", "See the metrics")
    assert [line.strip() for line in table(found)[1 : len(shown) + 1]] == shown


def test_columns_without_room_go_below_and_each_line_is_within_the_width() -> None:
    name = "an-environment-whose-name-is-as-long-as-names-can-be"
    sides = [side(f"{name}-{n}", "baseline") for n in range(3)]
    for width in (40, 60, 80):
        lines = table(found_of(*sides), width)
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("P95 latency") for line in lines) == len(sides)
    assert max(map(len, figures_lines(found_of(*sides), width=80))) <= 80


def test_a_line_for_each_figure_has_source_and_age_and_one_reason_is_said_once() -> None:
    found = found_of(side(queue=known(250), cpu=Figure(value=2, source="kubelet")), staging="away")
    lines = figures_lines(found)

    assert lines[1] == "production, revision 4"
    assert "  P95 latency: 0.5 s of 3 s (Prometheus, 12s old)" in lines
    assert "  queue: 250 requests, not below 100 (Prometheus, 12s old)" in lines
    assert "  CPU: 2 cores (kubelet, of unknown age)" in lines
    assert lines[-2:] == [
        "  not known: GPU use, GPU memory: Prometheus knows no DCGM exporter",
        "staging: away",
    ]
    assert len(lines) == 2 + len(FigureName) - 2 + 2


def test_hostile_words_of_a_source_are_one_line_without_secrets_or_orders() -> None:
    key = own_secret("figures-key-0123456789")
    hostile = f"[bold]said {key} \x1b]52;c;ZXZpbA==\x07\n::error::all is well\n" + "long " * 500
    figures = {"cpu": Figure(unknown=hostile), "memory": Figure(value=1, source=hostile, at=NOW)}
    found = found_of(side(**figures), staging=hostile)
    for text in (*figures_lines(found), *table(found), json.dumps(figures_json(found))):
        assert not any(part in text for part in (key, "\x1b", "::error")), text
        assert not text.startswith("::")
    assert all(len(line) < 1000 for line in figures_lines(found))
    assert any("[bold]said" in line for line in table(found))


def test_json_has_numbers_in_si_units_and_null_for_what_is_not_known() -> None:
    figures = {
        "latency_p99": known(5, upper=math.inf),
        "cpu": known(math.nan),
        "gpu_memory": known(30 * GIB, of=40 * GIB),
        "memory": known(30 * GIB, of=math.nan),
    }
    data = json.loads(json.dumps(figures_json(found_of(side(name="canary", **figures)))))

    (found,) = data["sides"]
    assert (found["environment"], found["revision"], found["side"]) == ("production", 4, "canary")
    assert list(found["figures"]) == list(FigureName)
    assert found["figures"]["latency_p95"] == {
        "value": 0.5, "upper": None, "of": None, "unit": "s", "limit": 3.0,
        "source": "Prometheus", "at": "2026-11-29T11:59:48+00:00", "age_seconds": 12.0,
        "unknown": "",
    }  # fmt: skip
    assert found["figures"]["latency_p99"]["upper"] == "Infinity"
    assert found["figures"]["cpu"]["value"] is None
    assert found["figures"]["cpu"]["unknown"] == "Prometheus says nan"
    assert found["figures"]["gpu_use"]["value"] is None
    assert found["figures"]["memory"]["of"] is None
