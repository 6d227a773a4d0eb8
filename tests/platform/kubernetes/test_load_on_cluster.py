"""Load made by pods, on a real API server: whole, or it says what is missing.

The pods' commands really run, as processes; the server they load is a simulator.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from cluster.behaviour import running
from cluster.fixtures import Namespace, eventually

from vllm_rollout.load.remote_generator import remotely
from vllm_rollout.load.run_load import run_load
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_pods import LoadTask
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.kubernetes.api import connect
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.load_generator import KubernetesLoadPods
from vllm_rollout.platform.kubernetes.load_values import LoadSettings, generator_name
from vllm_rollout.simulator.running import RunningSimulator

MODEL = "llama-2-7b"
URL = f"http://{MODEL}-staging.models.example:8000"
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
VALUES: dict[str, Any] = {
    "image": "registry.example/vllm-rollout@sha256:" + "5" * 64,
    "tolerations": [TOLERATION],
}


@pytest.fixture
def server() -> Iterator[RunningSimulator]:
    with RunningSimulator(
        model=MODEL, ttft_seconds="0.005", inter_token_seconds="0.001"
    ) as simulator:
        yield simulator


class Site:
    """The pods of one load generator in a test's namespace."""

    def __init__(self, namespace: Namespace, helm: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self._helm = helm

    def pods(self, *, start_seconds: float = 120, **values: Any) -> KubernetesLoadPods:
        file = self.folder / "generator.yaml"
        file.write_text(yaml.safe_dump(VALUES | values))
        return KubernetesLoadPods(
            connect(None),
            Helm(self._helm),
            Deployment(MODEL, "staging", self.namespace.name),
            LoadSettings(
                namespace=self.namespace.name,
                image="",
                values=file,
                start_seconds=start_seconds,
                has_key=False,
            ),
        )

    def left(self) -> list[str]:
        kinds = {
            "jobs": "apis/batch/v1",
            "networkpolicies": "apis/networking.k8s.io/v1",
            "services": "api/v1",
            "pods": "api/v1",
        }
        found = [
            each["metadata"]["name"]
            for kind, group in kinds.items()
            for each in self.namespace.list(kind, group)
        ]
        plans = [each["metadata"]["name"] for each in self.namespace.list("configmaps")]
        return found + [name for name in plans if name.endswith("-plan")]


@pytest.fixture
def site(namespace: Namespace, helm_binary: str, tmp_path: Path, server: RunningSimulator) -> Site:
    namespace.behave(running({URL: server.url}))
    return Site(namespace, helm_binary, tmp_path)


def a_plan(seconds: float = 3, workers: int = 2) -> LoadPlan:
    return LoadPlan(
        base_url=URL,
        model=MODEL,
        rate_per_second=40,
        duration_seconds=seconds,
        arrivals="constant",
        timeout_seconds=10,
        max_tokens=2,
        workers=workers,
    )


def test_every_request_comes_back_and_nothing_is_left(site: Site, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    result = run_load(
        a_plan(),
        work_dir=tmp_path,
        start=remotely(site.pods()),
        on_progress=lambda _: seen.append(site.left()),
    )
    assert result.incomplete == ""
    assert (result.total, result.failures) == (120, 0)
    name = generator_name(f"{MODEL}-staging")
    assert {name, f"{name}-worker", f"{name}-plan"} <= set(seen[0])
    eventually(lambda: site.left() == [])


def test_a_worker_that_crashes_is_named(site: Site, tmp_path: Path) -> None:
    killed: list[str] = []

    def kill(_: object) -> None:
        pods = [p for p in site.namespace.list("pods") if "-worker-" in p["metadata"]["name"]]
        process = site.namespace.cluster.kubelet.processes.process(pods[0])
        if not killed and process is not None:
            killed.append(pods[0]["metadata"]["name"])
            psutil.Process(process.pid).kill()

    result = run_load(
        a_plan(seconds=60), work_dir=tmp_path, start=remotely(site.pods()), on_progress=kill
    )
    assert f"pod {killed[0]} is Failed" in result.incomplete
    assert "exit code 137" in result.incomplete
    assert "of 2 load workers ended by themselves" in result.incomplete
    eventually(lambda: site.left() == [])


def test_a_worker_without_room_is_said_with_the_schedulers_reason(
    site: Site, tmp_path: Path
) -> None:
    amounts = {"cpu": "1000", "memory": "64Mi"}
    pods = site.pods(
        start_seconds=5, worker={"resources": {"requests": amounts, "limits": amounts}}
    )
    with pytest.raises(UnreachableError) as caught:
        run_load(a_plan(), work_dir=tmp_path, start=remotely(pods))
    assert "is Pending (Unschedulable: 0/1 nodes are available: 1 Insufficient cpu" in str(
        caught.value
    )
    eventually(lambda: site.left() == [])


def test_what_a_killed_run_left_is_removed_and_what_runs_is_left_alone(site: Site) -> None:
    plan = a_plan(seconds=300)
    task = LoadTask(plan=plan.to_json(), base_url=URL, workers=2, longest_seconds=310)
    killed = site.pods()
    killed.start(task)
    eventually(lambda: _answers(killed))
    beside = site.pods()
    first = _uids(site)
    with pytest.raises(ConflictError, match="has loaded staging/llama-2-7b for"):
        _attended(killed, lambda: beside.start(task))
    assert _uids(site) == first
    # From here on nobody asks.
    eventually(lambda: _started(beside, task), within_seconds=120)
    assert not _uids(site) & first
    beside.remove()
    killed.remove()
    eventually(lambda: site.left() == [])


def test_what_pods_cannot_do_is_refused_before_any_is_made(site: Site, tmp_path: Path) -> None:
    for url, values, named in (
        ("http://127.0.0.1:8000", VALUES, "in a pod it would mean the pod"),
        (URL, {"image": ""}, "needs an image"),
    ):
        pods = site.pods(**values)
        task = LoadTask(plan="{}", base_url=url, workers=1, longest_seconds=1)
        with pytest.raises(UsageError, match=named):
            pods.start(task)
    assert site.left() == []


def test_the_role_for_it_allows_this_and_no_more(
    site: Site, helm_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = site.namespace
    off = {"enabled": False, "subjects": []}
    roles = site.folder / "roles.yaml"
    purposes = {"gate": off, "promote": off, "watch": off, "load": off | {"enabled": True}}
    roles.write_text(yaml.safe_dump(purposes | {"seesNodes": False}))
    namespace.install(helm_binary, "roles", "rollout-roles", "--values", str(roles))
    token = namespace.token("vllm-rollout-load")
    control = namespace.cluster.control_plane
    kubeconfig = control.kubeconfig(f"{namespace.name}-load", token=token, namespace=namespace.name)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    pods = site.pods()
    plan = a_plan(seconds=300).to_json()
    pods.start(LoadTask(plan=plan, base_url=URL, workers=2, longest_seconds=310))
    eventually(lambda: _answers(pods))
    assert not pods.observe().failed
    pods.remove()
    eventually(lambda: site.left() == [])
    own = f"/api/v1/namespaces/{namespace.name}"
    for method, path in (
        ("POST", f"{own}/pods"),
        ("GET", f"{own}/secrets"),
        ("GET", f"{own}/configmaps"),
        ("DELETE", f"{own}/configmaps"),
        ("DELETE", f"{own}/services/any"),
    ):
        answer = control.ask(method, path, token=token)
        assert answer.status_code == httpx.codes.FORBIDDEN, (method, path)


def _uids(site: Site) -> set[str]:
    return {job["metadata"]["uid"] for job in site.namespace.list("jobs", "apis/batch/v1")}


def _answers(pods: KubernetesLoadPods) -> bool:
    try:
        return httpx.get(f"{pods.url()}/state", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _started(pods: KubernetesLoadPods, task: LoadTask) -> bool:
    try:
        pods.start(task)
    except ConflictError:
        return False
    return True


def _attended(pods: KubernetesLoadPods, work: Any) -> None:
    """Do the work while the other run goes on asking for its logs."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.5):
            _answers(pods)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
