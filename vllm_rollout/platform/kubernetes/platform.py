"""Releases driven through Helm, replicas read through the API, state kept in the cluster."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import (
    Build,
    Deployment,
    Replica,
    Revision,
    RevisionStatus,
    Target,
)
from vllm_rollout.model.errors import RolloutError, UnreachableError, UsageError
from vllm_rollout.model.live_figures import Usage
from vllm_rollout.model.symptoms import Symptoms
from vllm_rollout.next_command import next_command
from vllm_rollout.platform.base import LiveObjects, PathErrors, Route, Weights
from vllm_rollout.platform.kubernetes.admission import admission, marked_by_helm
from vllm_rollout.platform.kubernetes.api import KubernetesApi, NotFoundError, connected
from vllm_rollout.platform.kubernetes.autoscaling import Autoscaling, Scale, read_autoscalers
from vllm_rollout.platform.kubernetes.build import ENVIRONMENTS, Builds
from vllm_rollout.platform.kubernetes.changes import Changes
from vllm_rollout.platform.kubernetes.composition import is_ours
from vllm_rollout.platform.kubernetes.connectivity import Paths, Reach
from vllm_rollout.platform.kubernetes.foreign_fields import ForeignFields
from vllm_rollout.platform.kubernetes.helm import Capabilities, Helm, HelmRevision
from vllm_rollout.platform.kubernetes.http_routes import HttpRoutes, service_port
from vllm_rollout.platform.kubernetes.kubeconfig import Kubeconfig, resolve_kubeconfig
from vllm_rollout.platform.kubernetes.live_edits import (
    field_conflicts,
    live_objects,
    unlike_running,
)
from vllm_rollout.platform.kubernetes.moves import Moves
from vllm_rollout.platform.kubernetes.pod_reader import anything_left, list_pods, pod_log
from vllm_rollout.platform.kubernetes.pod_symptoms import symptoms_of
from vllm_rollout.platform.kubernetes.pods import replica_of
from vllm_rollout.platform.kubernetes.preflight_reader import KubernetesPreflight
from vllm_rollout.platform.kubernetes.ramp_preflight import Ramp
from vllm_rollout.platform.kubernetes.readiness import readiness_of
from vllm_rollout.platform.kubernetes.release_storage import ReleaseStorage
from vllm_rollout.platform.kubernetes.releases import Releases, refuse_foreign, revision_of
from vllm_rollout.platform.kubernetes.served import OWNED_BY_ENVIRONMENT
from vllm_rollout.platform.kubernetes.store import KubernetesStore
from vllm_rollout.platform.kubernetes.usage import usage_of
from vllm_rollout.platform.kubernetes.value_files import StartUpOf, ValueFiles
from vllm_rollout.platform.writer import Guard


class KubernetesPlatform:
    """The `ReleaseWriter` of a cluster.

    `namespace` is where the store is; each release is in its deployment's own. `overlays` is the
    folder with `values-<environment>.yaml`, the chart's own when None. `service_url` may name
    `{model}`, `{environment}` and `{namespace}`; `reach` is how it is reached (see `Paths`).
    `surge` and `unavailable` are the pods above and below a release's capacity in a ramp
    (`surge_plan`), `start_up` how long models may load (None leaves it to the chart). `http_route`
    is the name of the HTTPRoute that divides a release's traffic (`HttpRoutes`).
    `environment_owns` and `order` are those of `Builds`. `overwrite` lets an upgrade take fields
    that somebody else has set.
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
        environment_owns: Sequence[str] = OWNED_BY_ENVIRONMENT,
        order: Sequence[str] = ENVIRONMENTS,
        overwrite: bool = False,
    ) -> None:
        self._namespace = namespace
        self._context = context
        self._reach: Reach = reach
        self._paths = Paths(service_url, reach)
        self._own_paths: dict[int, Paths] = {}
        self._http_route = http_route
        self._storage = ReleaseStorage(lambda: self.store)
        self._helm = Helm(helm, kubeconfig=lambda: self._kubeconfig, driver=self._storage.driver)
        self._releases = Releases(self._helm, self._pods)
        self._builds = Builds(
            helm=self._helm,
            chart=chart,
            files=ValueFiles(overlays=overlays or chart, start_up=start_up),
            owned=tuple(environment_owns),
            order=tuple(order),
            cluster=self._able,
        )
        self._autoscaling = Autoscaling(lambda: self._api, self._ensure)
        self._foreign = ForeignFields(
            helm=self._helm,
            releases=self._releases,
            conflicts=lambda deployment, objects: field_conflicts(
                self._api, deployment.namespace, marked_by_helm(objects, deployment)
            ),
            live=self.live_objects,
        )
        self._changes = Changes(
            helm=self._helm,
            releases=self._releases,
            builds=self._builds,
            moves=Moves(
                releases=self._releases, builds=self._builds, surge=surge, unavailable=unavailable
            ),
            foreign=self._foreign,
            symptoms=self.symptoms,
            readiness=lambda deployment, objects: readiness_of(self._api, deployment, objects),
            anything_left=lambda deployment: anything_left(self._api, deployment),
            admission=lambda deployment, objects: admission(
                self._api,
                marked_by_helm(objects, deployment),
                deployment.namespace,
                applies=bool(self._helm.forcing),
            ),
            autoscaling=self._autoscaling,
            overwrite=overwrite,
        )

    @cached_property
    def _kubeconfig(self) -> Kubeconfig:
        return resolve_kubeconfig(self._context, namespace=self._namespace)

    @cached_property
    def _api(self) -> KubernetesApi:
        return connected(self._kubeconfig)

    def _able(self) -> Capabilities:
        version, apis = self._api.capabilities()
        return Capabilities(version=version, apis=tuple(apis))

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
        return self._paths.url(deployment, self._api)

    def route(self, deployment: Deployment) -> Route:
        """The Service's URL, and whether it is reached directly or by a tunnel."""
        return self._paths.route(deployment)

    def path_errors(self, deployment: Deployment) -> PathErrors:
        """Return the API server's errors, where the path is a tunnel through it."""
        return sum((paths.path_errors(deployment) for paths in self._all_paths()), PathErrors())

    def _all_paths(self) -> tuple[Paths, ...]:
        return self._paths, *self._own_paths.values()

    def own_url(self, deployment: Deployment) -> str:
        """The URL of the release's own Service, whatever `service_url` says. Raises: as
        `base_url`."""
        return self._own_path(deployment).url(deployment, self._api)

    def _own_path(self, deployment: Deployment) -> Paths:
        port = service_port(self._api, deployment)
        if port not in self._own_paths:
            name = f"http://{{release}}.{{namespace}}.svc.cluster.local:{port}"
            self._own_paths[port] = Paths(name, "tunnel" if self._reach == "tunnel" else "auto")
        return self._own_paths[port]

    def replica_url(self, deployment: Deployment, replica: Replica) -> str:
        """The URL of a tunnel to the pod; empty with `reach` service, or without its Service."""
        if self._reach == "service":
            return ""
        try:
            return self._own_path(deployment).pod_url(deployment, self._api, replica.name)
        except NotFoundError:
            return ""

    def weights(self, deployment: Deployment) -> Weights:
        """Return the weights of the deployment's HTTPRoute. Raises: as `HttpRoutes.weights`."""
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
        return HttpRoutes(self._api, self._http_route, self._ensure)

    def _ensure(self) -> None:
        if self._helm.guard is not None:
            self._helm.guard.ensure()

    def close(self) -> None:
        """Close the tunnels; otherwise they end with this process."""
        for paths in self._all_paths():
            paths.close()

    def history(self, deployment: Deployment) -> list[Revision]:
        """All revisions, oldest first; empty when the release does not exist.

        The one that serves is deployed, by what the pods run: see `Releases.served`. Its numbers of
        replicas are those that there are to be now, where an autoscaler sets them.
        """
        return self._history(deployment, self._releases.entries(deployment))

    def _history(self, deployment: Deployment, entries: Sequence[HelmRevision]) -> list[Revision]:
        served = self._releases.served(deployment, entries)
        found = [
            revision_of(entry, self._releases.rollout(deployment, entry), serves=entry is served)
            for entry in entries
        ]
        scale = self._autoscaling.scale(deployment) if served else None
        return [self._scaled(each, scale) if scale else each for each in found]

    @staticmethod
    def _scaled(revision: Revision, scale: Scale) -> Revision:
        if revision.status is not RevisionStatus.DEPLOYED:
            return revision
        replicas = scale.pods if revision.complete else scale.canary
        return replace(revision, replicas=replicas, capacity=scale.pods, autoscaled=True)

    def live_objects(self, deployment: Deployment) -> LiveObjects:
        """The specs of the Deployments and StatefulSets of the release and of its canary.

        Raises: as `live_edits.live_objects`.
        """
        names = {deployment.release}
        with suppress(UsageError):  # a name that is too long has no canary
            names.add(deployment.canary.release)
        scalers = read_autoscalers(self._api, deployment.namespace)
        return live_objects(
            self._api, deployment.namespace, sorted(names), scaled={s.scales for s in scalers}
        )

    def autoscaled_by(self, deployment: Deployment) -> Sequence[str]:
        """Return the names of the autoscalers of its pods. Raises: as `Autoscaling.scale`."""
        scale = self._autoscaling.scale(deployment)
        return [str(each) for each in scale.by] if scale else []

    def expected_history(self, deployment: Deployment) -> str | None:
        """Return a revision that the history must have, and by which driver; see the reader."""
        return self._storage.expected(deployment.release)

    def values(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The values the revision's build was made of, the environment's overlay left out.

        Raises:
            UsageError: there is no such revision, or it was made manually: its own values and
                its environment's cannot be separated then.
        """
        for entry in self._releases.entries(deployment):
            if entry.revision == revision:
                rollout = self._releases.rollout(deployment, entry)
                if not is_ours(rollout):
                    words = ("deploy", deployment.model, "--values", "FILE")
                    raise UsageError(
                        f"revision {revision} of {deployment.release} was not made by vllm-rollout",
                        remedy="Bring it from the first environment, and its values are known: "
                        + next_command("vllm-rollout", *words),
                    )
                return rollout.values
        raise UsageError(f"{deployment.release} has no revision {revision}")

    def build(self, deployment: Deployment, values: dict[str, Any]) -> Build:
        """The build that the chart folder and `values` make. Raises: as `Builds.make`."""
        return self._builds.make(deployment, values)

    def running_differences(self, deployment: Deployment) -> list[str]:
        """Return how what runs differs from what was rendered for the newest revision's build.

        Live pod templates and pods are held against what Helm applied, and that against what the
        chart makes of the build's values now, where it still is the build's chart.
        """
        entry = self._releases.to_return_to(deployment, self._releases.entries(deployment))
        rollout = self._releases.rollout(deployment, entry) if entry else None
        if entry is None or rollout is None or not is_ours(rollout):
            return []
        applied = self._releases.manifest(deployment, entry)
        found = self._builds.unlike_applied(deployment, rollout, applied)
        return found + unlike_running(
            self._api, deployment, applied, owned=self._builds.owned, build=rollout.digest
        )

    def preflight(
        self,
        deployment: Deployment,
        values: Mapping[str, Any],
        *,
        capacity: int,
        steps: Sequence[int] = (),
    ) -> KubernetesPreflight:
        """The facts about deploying `values` with `capacity` pods, read when they are asked for."""
        return KubernetesPreflight(
            deployment,
            values=values,
            capacity=capacity,
            builds=self._builds,
            api=self._api,
            ramp=lambda whole: Ramp(
                whole=whole,
                releases=self._releases,
                driver=self._storage.driver,
                routes=self._routes,
                steps=tuple(steps) or (capacity,),
                surge=self._changes.moves.surge,
                unavailable=self._changes.moves.unavailable,
                keeps_state=self._namespace == deployment.namespace,
            ),
        )

    def apply(
        self, deployment: Deployment, target: Target, *, description: str, timeout: timedelta
    ) -> Revision:
        """Bring the release to `target` and wait until its pods are ready.

        Raises: as `Changes.apply`.
        """
        newest = partial(self._newest, deployment)
        self._storage.begin(deployment.release, newest)
        try:
            self._changes.apply(deployment, target, description=description, timeout=timeout)
        except RolloutError:
            with suppress(RolloutError):  # the next change writes it down
                self._storage.made(deployment.release, newest)
            raise
        self._storage.made(deployment.release, newest)
        entries = self._releases.entries(deployment)
        refuse_foreign(deployment, entries[-1:], since=0, description=description)
        return self._history(deployment, entries)[-1]

    def _newest(self, deployment: Deployment) -> int:
        entries = self._releases.entries(deployment)
        return entries[-1].revision if entries else 0

    def rollback(
        self, deployment: Deployment, revision: int, *, description: str, timeout: timedelta
    ) -> Revision:
        """Make a new revision with the state of `revision` and wait until its pods are ready.

        Raises: as `apply`.
        """
        self._changes.rollback(deployment, revision, description=description, timeout=timeout)
        return self.history(deployment)[-1]

    def undo_command(self, deployment: Deployment, revision: int | None) -> str:
        """The Helm command that returns to `revision`, or removes the release."""
        what = ["uninstall"] if revision is None else ["rollback"]
        number = [] if revision is None else [str(revision)]
        words = ["helm", *what, deployment.release, *number, "-n", deployment.namespace, "--wait"]
        if revision is not None:
            words += self._helm.forcing
        if context := self._kubeconfig.context:
            words += ["--kube-context", context]
        driver = self._storage.driver(deployment.release)
        return (
            shlex.join(words) if driver == "secret" else f"HELM_DRIVER={driver} {shlex.join(words)}"
        )

    def field_conflicts(self, deployment: Deployment, revision: int | None = None) -> Sequence[str]:
        """Return the fields of `revision` that somebody else has set otherwise; of the newest
        (None) without those of autoscalers.

        Raises: as `live_edits.field_conflicts`.
        """
        return self._foreign.of_revision(deployment, revision)

    def uninstall(self, deployment: Deployment, *, timeout: timedelta) -> None:
        """Remove the release and its history. The store's documents stay."""
        self._storage.forget(deployment.release)
        self._changes.uninstall(deployment, timeout=timeout)

    def recover(self, deployment: Deployment, *, timeout: timedelta) -> str:
        """Clear a `pending-*` revision that a killed client left; say what was found, or "".

        Raises: as `Changes.recover`.
        """
        return self._changes.recover(deployment, timeout=timeout)

    def replicas(self, deployment: Deployment) -> list[Replica]:
        """The pods that are meant to serve, by name."""
        try:
            return self._pods(deployment)
        except UnreachableError as error:
            for paths in self._all_paths():
                paths.record_error(deployment, str(error))
            raise

    def _pods(self, deployment: Deployment) -> list[Replica]:
        return [replica_of(pod) for pod in list_pods(self._api, deployment)]

    def usage(self, deployment: Deployment) -> Usage:
        """Return CPU and memory of the pods, by the metrics API. Does not raise."""
        return usage_of(self._api, deployment)

    def logs(self, deployment: Deployment, *, tail: int = 100) -> str:
        """The last `tail` log lines of each pod, secrets redacted."""
        return "\n".join(
            f"==> {pod.metadata.name} <==\n{pod_log(self._api, deployment, pod, tail=tail)}"
            for pod in list_pods(self._api, deployment)
        )

    def symptoms(self, deployment: Deployment) -> list[Symptoms]:
        """Return the symptoms of each pod, of pods that could not be made, and of hooks that a
        revision which has not come up waits for."""
        return symptoms_of(self._api, deployment, hooks=self._hooks(deployment))

    def _hooks(self, deployment: Deployment) -> list[dict[str, Any]]:
        with suppress(RolloutError):  # the pods' symptoms do not depend on it
            newest = self._releases.entries(deployment)[-1:]
            if newest and newest[0].status != "deployed":
                return self._helm.hooks(
                    deployment.release, newest[0].revision, namespace=deployment.namespace
                )
        return []
