"""Releases driven through Helm, replicas read through the API, state kept in the cluster."""

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_rollout.deployment import Build, Deployment, Replica, Revision, Target
from vllm_rollout.errors import DeployError, RolloutError, UnreachableError, UsageError
from vllm_rollout.platform.base import Guard, NotReadyError, Route, WayTrouble, Weights
from vllm_rollout.platform.kubernetes.api import KubernetesApi, connect
from vllm_rollout.platform.kubernetes.build import check_same, make_build
from vllm_rollout.platform.kubernetes.chart import admit, copied, load_chart
from vllm_rollout.platform.kubernetes.composition import (
    OWN_VALUES,
    is_ours,
    next_rollout,
    pods_of,
    release_values,
)
from vllm_rollout.platform.kubernetes.helm import Helm, HelmRevision
from vllm_rollout.platform.kubernetes.pods import list_pods, pod_log, replica_of
from vllm_rollout.platform.kubernetes.preflight import KubernetesPreflight
from vllm_rollout.platform.kubernetes.reach import Reach, Ways
from vllm_rollout.platform.kubernetes.releases import Releases, newest_served, revision_of
from vllm_rollout.platform.kubernetes.store import KubernetesStore
from vllm_rollout.platform.kubernetes.symptoms import symptoms_of
from vllm_rollout.platform.kubernetes.traffic import HttpRoutes, service_port
from vllm_rollout.platform.kubernetes.value_files import StartUpOf, ValueFiles, write_values
from vllm_rollout.platform.kubernetes.walk import walk
from vllm_rollout.symptoms import Symptoms

_NOT_READY = (
    "Read what the pods say. A model that is still loading needs more time: startup_probe and "
    "deploy_timeout."
)


