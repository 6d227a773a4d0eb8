"""Each fault of a pod, as a real API server tells it, gives its own diagnosis."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from cluster.behaviour import (
    HEALTHY,
    Behaviour,
    crash_loop,
    image_pull,
    out_of_memory,
    slow_start,
    unready,
)
from cluster.fixtures import Namespace, eventually
from cluster.required import required_tool
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.judge.diagnosis import Finding
from vllm_rollout.judge.diagnosis import diagnose as judge
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.resources import CHARTS

MODEL = "llama-2-70b"
RELEASE = f"{MODEL}-production"
TRACEBACK = "Traceback (most recent call last):\nValueError: no such model\n"


def deployment(gpus: int, **spec: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/instance": RELEASE}
    container = {
        "name": "vllm",
        "image": "registry.example/vllm:1",
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
        "startupProbe": {
            "httpGet": {"path": "/health", "port": 8000},
            "periodSeconds": 30,
            "failureThreshold": 20,
        },
    }
    pod = {"containers": [container], "tolerations": [{"operator": "Exists"}], **spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": RELEASE},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


Diagnose = Callable[[], tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def diagnose(namespace: Namespace) -> Diagnose:
    """`vllm-rollout diagnose --json`: exit code, and the findings once there are any."""

    def run() -> tuple[int, list[dict[str, Any]]]:
        words = ["diagnose", MODEL, "-e", "production", "-n", namespace.name, "--json"]
        done = CliRunner().invoke(app, words)
        return done.exit_code, json.loads(done.output)["findings"]

    return run


@pytest.mark.parametrize(
    ("behaviour", "cause", "line", "resolution"),
    [
        (image_pull("vllm:1"), "its image cannot be pulled", "NotFound", "image.pullSecrets"),
        (crash_loop(TRACEBACK), "ends soon after every start", "ValueError: no such model", "log"),
        (
            crash_loop("torch.OutOfMemoryError: CUDA out of memory\n"),
            "the GPU's memory",
            "CUDA out of memory",
            "gpu.count",
        ),
        (out_of_memory(), "killed at its memory limit", "OOMKilled", "limits.memory"),
        (
            slow_start(),
            "20 × 30 s (10 min)",
            "Loading safetensors checkpoint shards",
            "failureThreshold to 40 ",
        ),
        (unready(), "its health probe fails", "ERROR engine is dead", "restart the pod"),
    ],
)
def test_each_fault_has_its_own_diagnosis(
    namespace: Namespace,
    diagnose: Diagnose,
    behaviour: Behaviour,
    cause: str,
    line: str,
    resolution: str,
) -> None:
    namespace.behave(behaviour)
    namespace.create("deployments", deployment(1), "apis/apps/v1")
    eventually(lambda: cause in str(diagnose()[1]))
    code, (finding,) = diagnose()
    assert code == 1
    assert line in "\n".join(finding["shown_by"])
    assert resolution in finding["resolution"]


def test_pods_that_wait_for_gpus_are_told_by_node(namespace: Namespace, diagnose: Diagnose) -> None:
    labels = {"pool": namespace.name}
    namespace.cluster.add_node(f"small-{namespace.name}", gpus=2, labels=labels)
    body = deployment(4, nodeSelector=labels)
    namespace.create("deployments", body, "apis/apps/v1")
    eventually(lambda: bool(diagnose()[1]) and "waits for" in diagnose()[1][0]["cause"])
    _, (finding,) = diagnose()
    assert finding["cause"] == "it waits for 4 nvidia.com/gpu, 2 more than any node has free"
    assert f"small-{namespace.name}: 2 of 2 nvidia.com/gpu free" in finding["shown_by"]
    assert any("refuses it: the selector pool=" in line for line in finding["shown_by"])
    namespace.cluster.send("DELETE", f"/api/v1/nodes/small-{namespace.name}").raise_for_status()


def test_pods_that_a_quota_keeps_from_being_made_are_told(
    namespace: Namespace, diagnose: Diagnose
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    namespace.create("resourcequotas", quota)
    eventually(lambda: "used" in namespace.list("resourcequotas")[0].get("status", {}))
    namespace.create("deployments", deployment(1), "apis/apps/v1")
    eventually(lambda: bool(diagnose()[1]))
    code, (finding,) = diagnose()
    assert code == 1
    assert "quota" in finding["cause"]
    assert "exceeded quota: none" in finding["shown_by"][0]

    # Once they can be made, the event is of the past.
    namespace.behave(HEALTHY)
    namespace.cluster.send(
        "DELETE", f"/api/v1/namespaces/{namespace.name}/resourcequotas/none"
    ).raise_for_status()
    path = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/{RELEASE}"
    again = {"spec": {"template": {"metadata": {"annotations": {"again": "1"}}}}}
    namespace.cluster.send("PATCH", path, again).raise_for_status()
    eventually(lambda: diagnose() == (0, []))


HOOK = """
apiVersion: batch/v1
kind: Job
metadata:
  name: download
  annotations: {helm.sh/hook: "pre-install,pre-upgrade"}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: %s
      tolerations: [{operator: Exists}]
      containers: [{name: fetch, image: registry.example/fetch:1}]
"""


def test_a_hook_that_fails_or_hangs_is_the_reason_by_its_own_log(
    namespace: Namespace, tmp_path: Path
) -> None:
    chart = tmp_path / "chart"
    copytree(CHARTS / "vllm-deployment", chart)
    platform = namespace.platform(required_tool("helm4"), chart=chart)
    where = Deployment("m", "staging", namespace.name)
    log = "huggingface_hub.errors.GatedRepoError: 403 Client Error.\n"

    def deploy(restart: str) -> tuple[NotReadyError, Finding]:
        (chart / "templates" / "download.yaml").write_text(HOOK % restart)
        values = {"model": {"name": "m", "revision": restart}}
        build = platform.build(where, values)
        target = Target(build=build, values=values, replicas=1, capacity=1)
        with pytest.raises(NotReadyError) as raised:
            platform.apply(where, target, description="x", timeout=timedelta(seconds=10))
        (finding,) = judge(raised.value.symptoms, where)
        return raised.value, finding

    namespace.behave(Behaviour(exited=1, log=log))
    error, failed = deploy("Never")
    assert failed.replica.startswith("hook Job download (pre-install,pre-upgrade), pod download-")
    assert "it failed: the Hugging Face hub does not give the model" in failed.cause
    assert log.strip() in failed.shown_by
    assert "more time" not in error.remedy

    namespace.behave(Behaviour(log="Fetching 3 files: 0%\n"))
    _, hangs = deploy("OnFailure")
    assert "has not ended" in hangs.cause
    assert "`deploy_timeout`" in hangs.cause
    assert hangs.shown_by == ("Fetching 3 files: 0%",)


def test_what_serves_needs_no_diagnosis(namespace: Namespace, diagnose: Diagnose) -> None:
    namespace.behave(HEALTHY)
    assert diagnose() == (1, [])  # there is no replica
    namespace.create("deployments", deployment(1), "apis/apps/v1")
    eventually(lambda: diagnose() == (0, []))
