"""CPU and memory of pods, by the Kubernetes metrics API (metrics.k8s.io)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.live_figures import ReplicaUsage, Usage
from vllm_rollout.platform.kubernetes.api import KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.pods import INSTANCE_LABEL

_SOURCE = "Kubernetes metrics API"
_NO_SUCH_API = (
    "the cluster has no metrics API (metrics.k8s.io): install metrics-server, or have Prometheus "
    "scrape cAdvisor"
)
_GPUS = "only the DCGM exporter knows the GPUs of pods, by Prometheus (`prometheus.url`)"
_NETWORK = "only cAdvisor knows the network of pods, by Prometheus (`prometheus.url`)"


def usage_of(api: KubernetesApi, deployment: Deployment) -> Usage:
    """Return what the pods of the release use; where it is not known, why. Does not raise."""
    namespace = deployment.namespace
    try:
        found = api.request(
            *("list", f"pods.metrics.k8s.io in namespace {namespace}"),
            *("GET", f"/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods"),
            query_params=[("labelSelector", f"{INSTANCE_LABEL}={deployment.release}")],
        )
        pods = {str(each["metadata"]["name"]): _usage(each) for each in found["items"]}
    except NotFoundError:
        return _unknown(_NO_SUCH_API)
    except RolloutError as error:
        return _unknown(f"{error}. {error.remedy}".rstrip())
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        return _unknown(f"its answer cannot be read: {error!r}")
    return Usage(source=_SOURCE, replicas=pods, gpus_unknown=_GPUS, network_unknown=_NETWORK)


def _unknown(why: str) -> Usage:
    return Usage(source=_SOURCE, unknown=why, gpus_unknown=_GPUS, network_unknown=_NETWORK)


def _usage(pod: Mapping[str, Any]) -> ReplicaUsage:
    from kubernetes.utils import parse_quantity

    def whole(resource: str) -> float:
        amounts = [parse_quantity(each["usage"][resource]) for each in pod["containers"]]  # type: ignore[no-untyped-call]
        if not amounts:
            raise ValueError("a pod without containers")
        return float(sum(amounts))

    at = datetime.fromisoformat(pod["timestamp"])
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return ReplicaUsage(
        at=at,
        cpu_cores=whole("cpu"),
        memory_bytes=whole("memory"),
    )
