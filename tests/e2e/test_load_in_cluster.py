"""Staging gates on a real API server, their load made by pods that really run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.behaviour import HEALTHY, Behaviour, running
from cluster.fixtures import Namespace, eventually

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.evidence import read_evidence

pytestmark = pytest.mark.timeout(600)

MODEL = "llama-2-7b"
SERVICE = "http://{model}-{environment}.{namespace}.svc.cluster.local:8000"
GENERATOR: dict[str, Any] = {
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "apiKeySecret": {"name": "server-key", "key": "token"},
}
# What a machine that is busy with other tests is slow at is not what is tested here.
PATIENT = {
    "load": {"rate": "20/s", "duration": "8s", "warmup": "0s", "max_tokens": 2, "max_lag": "30s"},
    "gates": {
        "response_time": {"limit": "20s", "requests": 2},
        "latency": {"limit": "20s"},
        "error_rate": {"limit": "3%"},
        "load_capacity": {"expected_rate": "10/s", "unserved": "3%"},
    },
}


@pytest.fixture
def staging(namespace: Namespace, helm_binary: str) -> Iterator[Deployment]:
    """A deployment that serves, in a namespace where the generator's pods find it by name."""
    deployment = Deployment(MODEL, "staging", namespace.name)
    services = f"{namespace.cluster.services.url}/{namespace.name}/{deployment.release}"
    url = SERVICE.format(model=MODEL, environment="staging", namespace=namespace.name)

    def choose(pod: Any) -> Behaviour:
        if pod["metadata"]["labels"]["app.kubernetes.io/name"] == "load-generator":
            return running({url: services})
        return HEALTHY.serving(ttft_seconds="0.01", inter_token_seconds="0.001")

    namespace.behave(choose)
    namespace.create("secrets", {"metadata": {"name": "server-key"}, "data": {"token": "c2stYQ=="}})
    platform = namespace.platform(helm_binary)
    values = {"model": {"name": MODEL}}
    target = Target(build=platform.build(deployment, values), values=values, replicas=1, capacity=1)
    platform.apply(deployment, target, description="one", timeout=timedelta(seconds=60))
    yield deployment
    platform.close()


@pytest.fixture
def folder(tmp_path: Path, namespace: Namespace, helm_binary: str) -> Path:
    """A folder with a policy, to work in."""
    (tmp_path / "generator.yaml").write_text(yaml.safe_dump(GENERATOR))
    generator = {
        "image": "registry.example/vllm-rollout@sha256:" + "5" * 64,
        "values": "generator.yaml",
    }
    policy = {
        "namespace": namespace.name,
        "kubernetes": {"helm": helm_binary, "load_generator": generator},
        "environments": {"staging": PATIENT},
        "capacity": {"precision": "50%", "probe": "3s", "proof": "30s", "most_probes": 4},
    }
    (tmp_path / "rollout.yaml").write_text(yaml.safe_dump(policy))
    return tmp_path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    return subprocess.Popen(
        [sys.executable, "-m", *words, "--load-in-cluster", "--workers", "2"],
        cwd=folder,
        env={**kept, "VLLM_ROLLOUT_API_KEY": "sk-a"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


GATES = ("pytest", "-m", "staging", "--model", MODEL, "-p", "no:xdist", "-p", "no:cacheprovider")


def left(namespace: Namespace, name: str) -> list[str]:
    """Objects of the load generator."""
    kinds = (("jobs", "apis/batch/v1"), ("pods", "api/v1"), ("services", "api/v1"))
    found = [each for kind, group in kinds for each in namespace.list(kind, group)]
    return [
        each["metadata"]["name"]
        for each in found
        if each["metadata"]["name"].startswith(f"{name}-load")
    ]


@pytest.mark.parametrize(
    ("helm_binary", "api_server"),
    [
        ("helm4", "restarted"),
        pytest.param("helm4", "there", marks=pytest.mark.exhaustive),
        pytest.param("helm3", "there", marks=pytest.mark.exhaustive),
    ],
    indirect=["helm_binary"],
)
def test_gates_pass_on_load_that_pods_made_and_nothing_is_left(
    folder: Path, namespace: Namespace, staging: Deployment, api_server: str
) -> None:
    with start(folder, *GATES) as run:
        if api_server == "restarted":
            eventually(lambda: len(left(namespace, staging.release)) > 3, within_seconds=120)
            time.sleep(5)  # into the load, or just before it
            namespace.cluster.control_plane.stop_api_server()
            time.sleep(3)
            namespace.cluster.control_plane.start_api_server()
        output, _ = run.communicate(timeout=400)
    assert run.returncode == 0, output
    (file,) = folder.glob(f"reports/{MODEL}/*/evidence.json")
    evidence = read_evidence(file)
    assert evidence.outcome is Outcome.PASS
    assert {"latency", "error_rate", "load_capacity"} <= {g.gate for g in evidence.runs[0].gates}
    [load] = evidence.runs[0].loads.values()
    assert (load.total > 100, load.failures, load.incomplete) == (True, 0, "")
    eventually(lambda: not left(namespace, staging.release))


@pytest.mark.parametrize("helm_binary", ["helm4"], indirect=True)
def test_a_capacity_search_sends_its_loads_from_pods(
    folder: Path, namespace: Namespace, staging: Deployment
) -> None:
    words = ("vllm_rollout", "capacity", MODEL, "--from", "60/s", "--max-rate", "60/s")
    with start(folder, *words) as run:
        output, _ = run.communicate(timeout=400)
    assert run.returncode == 0, output
    (file,) = folder.glob(f"reports/{MODEL}/*/capacity.json")
    found = json.loads(file.read_text())
    assert found["capacity"]["ending"] == "at least"
    assert all(probe["requests"] > 20 for probe in found["probes"])
    assert found["base_url"].endswith(f".{namespace.name}.svc.cluster.local:8000")
    eventually(lambda: not left(namespace, staging.release))
