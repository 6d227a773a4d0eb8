"""Objects that a chart makes of a release's values, before anything is deployed."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.model.preflight_facts import Demand, Rendering
from vllm_rollout.platform.kubernetes.autoscaling import counted
from vllm_rollout.platform.kubernetes.change_time import share
from vllm_rollout.platform.kubernetes.chart import admit, copied, load_chart
from vllm_rollout.platform.kubernetes.composition import OWN_VALUES
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.nodes import (
    limits_of,
    requests_of,
    unconsidered,
    with_defaults,
)
from vllm_rollout.platform.kubernetes.templates import without_hooks
from vllm_rollout.platform.kubernetes.value_files import ValueFiles, write_values

_COUNTED = ("Deployment", "StatefulSet")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The chart with the values of the whole release, as Helm gets them when it is deployed."""

    chart: Path
    files: ValueFiles
    deployment: Deployment
    values: Mapping[str, Any]
    capacity: int
    helm: Helm
    own: Mapping[str, Any] = field(default_factory=dict)
    """Values of the revision besides its number of pods: see `composition`."""

    def complaint(self) -> str:
        """Return the complaints of `helm lint --strict`; empty when there are none."""
        try:
            with self._written() as (chart, files):
                self.helm.lint(chart, values=files)
        except (UsageError, DeployError) as error:
            return str(error)
        return ""

    def dry_run(self) -> None:
        """Have Helm prepare the upgrade with the cluster's help, without doing it.

        Raises: as `command.run`: what Helm refuses.
        """
        with self._written() as (chart, files):
            self.helm.dry_run(
                self.deployment.release, chart, namespace=self.deployment.namespace, values=files
            )

    @cached_property
    def rendering(self) -> Rendering:
        """The objects of `helm template`, or why there are none; made once."""
        try:
            with self._written() as (chart, files):
                objects = self.helm.template(
                    self.deployment.release,
                    chart,
                    namespace=self.deployment.namespace,
                    values=files,
                )
        except (UsageError, DeployError) as error:
            return Rendering(complaint=str(error))
        return Rendering(objects=tuple(objects))

    @property
    def workloads(self) -> list[Mapping[str, Any]]:
        """The objects that run pods for as long as the release stands.

        Raises:
            UsageError: the chart does not render, or runs nothing.
        """
        found = self._running
        if not found:
            complaint = self.rendering.complaint
            reason = complaint or "no Deployment and no StatefulSet among its objects"
            raise UsageError(
                f"what the pods need is unknown, the chart makes none: {reason}",
                remedy="Correct the chart or its values first.",
            )
        return found

    def count_problem(self) -> str:
        """Return where the chart and the policy differ in the number of pods; empty if they agree.

        Empty for a chart that renders no pods, and where an autoscaler owns the number.
        """
        kinds = {each.get("kind") for each in self.rendering.objects}
        pods = sum(int(each["spec"].get("replicas", 1)) for each in self._running)
        if not self._running or "HorizontalPodAutoscaler" in kinds or pods == self.capacity:
            return ""
        return (
            f"the chart makes {pods} pods where the policy has replicas: {self.capacity}. The "
            "number must come from the chart's value replicaCount"
        )

    @property
    def _running(self) -> list[Mapping[str, Any]]:
        """The same; none where there is none. An autoscaler's number counts as the capacity."""
        found = [
            each
            for each in without_hooks(self.rendering.objects)
            if each.get("kind") in _COUNTED and each["spec"].get("replicas", 1)
        ]
        return counted(found, self.capacity)

    @contextmanager
    def _written(self) -> Iterator[tuple[Path, Sequence[Path]]]:
        """The chart and the values files, as Helm gets them when the release is deployed."""
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            chart = copied(self.chart, Path(folder))
            admit(chart, OWN_VALUES)
            files = self.files.write(Path(folder), load_chart(chart), self.deployment, self.values)
            whole = write_values(
                Path(folder) / "revision.yaml", {"replicaCount": self.capacity, **self.own}
            )
            yield chart, [*files, whole]


def demand_of(
    workload: Mapping[str, Any], limit_ranges: Sequence[Mapping[str, Any]] = ()
) -> Demand:
    """The pods that a workload runs, and what each asks for with the namespace's defaults."""
    spec = with_defaults(workload["spec"]["template"]["spec"], limit_ranges)
    pods = int(workload["spec"].get("replicas", 1))
    return Demand(
        workload=f"{workload['kind']} {workload['metadata']['name']}",
        pods=pods,
        surge=_surge(workload, pods),
        requests={**requests_of(spec), "pods": 1.0},
        limits=limits_of(spec),
        unconsidered=unconsidered(spec),
    )


def _surge(workload: Mapping[str, Any], pods: int) -> int:
    """Return how many pods a rolling update runs beyond `pods`; Kubernetes rounds shares up."""
    if workload["kind"] != "Deployment":
        return 0
    strategy = workload["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0
    return share((strategy.get("rollingUpdate") or {}).get("maxSurge", "25%"), pods, up=True)
