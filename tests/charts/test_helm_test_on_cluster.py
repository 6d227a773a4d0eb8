"""The chart's `helm test` really run: its pod's command, against what answers for the release."""

import base64
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.behaviour import HEALTHY, Behaviour, running
from cluster.fixtures import Namespace, eventually
from cluster.required import each_helm

from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.resources import CHARTS
from vllm_rollout.simulator.running import RunningSimulator

RELEASE = "llama-2-7b-staging"
KEY = "sk-of-the-tests"


@pytest.fixture
def servers(namespace: Namespace, helm_binary: str, tmp_path: Path) -> list[RunningSimulator]:
    """A release that serves to those who have its key, and whose Service the test pod finds."""
    service = f"{namespace.cluster.services.url}/{namespace.name}/{RELEASE}"

    def choose(pod: Any) -> Behaviour:
        if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "test":
            return running({f"http://{RELEASE}:8000": service})
        return HEALTHY.serving(api_keys=KEY, ttft_seconds="0.01")

    namespace.behave(choose)
    key = base64.b64encode(KEY.encode()).decode()
    namespace.create("secrets", {"metadata": {"name": "api"}, "data": {"key": key}})
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"apiKeySecret": {"name": "api", "key": "key"}}))
    Helm(helm_binary).upgrade(
        RELEASE,
        CHARTS / "vllm-deployment",
        namespace=namespace.name,
        values=[values],
        description="one",
        timeout=timedelta(seconds=60),
    )
    kubelet = namespace.cluster.kubelet
    eventually(lambda: bool(kubelet.serving(namespace.name, RELEASE)))
    return kubelet.serving(namespace.name, RELEASE)


def helm_test(namespace: Namespace, helm: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [helm, "test", RELEASE, "-n", namespace.name, "--timeout", "60s"],
        env={**os.environ, "KUBECONFIG": str(namespace.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )


@each_helm
@pytest.mark.usefixtures("servers")
def test_it_passes_where_a_completion_comes(namespace: Namespace, helm_binary: str) -> None:
    ended = helm_test(namespace, helm_binary)
    assert ended.returncode == 0, ended.stderr
    assert "Phase:          Succeeded" in ended.stdout


@pytest.mark.parametrize(
    "fault",
    [{"error_rate": 1.0}, {"dead": True}, {"truncated_rate": 1.0}],
    ids=["errors", "dead engine", "half an answer"],
)
def test_it_fails_where_the_service_is_broken(
    namespace: Namespace,
    helm_binary: str,
    servers: list[RunningSimulator],
    fault: dict[str, Any],
) -> None:
    for server in servers:
        server.turn(**fault)
    ended = helm_test(namespace, helm_binary)
    assert ended.returncode != 0, ended.stdout
    assert "test" in ended.stderr


@each_helm
def test_it_fails_where_nothing_answers(
    namespace: Namespace, helm_binary: str, servers: list[RunningSimulator]
) -> None:
    for server in servers:
        server.close()
    assert helm_test(namespace, helm_binary).returncode != 0


@pytest.mark.usefixtures("servers")
def test_it_fails_with_a_key_that_the_server_does_not_know(
    namespace: Namespace, helm_binary: str
) -> None:
    path = f"/api/v1/namespaces/{namespace.name}/secrets/api"
    wrong = {"data": {"key": base64.b64encode(b"sk-wrong").decode()}}
    namespace.cluster.send("PATCH", path, wrong).raise_for_status()
    assert helm_test(namespace, helm_binary).returncode != 0
