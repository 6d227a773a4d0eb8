"""Traffic divided between a release and its canary: the weights of an HTTPRoute (Gateway API).

    backendRefs:
      - {name: llama-2-7b-production, port: 8000, weight: 7500}
      - {name: llama-2-7b-production-canary, port: 8000, weight: 2500}

Only these two weights are ever written, in the rules that send traffic to the release's Service,
and only over the version that was read. A weight holds when a gateway has accepted the route as it
is now.
"""

import time
from collections.abc import Callable
from datetime import timedelta

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.base import (
    ConflictError,
    ForeignWeightsError,
    Weights,
    WeightsChangedError,
)
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.live_edits import last_manager
from vllm_rollout.platform.kubernetes.templates import Json

_KIND = ("gateway.networking.k8s.io", "v1")
_PLURAL = "httproutes"
_MERGE_PATCH = "application/merge-patch+json"
_POLL_SECONDS = 0.5
_DEFAULT_WEIGHT = 1
"""Of a backendRef that names none, by the API's definition."""


class HttpRoutes:
    """The HTTPRoutes that divide releases' traffic.

    `name` may hold `{model}`, `{environment}` and `{namespace}`; the route is in the release's
    namespace. `ensure` is asked right before a route is changed, and raises where it may not be.
    """

    def __init__(self, api: KubernetesApi, name: str, ensure: Callable[[], None]) -> None:
        self._api = api
        self._name = name
        self._ensure = ensure

    def weights(self, deployment: Deployment) -> Weights:
        """Return how the deployment's traffic is divided now.

        Raises:
            UsageError: there is no such route, no gateway has accepted it, or it divides otherwise.
            UnreachableError: the API server does not say.
        """
        route = self._read(deployment)
        if not route.get("status", {}).get("parents"):
            raise UsageError(
                f"no gateway has accepted the HTTPRoute {self._named(deployment)}, so its weights "
                "divide nothing",
                remedy="Check its parentRefs, and that the gateway's controller runs.",
            )
        return read_weights(route, deployment)

    def divided(self, deployment: Deployment) -> Json:
        """The route with rules that a ramp would write, as a patch of what is there.

        Raises: as `weights`.
        """
        route = self._read(deployment)
        read_weights(route, deployment)
        half = Weights.of_share(0.5)
        return {
            "apiVersion": "/".join(_KIND),
            "kind": "HTTPRoute",
            "metadata": {"name": self._route(deployment), "namespace": deployment.namespace},
            "spec": {"rules": divided_rules(route, deployment, half)},
        }

    def set_weights(
        self,
        deployment: Deployment,
        weights: Weights,
        *,
        expect: Weights | None,
        timeout: timedelta,
    ) -> None:
        """Write the weights, and return when the gateways have accepted them.

        Raises:
            ForeignWeightsError: they are not what was expected.
            WeightsChangedError: they are not accepted within `timeout`.
            UsageError, UnreachableError: as `weights`.
        """
        until = time.monotonic() + timeout.total_seconds()
        while True:
            route = self._read(deployment)
            now = read_weights(route, deployment)
            if expect is not None and now not in (expect, weights):
                raise ForeignWeightsError(now.foreign(expect))
            problem = "somebody else goes on changing it"
            if now == weights:
                problem = not_in_force(route)
                if not problem:
                    return
            elif self._write(deployment, route, weights):
                continue
            if time.monotonic() > until:
                raise WeightsChangedError(
                    f"the weights {weights} of {self._named(deployment)} are not in force after "
                    f"{timeout}: {problem}"
                )
            time.sleep(_POLL_SECONDS)

    def _write(self, deployment: Deployment, route: Json, weights: Weights) -> bool:
        """Return True if they were written; False if the route was changed since it was read."""
        self._ensure()
        body = {
            "metadata": {"resourceVersion": route["metadata"]["resourceVersion"]},
            "spec": {"rules": divided_rules(route, deployment, weights)},
        }
        try:
            with self._api.doing("patch", f"{_PLURAL} {self._named(deployment)}"):
                self._api.custom.patch_namespaced_custom_object(
                    *_KIND,
                    deployment.namespace,
                    _PLURAL,
                    self._route(deployment),
                    body,
                    _content_type=_MERGE_PATCH,
                    _request_timeout=TIMEOUT_SECONDS,
                )
        except ConflictError:
            return False
        return True

    def _read(self, deployment: Deployment) -> Json:
        try:
            with self._api.doing("get", f"{_PLURAL} {self._named(deployment)}"):
                found: Json = self._api.custom.get_namespaced_custom_object(
                    *_KIND,
                    deployment.namespace,
                    _PLURAL,
                    self._route(deployment),
                    _request_timeout=TIMEOUT_SECONDS,
                )
        except NotFoundError as error:
            raise UsageError(
                f"there is no HTTPRoute {self._named(deployment)} to divide traffic by",
                remedy="Make one that sends traffic to the Service "
                f"{deployment.release} (docs/how-to/canary.md), name another by "
                "kubernetes.http_route, or ramp by replicas: canary.by.",
            ) from error
        return found

    def _route(self, deployment: Deployment) -> str:
        return self._name.format(
            model=deployment.model,
            environment=deployment.environment,
            namespace=deployment.namespace,
        )

    def _named(self, deployment: Deployment) -> str:
        return f"{self._route(deployment)} in namespace {deployment.namespace}"


