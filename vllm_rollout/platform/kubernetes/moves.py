"""The revisions by which a release comes from what it runs to a target: values and objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.autoscaling import Scale
from vllm_rollout.platform.kubernetes.build import Builds
from vllm_rollout.platform.kubernetes.composition import (
    OWN_VALUES,
    next_rollout,
    pods_of,
    release_values,
)
from vllm_rollout.platform.kubernetes.helm import HelmRevision
from vllm_rollout.platform.kubernetes.releases import Releases
from vllm_rollout.platform.kubernetes.served import unlike_build
from vllm_rollout.platform.kubernetes.surge_plan import Pods, surge_plan
from vllm_rollout.platform.kubernetes.templates import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """The moves of a change of a release: `surge` pods more than it has at most, `unavailable` of
    its capacity less."""

    releases: Releases
    builds: Builds
    surge: int
    unavailable: int

    def start(
        self, deployment: Deployment, served: HelmRevision | None, scale: Scale | None
    ) -> Pods | None:
        """The pods of each track that a change begins with; None where nothing serves."""
        if served is None:
            return None
        if scale is not None:
            return Pods(stable=scale.stable, canary=scale.canary)
        return self.releases.pods(deployment, served)

    def values(
        self,
        deployment: Deployment,
        target: Target,
        served: HelmRevision | None,
        start: Pods | None,
        *,
        ramps: bool,
    ) -> list[dict[str, Any]]:
        """The values of each revision by which the release, which runs `served`, runs `target`."""
        before = self.releases.rollout(deployment, served) if served else None
        rollout = next_rollout(target, before)
        goal = pods_of(rollout)
        stable = None
        if served is not None and rollout.previous is not None:
            if not ramps:
                raise UsageError(
                    f"the chart {self.builds.chart} cannot run two builds side by side",
                    remedy="Ramp in one step (`ramp: [{share: 100%}]`), or use the chart "
                    "vllm-deployment, whose README says what a chart needs for it.",
                )
            stable = self.releases.stable_pod_template(deployment, served)
        moves = surge_plan(
            start or goal,
            goal,
            capacity=target.capacity,
            surge=self.surge,
            unavailable=self.unavailable,
        )
        return [release_values(rollout, pods, stable) for pods in moves]

    def rendered(
        self,
        deployment: Deployment,
        target: Target,
        chart: Path,
        moves: Sequence[Mapping[str, Any]],
        revisions: Sequence[Path],
    ) -> Sequence[Sequence[Json]]:
        """The objects of each revision, if its own values change nothing of what the build serves.

        Raises:
            DeployError: they do: a template reads the number of replicas, say.
        """
        build, *rendered = self.builds.rendered(
            deployment, target.values, chart=chart, above=[None, *revisions]
        )
        expected = self.builds.served(build)
        for move, objects in zip(moves, rendered, strict=True):
            kept = move["canary"]["stablePodTemplate"] or None
            found = unlike_build(
                self.builds.served(objects),
                expected,
                kept=self.builds.kept(kept),
                whole=kept is None,
            )
            if found:
                raise DeployError(
                    f"{deployment} would not serve what was gated, for a template reads one of "
                    f"{', '.join(OWN_VALUES)}: {'; '.join(found)}",
                    remedy="Use none of these values in the servers' pod templates.",
                )
        return rendered
