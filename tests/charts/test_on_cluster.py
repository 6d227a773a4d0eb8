"""The chart's objects on a real API server: each is accepted, and unknown fields are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster import fixtures
from cluster.fixtures import Cluster, Namespace, eventually

from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.resources import CHARTS

CHART = CHARTS / "vllm-deployment"
SERVICE_MONITOR = Path(fixtures.__file__).with_name("service_monitor.yaml")
PATHS = {
    "Deployment": "apis/apps/v1/namespaces/{namespace}/deployments",
    "HorizontalPodAutoscaler": (
        "apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    ),
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "PodDisruptionBudget": "apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "Pod": "api/v1/namespaces/{namespace}/pods",
    "Service": "api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "api/v1/namespaces/{namespace}/serviceaccounts",
    "ServiceMonitor": "apis/monitoring.coreos.com/v1/namespaces/{namespace}/servicemonitors",
}
EVERYTHING: dict[str, Any] = {
    "model": {"revision": "0a1b", "tokenSecret": {"name": "hf", "key": "token"}},
    "image": {"digest": "sha256:" + "5" * 64, "pullSecrets": [{"name": "pull"}]},
    "apiKeySecret": {"name": "api", "key": "key"},
    "gpu": {"count": 2},
    "modelCache": {"existingClaim": "cache"},
    "autoscaling": {"enabled": True},
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {"enabled": True, "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "nodeSelector": {"pool": "gpu"},
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
        }
    ],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "extraEnv": [{"name": "A", "value": "b"}],
}


@pytest.fixture(scope="module")
def _service_monitors(cluster: Cluster) -> Iterator[None]:
    """ServiceMonitor is a kind that the API server knows."""
    definition = yaml.safe_load(SERVICE_MONITOR.read_text())
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    cluster.send("POST", path, definition).raise_for_status()
    served = "/apis/monitoring.coreos.com/v1/servicemonitors"
    eventually(lambda: cluster.api.get(served).status_code == httpx.codes.OK)
    yield
    cluster.send("DELETE", f"{path}/{definition['metadata']['name']}")


@pytest.mark.usefixtures("_service_monitors")
@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_api_server_accepts_every_object_in_every_environment(
    namespace: Namespace, helm_binary: str, tmp_path: Path, values: dict[str, Any]
) -> None:
    own = tmp_path / "values.yaml"
    own.write_text(yaml.safe_dump(values))
    for environment in ("development", "staging", "production"):
        objects = Helm(helm_binary).template(
            f"llama-2-7b-{environment}",
            CHART,
            namespace=namespace.name,
            values=[CHART / f"values-{environment}.yaml", own],
        )
        kinds = {each["kind"] for each in objects}
        assert {"Deployment", "Service", "Pod"} <= kinds
        assert ("ServiceMonitor" in kinds) is bool(values)
        for each in objects:
            path = PATHS[each["kind"]].format(namespace=namespace.name)
            answer = namespace.cluster.send(
                "POST", f"/{path}?dryRun=All&fieldValidation=Strict", each
            )
            assert answer.status_code == httpx.codes.CREATED, (each["kind"], answer.text)


@pytest.mark.usefixtures("_service_monitors")
@pytest.mark.parametrize("wrong", [{"interval": "often"}, {"intervall": "15s"}])
def test_what_no_service_monitor_may_say_is_refused(
    namespace: Namespace, wrong: dict[str, str]
) -> None:
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "wrong"},
        "spec": {"selector": {}, "endpoints": [{"port": "http", **wrong}]},
    }
    path = PATHS["ServiceMonitor"].format(namespace=namespace.name)
    answer = namespace.cluster.send("POST", f"/{path}?fieldValidation=Strict", monitor)
    assert answer.is_client_error
    assert next(iter(wrong)) in answer.text
