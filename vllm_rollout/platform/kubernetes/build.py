"""The build that a chart folder and values make."""

from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Build, Deployment, canonical_digest
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.chart import load_chart, merged


def make_build(chart_path: Path, deployment: Deployment, values: dict[str, Any]) -> Build:
    """The build that the chart folder and `values` (no environment's overlay among them) make.

    Raises:
        UsageError: the chart cannot be read, or the values serve another model.
    """
    chart = load_chart(chart_path)
    effective = merged(chart.defaults, values)
    model = _section(effective, "model")
    served = model.get("name", deployment.model)
    if served != deployment.model:
        raise UsageError(
            f"the values serve the model {served!r}, and the deployment is {deployment}",
            remedy=f"Set model.name to {deployment.model} in the values.",
        )
    return Build(
        chart_digest=chart.digest,
        values_digest=canonical_digest(values),
        image_digest=_section(effective, "image").get("digest") or None,
        model_revision=model.get("revision") or None,
    )


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def check_same(gated: Build, made: Build) -> None:
    """Let nothing pass but the build that was gated.

    Raises:
        DeployError: `made` is another; the message names each part that differs.
    """
    if gated != made:
        raise DeployError(
            "the build to apply is not what the chart and values make now: "
            + "; ".join(gated.differences(made)),
            remedy="The chart was changed since it was gated: gate the new build, or check the "
            "old chart out.",
        )
