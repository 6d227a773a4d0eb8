"""The chart's objects on a real API server: each is accepted, and unknown fields are refused."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cluster.fixtures import Namespace

from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.resources import CHARTS

pytestmark = pytest.mark.cluster

CHART = CHARTS / "vllm-deployment"
PATHS = {
    "Deployment": "apis/apps/v1/namespaces/{namespace}/deployments",
    "HorizontalPodAutoscaler": (
        "apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    ),
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
        assert {"Deployment", "Service", "Pod"} <= {each["kind"] for each in objects}
        for each in objects:
            path = PATHS[each["kind"]].format(namespace=namespace.name)
            answer = namespace.cluster.send(
                "POST", f"/{path}?dryRun=All&fieldValidation=Strict", each
            )
            assert answer.status_code == httpx.codes.CREATED, (each["kind"], answer.text)
