"""What a Gateway API implementation does, as far as a rollout sees it: it accepts HTTPRoutes.

The definition of HTTPRoute is a small one of our own: the fields that the suite reads and writes,
with the API's defaults. A cluster that has the real one keeps it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from cluster.fixtures import Cluster, Namespace, eventually

GROUP = "gateway.networking.k8s.io"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_POLL_SECONDS = 0.05


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT = {"type": "string"}
_WHOLE = {"type": "integer", "format": "int32"}
_REFERENCE = _object(
    group={**_TEXT, "default": ""},
    kind={**_TEXT, "default": "Service"},
    name=_TEXT,
    namespace=_TEXT,
    port=_WHOLE,
    weight={**_WHOLE, "default": 1, "minimum": 0, "maximum": 1_000_000},
)
_MATCH = _object(path=_object(type=_TEXT, value=_TEXT))
_SPEC = _object(
    parentRefs=_list(_object(name=_TEXT)),
    rules=_list(_object(matches=_list(_MATCH), backendRefs=_list(_REFERENCE))),
)
_CONDITION = _object(
    type=_TEXT, status=_TEXT, reason=_TEXT, message=_TEXT, observedGeneration={"type": "integer"}
)
_STATUS = _object(
    parents=_list(
        _object(
            controllerName=_TEXT,
            parentRef=_object(name=_TEXT),
            conditions=_list(_CONDITION),
        )
    )
)
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"httproutes.{GROUP}",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
    },
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": "HTTPRoute", "plural": "httproutes", "singular": "httproute"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": _object(spec=_SPEC, status=_STATUS)},
            }
        ],
    },
}


@dataclass
class Gateway:
    """Accepts the HTTPRoutes of a namespace while it is `on`, and notes each set of weights."""

    namespace: Namespace
    on: bool = True
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def add_route(self, release: str, *, name: str = "", **more: Any) -> None:
        """An HTTPRoute that sends all traffic to the Service of a release."""
        path = {"path": {"type": "PathPrefix", "value": "/v1"}}
        rule = {"matches": [path], "backendRefs": [{"name": release, "port": 8000, **more}]}
        route = {
            "apiVersion": f"{GROUP}/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": name or release},
            "spec": {"parentRefs": [{"name": "public"}], "rules": [rule]},
        }
        self.namespace.create("httproutes", route, f"apis/{GROUP}/v1")

    def route(self, name: str) -> dict[str, Any]:
        """The route as it is."""
        (found,) = [each for each in self._routes() if each["metadata"]["name"] == name]
        return found

    def accept(self) -> None:
        """Look at each route once."""
        for route in self._routes():
            generation = route["metadata"]["generation"]
            condition = {
                "status": "True",
                "reason": "Accepted",
                "message": "",
                "observedGeneration": generation,
            }
            kinds = ("Accepted", "ResolvedRefs")
            parent = {
                "controllerName": "example.test/gateway",
                "parentRef": {"name": "public"},
                "conditions": [{"type": kind, **condition} for kind in kinds],
            }
            if route.get("status", {}).get("parents") == [parent]:
                continue
            path = f"/apis/{GROUP}/v1/namespaces/{self.namespace.name}/httproutes/"
            status = {"status": {"parents": [parent]}}
            name = route["metadata"]["name"]
            self.namespace.cluster.send("PATCH", f"{path}{name}/status", status)
            references = route["spec"]["rules"][0]["backendRefs"]
            self.seen.append(tuple(reference["weight"] for reference in references))

    def _routes(self) -> list[dict[str, Any]]:
        return self.namespace.list("httproutes", f"apis/{GROUP}/v1")


def define(cluster: Cluster) -> None:
    """See to it that the cluster knows HTTPRoutes."""
    answer = cluster.send("POST", _DEFINITIONS, _DEFINITION)
    assert answer.status_code in (201, 409), answer.text
    known = f"/apis/{GROUP}/v1/httproutes"
    eventually(lambda: cluster.api.get(known).status_code == 200)


@contextmanager
def running_gateway(namespace: Namespace) -> Iterator[Gateway]:
    """A gateway that looks after the namespace's routes until the block ends."""
    define(namespace.cluster)
    gateway, done = Gateway(namespace), threading.Event()

    def work() -> None:
        while not done.wait(_POLL_SECONDS):
            with suppress(httpx.HTTPError):  # it looks again
                if gateway.on:
                    gateway.accept()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield gateway
    finally:
        done.set()
        thread.join()
