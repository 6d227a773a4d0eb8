"""The values of a release as files, in the order in which one lies over the other.

First what the policy says of the model's start, which all others may say better; then the build's
own values; then the environment's overlay. What the suite says of a revision comes last.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.platform.kubernetes.chart import Chart, overlay


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """Start-up time of a model, and its size in billions of parameters; None where unknown."""

    parameters: float | None
    period_seconds: float
    failure_threshold: int | None


StartUpOf = Callable[[str, float | None], StartUp]
"""The start-up of a model by its name, and by its size where the values state it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueFiles:
    """Writes the files; `overlays` holds `values-<environment>.yaml`."""

    overlays: Path
    start_up: StartUpOf | None = None

    def write(
        self,
        folder: Path,
        chart: Chart,
        deployment: Deployment,
        values: Mapping[str, Any],
    ) -> list[Path]:
        """Write what all revisions of a build have in common; the paths are in Helm's order, the
        environment's overlay is the last.

        Raises:
            UsageError: the environment's overlay cannot be used.
        """
        return [
            write_values(folder / "policy.yaml", self._of_the_policy(chart, deployment, values)),
            write_values(folder / "build.yaml", values),
            overlay(self.overlays, deployment.environment),
        ]

    def _of_the_policy(
        self, chart: Chart, deployment: Deployment, values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The start-up probe by the policy's table, for a chart that has such a value."""
        if self.start_up is None:
            return {}
        model = values.get("model")
        stated = model.get("parameters") if isinstance(model, Mapping) else None
        known = stated if isinstance(stated, int | float) else None
        start = self.start_up(deployment.model, known)
        found: dict[str, Any] = {}
        if _has(chart, "model", "parameters") and start.parameters is not None:
            found["model"] = {"parameters": start.parameters}
        if _has(chart, "startupProbe", "failureThreshold") and start.failure_threshold is not None:
            found["startupProbe"] = {
                "periodSeconds": math.ceil(start.period_seconds),
                "failureThreshold": start.failure_threshold,
            }
        return found


def _has(chart: Chart, section: str, key: str) -> bool:
    found = chart.defaults.get(section)
    return isinstance(found, Mapping) and key in found


def write_values(path: Path, values: Mapping[str, Any]) -> Path:
    """Write one values file; gives its path."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
    return path