def read_weights(route: Json, deployment: Deployment) -> Weights:
    """The weights by which `route` divides the deployment's traffic.

    Raises:
        UsageError: no rule of it sends traffic to the release, one sends it elsewhere too, or two
            of them divide it differently.
    """
    found = set()
    for rule in route["spec"].get("rules") or ():
        references = rule.get("backendRefs") or ()
        sides = [_side(reference, deployment) for reference in references]
        if "stable" not in sides and "canary" not in sides:
            continue
        if sorted(map(str, sides)) not in (["stable"], ["canary", "stable"]):
            raise UsageError(
                f"the HTTPRoute {route['metadata']['name']} has a rule that divides the traffic of "
                f"{deployment.release} among {', '.join(r['name'] for r in references)}",
                remedy="A rule may name the release and its canary, once each, and no others.",
            )
        weights = {
            side: reference.get("weight", _DEFAULT_WEIGHT)
            for side, reference in zip(sides, references, strict=True)
        }
        by = last_manager(route)
        found.add(Weights(stable=weights["stable"], canary=weights.get("canary"), set_by=by))
    if len(found) != 1:
        what = "has rules that divide it differently" if found else "sends it no traffic"
        raise UsageError(
            f"the HTTPRoute {route['metadata']['name']} {what} ({deployment.release})",
            remedy="Each of its rules names the Service of the release, with the same weights.",
        )
    return found.pop()


def divided_rules(route: Json, deployment: Deployment, weights: Weights) -> list[Json]:
    """The rules of `route` with these weights; the canary is reached as the release is."""
    rules = []
    for rule in route["spec"].get("rules") or ():
        references = rule.get("backendRefs") or ()
        stable = next((r for r in references if _side(r, deployment) == "stable"), None)
        if stable is None:
            rules.append(rule)
            continue
        divided = [{**stable, "weight": weights.stable}]
        if weights.canary is not None:
            release = deployment.canary.release
            divided.append({**stable, "name": release, "weight": weights.canary})
        rules.append({**rule, "backendRefs": divided})
    return rules


def not_in_force(route: Json) -> str:
    """Return why the route, as it is now, is not what the gateways go by; empty if they do."""
    generation = route["metadata"].get("generation", 0)
    parents = route.get("status", {}).get("parents") or ()
    for parent in parents:
        conditions = {each["type"]: each for each in parent.get("conditions") or ()}
        for kind in ("Accepted", "ResolvedRefs"):
            condition = conditions.get(kind, {})
            if condition.get("observedGeneration", 0) < generation:
                return f"{parent.get('controllerName', 'a gateway')} has not processed it yet"
            if condition.get("status") != "True":
                return f"{kind} is {condition.get('status')}: {condition.get('message', '')}"
    return "" if parents else "no gateway has accepted it"


def service_port(api: KubernetesApi, deployment: Deployment) -> int:
    """The port of the release's Service.

    Raises:
        NotFoundError, UnreachableError: the Service cannot be read.
    """
    name, namespace = deployment.release, deployment.namespace
    with api.doing("get", f"services {name} in namespace {namespace}"):
        service = api.core.read_namespaced_service(
            name, namespace, _request_timeout=TIMEOUT_SECONDS
        )
    return int(service.spec.ports[0].port)


def _side(reference: Json, deployment: Deployment) -> str | None:
    """Return which side a backendRef is; None where it is neither."""
    kind = (reference.get("group", ""), reference.get("kind", "Service"))
    if kind != ("", "Service"):
        return None
    if reference.get("namespace", deployment.namespace) != deployment.namespace:
        return None
    sides = {deployment.release: "stable", deployment.canary.release: "canary"}
    return sides.get(reference["name"])
