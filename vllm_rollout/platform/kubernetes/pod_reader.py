"""A release's pods, what makes them, and their logs, read from the API server."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.text import redact
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.pods import INSTANCE_LABEL, Pod, parse_pod, serving


def list_pods(api: KubernetesApi, deployment: Deployment) -> list[Pod]:
    """The release's pods that are meant to serve, by name.

    Raises: as `KubernetesApi.doing`.
    """
    return serving(list_release(api, deployment))


def list_release(api: KubernetesApi, deployment: Deployment) -> list[Pod]:
    """All pods of the release, by name; where it is needed, with their template's containers.

    Raises: as `KubernetesApi.doing`.
    """
    namespace = deployment.namespace
    pods = list_instance(api, namespace, deployment.release)
    owners = {pod.owner for pod in pods if pod.of_unknown_server}
    templates = {owner: _containers_of(api, namespace, owner) for owner in owners}
    return [pod.model_copy(update={"template": templates.get(pod.owner, ())}) for pod in pods]


def _containers_of(api: KubernetesApi, namespace: str, owner: tuple[str, str]) -> tuple[str, ...]:
    """Names of the containers that a workload is made of; none where it cannot be read."""
    try:
        found = read_workload(api, namespace, *owner)
    except RolloutError:
        return ()
    containers = found["spec"]["template"]["spec"]["containers"] if found else ()
    return tuple(str(each["name"]) for each in containers)


def read_workload(
    api: KubernetesApi, namespace: str, kind: str, name: str
) -> Mapping[str, Any] | None:
    """The Deployment or StatefulSet as it is in the cluster; None if it is not there.

    Raises: as `KubernetesApi.doing`.
    """
    read = {
        "Deployment": api.apps.read_namespaced_deployment,
        "StatefulSet": api.apps.read_namespaced_stateful_set,
    }.get(kind)
    if read is None:
        return None
    try:
        with api.doing("get", f"{kind.lower()}s {name} in namespace {namespace}"):
            found = read(name, namespace, _request_timeout=TIMEOUT_SECONDS)
    except NotFoundError:
        return None
    plain: Mapping[str, Any] = api.core.api_client.sanitize_for_serialization(found)
    return plain


def list_instance(api: KubernetesApi, namespace: str, instance: str) -> list[Pod]:
    """All pods of an instance of an application, by name.

    Raises: as `KubernetesApi.doing`.
    """
    return list_namespace(api, namespace, f"{INSTANCE_LABEL}={instance}")


def list_namespace(api: KubernetesApi, namespace: str, selector: str = "") -> list[Pod]:
    """The pods of a namespace that the label selector names, by name.

    Raises: as `KubernetesApi.doing`.
    """
    with api.doing("list", f"pods in namespace {namespace}"):
        found = api.core.list_namespaced_pod(
            namespace, label_selector=selector, _request_timeout=TIMEOUT_SECONDS
        )
    documents = [api.core.api_client.sanitize_for_serialization(item) for item in found.items]
    return sorted(map(parse_pod, documents), key=lambda pod: pod.metadata.name)


def list_workloads(
    api: KubernetesApi, namespace: str, instances: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The Deployments and StatefulSets of some releases as they are in the cluster.

    Raises: as `KubernetesApi.doing`.
    """
    selector = f"{INSTANCE_LABEL} in ({','.join(instances)})"
    found: list[Mapping[str, Any]] = []
    for kind, plural in (("Deployment", "deployments"), ("StatefulSet", "statefulsets")):
        answer = api.request(
            *("list", f"{plural} in namespace {namespace}"),
            *("GET", f"/apis/apps/v1/namespaces/{namespace}/{plural}"),
            query_params=[("labelSelector", selector)],
        )
        found += [{**each, "kind": kind} for each in answer["items"]]
    return found


def anything_left(api: KubernetesApi, deployment: Deployment) -> bool:
    """Return True if a release that is being removed still has pods, or what makes them.

    Raises: as `KubernetesApi.doing`.
    """
    namespace, release = deployment.namespace, deployment.release
    return bool(list_workloads(api, namespace, [release]) or list_instance(api, namespace, release))


def pod_log(api: KubernetesApi, deployment: Deployment, pod: Pod, *, tail: int) -> str:
    """The last `tail` lines of the model server's container, secrets redacted.

    Before it has run, of the init container that keeps it from running. Of a container that waits
    to be restarted it is the log of the one before; empty where nothing has run yet. A log that
    cannot be read is replaced by the reason: one lost node must not hide the other pods' logs.
    """
    status = pod.server_status
    if pod.unready and pod.role_of(pod.unready.name) == "init":
        status = pod.unready
    if status is None:
        return ""
    ended = bool(status.state.waiting and status.restart_count)
    try:
        return container_log(api, deployment, pod, status.name, previous=ended, tail=tail)
    except RolloutError as error:
        return f"(no log: {error})"


def container_log(
    api: KubernetesApi,
    deployment: Deployment,
    pod: Pod,
    container: str,
    *,
    previous: bool,
    tail: int,
) -> str:
    """The last lines of a container's log, or of the one before it, secrets redacted.

    Raises: as `KubernetesApi.doing`.
    """
    with api.doing("get", f"pods/log in namespace {deployment.namespace}"):
        text = api.core.read_namespaced_pod_log(
            pod.metadata.name,
            deployment.namespace,
            container=container,
            previous=previous,
            tail_lines=tail,
            _request_timeout=TIMEOUT_SECONDS,
        )
    return redact(str(text))