class KubernetesPlatform:
    """The `Platform` of a cluster.

    `namespace` is where the store is; each release is in its deployment's own. `overlays` is the
    folder with `values-<environment>.yaml`, the chart's own when None. `service_url` may name
    `{model}`, `{environment}` and `{namespace}`; `reach` is how it is reached (see `Ways`).
    `surge` and `unavailable` are the pods above and below a release's capacity in a ramp (`walk`),
    `start_up` how long models may load (None leaves it to the chart). `http_route` is the name of
    the HTTPRoute that divides a release's traffic (`HttpRoutes`).
    """

    name = "kubernetes"

    def __init__(
        self,
        *,
        namespace: str,
        context: str | None,
        chart: Path,
        service_url: str,
        overlays: Path | None = None,
        helm: str = "helm",
        reach: Reach = "auto",
        surge: int = 1,
        unavailable: int = 0,
        start_up: StartUpOf | None = None,
        http_route: str = "{model}-{environment}",
    ) -> None:
        self._namespace = namespace
        self._context = context
        self._chart = chart
        self._files = ValueFiles(overlays=overlays or chart, start_up=start_up)
        self._reach: Reach = reach
        self._ways = Ways(service_url, reach)
        self._own_ways: dict[int, Ways] = {}
        self._http_route = http_route
        self._surge, self._unavailable = surge, unavailable
        self._helm = Helm(helm, context=context)
        self._releases = Releases(self._helm)

    @cached_property
    def _api(self) -> KubernetesApi:
        return connect(self._context)

    @cached_property
    def store(self) -> KubernetesStore:
        """ConfigMaps and Leases in `namespace`."""
        return KubernetesStore(self._api, self._namespace)

    def guard(self, guard: Guard) -> None:
        """Ask `guard` before each Helm command that changes a release; it ends with the lease."""
        self._helm.guard = guard

    def base_url(self, deployment: Deployment) -> str:
        """The Service's URL, or that of a tunnel to its pods, without a trailing slash.

        Raises:
            UnreachableError: a tunnel is needed, and the Service cannot be read.
            NotFoundError: there is no such Service.
        """
        return self._ways.url(deployment, self._api)

    def route(self, deployment: Deployment) -> Route:
        """The Service's URL, and whether it is reached directly or by a tunnel."""
        return self._ways.route(deployment)

    def way_trouble(self, deployment: Deployment) -> WayTrouble:
        """What was the API server's doing, where tunnels through it are the way."""
        return sum((ways.trouble(deployment) for ways in self._all_ways()), WayTrouble())

    def _all_ways(self) -> tuple[Ways, ...]:
        return self._ways, *self._own_ways.values()

    def own_url(self, deployment: Deployment) -> str:
        """The URL of the release's own Service, whatever `service_url` says. Raises: as
        `base_url`."""
        port = service_port(self._api, deployment)
        if port not in self._own_ways:
            name = f"http://{{release}}.{{namespace}}.svc.cluster.local:{port}"
            self._own_ways[port] = Ways(name, "tunnel" if self._reach == "tunnel" else "auto")
        return self._own_ways[port].url(deployment, self._api)

    def weights(self, deployment: Deployment) -> Weights:
        """How the HTTPRoute divides the deployment's traffic. Raises: as `HttpRoutes.weights`."""
        return self._routes.weights(deployment)

    def set_weights(
        self,
        deployment: Deployment,
        weights: Weights,
        *,
        expect: Weights | None,
        timeout: timedelta,
    ) -> None:
        """Write the HTTPRoute's weights, and return when they are in force.

        Raises: as `HttpRoutes.set_weights`.
        """
        self._routes.set_weights(deployment, weights, expect=expect, timeout=timeout)

    @cached_property
    def _routes(self) -> HttpRoutes:
        def ensure() -> None:
            if self._helm.guard is not None:
                self._helm.guard.ensure()

        return HttpRoutes(self._api, self._http_route, ensure)

    def close(self) -> None:
        """Close the tunnels; otherwise they end with this process."""
        for ways in self._all_ways():
            ways.close()

    def history(self, deployment: Deployment) -> list[Revision]:
        """All revisions, oldest first; empty when the release does not exist."""
        return [
            revision_of(entry, self._releases.rollout(deployment, entry))
            for entry in self._releases.entries(deployment)
        ]

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The values the revision's build was made of, the environment's overlay left out.

        Raises:
            UsageError: there is no such revision, or other hands made it: its own values and its
                environment's cannot be told apart then.
        """
        for entry in self._releases.entries(deployment):
            if entry.revision == revision:
                rollout = self._releases.rollout(deployment, entry)
                if not is_ours(rollout):
                    raise UsageError(
                        f"revision {revision} of {deployment.release} was not made by vllm-rollout",
                        remedy="Deploy it with `vllm-rollout deploy`; then its values are known.",
                    )
                return rollout.values
        raise UsageError(f"{deployment.release} has no revision {revision}")

    def build(self, deployment: Deployment, values: dict[str, Any]) -> Build:
        """The build that the chart folder and `values` make.

        Raises:
            UsageError: the chart cannot be read, or the values serve another model.
        """
        return make_build(self._chart, deployment, values)

    def preflight(
        self, deployment: Deployment, values: Mapping[str, Any], *, capacity: int
    ) -> KubernetesPreflight:
        """The facts about deploying `values` with `capacity` pods, read when they are asked for."""
        return KubernetesPreflight(
            deployment,
            values=values,
            capacity=capacity,
            chart=self._chart,
            files=self._files,
            helm=self._helm,
            api=self._api,
        )

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> Revision:
        """Bring the release to `target` and wait until its pods are ready.

        A ramp step takes several revisions, one for each move of `walk`, so that pods leave only
        when those in their place are ready; the last one is returned. When a move's pods are not
        ready within `timeout`, the release goes back to the revision that served before (which
        may take as long again), and the failed one stays in the history.

        Raises:
            NotReadyError: not ready; it has what was known of the pods while they were there.
            DeployError: Helm refused, or the chart is not the one `target.build` was made of.
            UsageError: the chart, its values or the overlay are wrong, or the chart knows no ramp.
            UnreachableError: Helm or the cluster did not answer.
        """
        served = newest_served(self._releases.entries(deployment))
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            # A copy, so that what is compared with the target is what Helm then reads.
            path = copied(self._chart, Path(folder))
            check_same(target.build, make_build(path, deployment, dict(target.values)))
            chart = load_chart(path)
            values = self._files.write(Path(folder), chart, deployment, target.values)
            admit(path, OWN_VALUES)
            moves = self._moves(deployment, target, served, ramps=chart.ramps)
            for number, move in enumerate(moves, start=1):
                more = f", move {number} of {len(moves)}" if number < len(moves) else ""
                revision = write_values(Path(folder) / "revision.yaml", move)
                self._upgrade(
                    deployment,
                    path,
                    [*values, revision],
                    description=description + more,
                    served=served,
                    timeout=timeout,
                )
        return self.history(deployment)[-1]

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> Revision:
        """Make a new revision with the state of `revision` and wait until its pods are ready.

        Raises: as `apply`.
        """
        try:
            self._helm.rollback(
                deployment.release,
                revision,
                namespace=deployment.namespace,
                description=description,
                timeout=timeout,
            )
        except DeployError as error:
            raise NotReadyError(
                str(error), symptoms=self._known(deployment), remedy=error.remedy or _NOT_READY
            ) from error
        return self.history(deployment)[-1]

    def undo_command(self, deployment: Deployment, revision: int | None) -> str:
        """The Helm command that returns to `revision`, or removes the release."""
        what = ["uninstall"] if revision is None else ["rollback"]
        number = [] if revision is None else [str(revision)]
        words = ["helm", *what, deployment.release, *number, "-n", deployment.namespace, "--wait"]
        context = [] if self._context is None else ["--kube-context", self._context]
        return shlex.join([*words, *context])

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        """Remove the release and its history. The store's documents stay."""
        self._helm.uninstall(deployment.release, namespace=deployment.namespace, timeout=timeout)

    def recover(self, deployment: Deployment, *, timeout: timedelta) -> str:
        """Clear a `pending-*` revision that a killed client left; say what was found, or "".

        Only for the holder of the model's lease: Helm cannot tell a dead client from a slow one.

        Raises:
            DeployError: no revision is known to have served.
        """
        entries = self._releases.entries(deployment)
        if not entries or not entries[-1].status.startswith("pending"):
            return ""
        pending = entries[-1]
        found = (
            f"{deployment.release} revision {pending.revision} was left {pending.status} "
            f"since {pending.updated:%Y-%m-%d %H:%M:%S %Z}"
        )
        served = newest_served(entries)
        if served is not None:
            self._helm.rollback(
                deployment.release,
                served.revision,
                namespace=deployment.namespace,
                description=f"vllm-rollout recovery: back to revision {served.revision}",
                timeout=timeout,
            )
            return f"{found}; rolled back to revision {served.revision}"
        if pending.status == "pending-install":
            self.uninstall(deployment, timeout=timeout)
            return f"{found}; nothing had served before, so it was uninstalled"
        raise DeployError(
            f"{found}, and no earlier revision was ever deployed",
            remedy=f"Look at `helm history {deployment.release} -n {deployment.namespace}` and "
            "uninstall the release if it serves nobody.",
        )

    def replicas(self, deployment: Deployment) -> list[Replica]:
        """The pods that are meant to serve, by name."""
        try:
            return [replica_of(pod) for pod in list_pods(self._api, deployment)]
        except UnreachableError as error:
            for ways in self._all_ways():
                ways.suffered(deployment, str(error))
            raise

    def logs(self, deployment: Deployment, *, tail: int = 100) -> str:
        """The last `tail` log lines of each pod, secrets redacted."""
        return "\n".join(
            f"==> {pod.metadata.name} <==\n{pod_log(self._api, deployment, pod, tail=tail)}"
            for pod in list_pods(self._api, deployment)
        )

    def symptoms(self, deployment: Deployment) -> list[Symptoms]:
        """What is known of each pod, and of pods that could not be made."""
        return symptoms_of(self._api, deployment)

    def _moves(
        self,
        deployment: Deployment,
        target: Target,
        served: HelmRevision | None,
        *,
        ramps: bool,
    ) -> list[dict[str, Any]]:
        """The values of each revision by which the release, which runs `served`, runs `target`."""
        before = self._releases.rollout(deployment, served) if served else None
        rollout = next_rollout(target, before)
        goal = pods_of(rollout)
        start = self._releases.pods(deployment, served) if served else goal
        stable = None
        if served is not None and rollout.previous is not None:
            if not ramps:
                raise UsageError(
                    f"the chart {self._chart} cannot run two builds side by side",
                    remedy="Ramp in one step (`ramp: [{share: 100%}]`), or use the chart "
                    "vllm-deployment, whose README says what a chart needs for it.",
                )
            stable = self._releases.stable_pod_template(deployment, served.revision)
        moves = walk(
            start,
            goal,
            capacity=target.capacity,
            surge=self._surge,
            unavailable=self._unavailable,
        )
        return [release_values(rollout, pods, stable) for pods in moves]

    def _upgrade(
        self,
        deployment: Deployment,
        chart: Path,
        values: Sequence[Path],
        *,
        description: str,
        served: HelmRevision | None,
        timeout: timedelta,
    ) -> None:
        """One revision; where its pods do not come up, the release goes back to `served`."""
        entries = self._releases.entries(deployment)
        try:
            self._helm.upgrade(
                deployment.release,
                chart,
                namespace=deployment.namespace,
                values=values,
                description=description,
                timeout=timeout,
            )
        except DeployError as error:
            if self._releases.entries(deployment)[-1:] == entries[-1:]:
                # Helm refused before it changed anything, perhaps because another client is
                # at work: then nothing here is ours to undo.
                raise
            raise self._undone(deployment, served, error, timeout) from error

    def _undone(
        self,
        deployment: Deployment,
        served: HelmRevision | None,
        error: DeployError,
        timeout: timedelta,
    ) -> NotReadyError:
        """`error` with what is known of the pods while they are there, once the release is back."""
        parts, symptoms = [str(error)], self._known(deployment)
        if served is not None:
            try:
                self._helm.rollback(
                    deployment.release,
                    served.revision,
                    namespace=deployment.namespace,
                    description=f"vllm-rollout: not ready, back to revision {served.revision}",
                    timeout=timeout,
                )
                parts.append(f"{deployment.release} is back at revision {served.revision}.")
            except RolloutError as failure:
                parts.append(f"Going back to revision {served.revision} failed as well: {failure}")
        return NotReadyError(". ".join(parts), symptoms=symptoms, remedy=error.remedy or _NOT_READY)

    def _known(self, deployment: Deployment) -> Sequence[Symptoms]:
        """The symptoms of the pods; none where they cannot be read: the error itself is told."""
        try:
            return self.symptoms(deployment)
        except RolloutError:
            return ()
