"""What a chart makes of a release's values: start-up times, closed schemas."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.required import each_helm

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.platform.kubernetes.chart import load_chart
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.rendered import Rendered, demand_of
from vllm_rollout.platform.kubernetes.value_files import StartUp, ValueFiles
from vllm_rollout.policy import load_policy
from vllm_rollout.resources import CHARTS
from vllm_rollout.settings import start_up_by

CHART = CHARTS / "vllm-deployment"
Render = Callable[..., Rendered]


@pytest.fixture
def render(helm_binary: str, tmp_path: Path) -> Render:
    def render(
        model: str,
        values: dict[str, Any] | None = None,
        *,
        chart: Path = CHART,
        overlay: dict[str, Any] | None = None,
        policy: dict[str, Any] | None = None,
    ) -> Rendered:
        (tmp_path / "values-production.yaml").write_text(yaml.safe_dump(overlay or {}))
        start_up = start_up_by(load_policy(None, overrides=policy or {}))
        return Rendered(
            chart=chart,
            files=ValueFiles(overlays=tmp_path, start_up=start_up),
            deployment=Deployment(model, "production"),
            values=values or {},
            capacity=2,
            helm=Helm(helm_binary),
        )

    return render


def probe(rendered: Rendered) -> tuple[int, int]:
    """(failureThreshold, periodSeconds) of the start-up probe."""
    (workload,) = rendered.workloads
    found = workload["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    return found["failureThreshold"], found["periodSeconds"]


@pytest.mark.parametrize(
    ("model", "values", "policy", "expected"),
    [
        pytest.param("llama-2-7b", {}, {}, (20, 30), id="by its name"),
        pytest.param("llama-2-70b", {}, {}, (40, 30), id="by its name, large"),
        pytest.param("chat", {"model": {"parameters": 70}}, {}, (40, 30), id="as values state"),
        pytest.param("chat", {}, {"models.chat.parameters": 70}, (40, 30), id="as policy states"),
        pytest.param("chat", {}, {}, (20, 30), id="unknown: the chart's own"),
        pytest.param(
            "llama-2-7b",
            {},
            {
                "startup_probe.period": "10s",
                "startup_probe.thresholds": [{"up_to": 7, "failure_threshold": 33}],
            },
            (33, 10),
            id="by the team's table",
        ),
        pytest.param(
            "llama-2-70b", {"startupProbe": {"failureThreshold": 50}}, {}, (50, 30), id="by values"
        ),
    ],
)
def test_the_start_up_probe_is_the_policys_by_model_size(
    render: Render,
    model: str,
    values: dict[str, Any],
    policy: dict[str, Any],
    expected: tuple[int, int],
) -> None:
    assert probe(render(model, values, policy=policy)) == expected


def test_an_overlay_may_give_an_environment_more_time(render: Render) -> None:
    overlay = {"startupProbe": {"failureThreshold": 99}}
    assert probe(render("llama-2-7b", overlay=overlay)) == (99, 30)


def test_a_model_beyond_the_table_does_not_pass_for_a_small_one(render: Render) -> None:
    complaint = render("llama-3-405b").rendering.complaint
    assert "startupProbe.failureThreshold" in complaint


@each_helm
def test_a_closed_schema_of_a_teams_own_need_not_know_the_suites_values(
    render: Render, tmp_path: Path
) -> None:
    chart = tmp_path / "ours"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: ours\nversion: 1.0.0\n")
    (chart / "values.yaml").write_text("pods: 2\n")
    closed = {"type": "object", "additionalProperties": False, "properties": {"pods": {}}}
    (chart / "values.schema.json").write_text(json.dumps(closed))
    (chart / "templates" / "all.yaml").write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"
        "spec:\n  replicas: {{ .Values.pods }}\n  selector: {matchLabels: {a: b}}\n"
        "  template: {metadata: {labels: {a: b}}, spec: {containers: []}}\n"
    )
    ours = render("llama-2-7b", chart=chart)
    assert ours.complaint() == ""
    assert ours.count_problem() == ""
    assert json.loads((chart / "values.schema.json").read_text()) == closed
    assert "not allowed" in render("llama-2-7b", {"podz": 3}, chart=chart).rendering.complaint

    alone = render("llama-2-7b", {"pods": 1}, chart=chart).count_problem()
    assert "makes 1 pods where the policy has replicas: 2" in alone


@pytest.mark.parametrize("scaled", [{"enabled": True}, {"external": True}])
def test_pods_that_an_autoscaler_counts_need_room_for_all(
    render: Render, scaled: dict[str, Any]
) -> None:
    rendered = render("llama-2-7b", {"autoscaling": scaled})
    assert [demand_of(each).pods for each in rendered.workloads] == [2]
    assert rendered.count_problem() == ""


def test_a_chart_without_a_start_up_probe_is_given_none(render: Render, tmp_path: Path) -> None:
    chart = Path(shutil.copytree(CHART, tmp_path / "chart"))
    files = ValueFiles(
        overlays=chart,
        start_up=lambda *_: StartUp(parameters=7.0, period_seconds=30.0, failure_threshold=20),
    )
    written = render("llama-2-7b", chart=chart)
    assert written.complaint() == ""
    (chart / "values.yaml").write_text("{}\n")
    first, *_ = files.write(tmp_path, load_chart(chart), written.deployment, {})
    assert yaml.safe_load(first.read_text()) == {}
