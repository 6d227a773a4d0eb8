"""Waiting for pods on a real API server: a change ends when all that it asked for are Ready."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster.behaviour import HEALTHY, crash_loop, unready
from cluster.fixtures import Namespace, eventually
from cluster.required import each_helm, required_tool

from vllm_rollout.model.deployment import Deployment, RevisionStatus, Target
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.platform.progress import progress_shown

MODEL = "llama-2-7b"
LONG, SHORT = timedelta(seconds=60), timedelta(seconds=4)
NO_ROOM = {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}
CRASH = crash_loop("RuntimeError: CUDA driver version is insufficient\n")


def apply(
    platform: KubernetesPlatform,
    deployment: Deployment,
    version: str,
    replicas: int,
    *,
    capacity: int,
    within: timedelta = LONG,
    more: dict[str, Any] | None = None,
) -> None:
    values = {"model": {"name": MODEL, "revision": version}, **(more or {})}
    build = platform.build(deployment, values)
    target = Target(build=build, values=values, replicas=replicas, capacity=capacity)
    platform.apply(deployment, target, description=version, timeout=within)


@each_helm
def test_no_change_ends_before_its_pods_are_ready(namespace: Namespace, helm_binary: str) -> None:
    platform = namespace.platform(helm_binary)
    development = Deployment(MODEL, "development", namespace.name)
    production = Deployment(MODEL, "production", namespace.name)

    # The only pod is missing, which maxUnavailable allows.
    namespace.behave(CRASH)
    with pytest.raises(NotReadyError, match=r"0 of 1 pod ready.*CrashLoopBackOff"):
        apply(platform, development, "one", 1, capacity=1, within=SHORT, more=NO_ROOM)

    # It loads until that is shown: the change ends when it is ready.
    namespace.behave(unready())

    def loaded(line: str) -> None:
        if "of at most 1m: 0 of 1 pod ready; Deployment" in line:
            namespace.behave(HEALTHY)

    with progress_shown(loaded):
        apply(platform, development, "two", 1, capacity=1, more=NO_ROOM)
    assert [r.ready for r in platform.replicas(development)] == [True]

    # A canary that crashes is no step of a ramp, and takes no pod away.
    apply(platform, production, "one", 2, capacity=2, more=NO_ROOM)
    good = {r.name for r in platform.replicas(production)}
    namespace.behave(lambda pod: HEALTHY if pod["metadata"]["name"] in good else CRASH)
    with pytest.raises(NotReadyError, match=r"2 of 3 pods ready.*CrashLoop.*is back at"):
        apply(platform, production, "two", 1, capacity=2, within=SHORT, more=NO_ROOM)
    assert {r.name for r in platform.replicas(production) if r.ready} == good
    serving = [r for r in platform.history(production) if r.status is RevisionStatus.DEPLOYED]
    assert [r.number for r in serving] == [3]


KINDS = {
    "Chart.yaml": "apiVersion: v2\nname: ours\nversion: 1.0.0\n",
    "values.yaml": "replicaCount: 1\nmodel: {}\n",
    "values-production.yaml": "",
    "templates/all.yaml": """
{{- define "template" -}}
metadata: {labels: {app.kubernetes.io/instance: {{ .Release.Name }}, part: PART}}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: server, image: "ours/server:{{ .Values.model.revision }}"}]
{{- end }}
{{- define "spec" -}}
selector: {matchLabels: {app.kubernetes.io/instance: {{ .Release.Name }}, part: PART}}
template: {{- include "template" . | nindent 2 }}
{{- end }}
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}-recreated}
spec:
  replicas: 2
  strategy: {type: Recreate}
  {{- include "spec" . | replace "PART" "recreated" | nindent 2 }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}-router}
spec:
  replicas: 1
  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}
  {{- include "spec" . | replace "PART" "router" | nindent 2 }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicaCount }}
  serviceName: {{ .Release.Name }}
  updateStrategy: {type: OnDelete}
  {{- include "spec" . | replace "PART" "server" | nindent 2 }}
---
apiVersion: example.test/v1
kind: Group
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: 1
  leaderWorkerTemplate:
    size: 2
    workerTemplate: {{- include "template" . | replace "PART" "group" | nindent 6 }}
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {app.kubernetes.io/instance: {{ .Release.Name }}}
  ports: [{port: 8000}]
""",
}
GROUPS = {
    "metadata": {"name": "groups.example.test"},
    "spec": {
        "group": "example.test",
        "scope": "Namespaced",
        "names": {"kind": "Group", "plural": "groups"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def of_groups(namespace: Namespace, tmp_path: Path) -> KubernetesPlatform:
    """A chart with every kind of owner, and an API that knows them."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    namespace.cluster.send("POST", definitions, GROUPS)
    api = namespace.cluster.api
    eventually(lambda: api.get("/apis/example.test/v1/groups").is_success)
    (tmp_path / "templates").mkdir()
    for name, text in KINDS.items():
        (tmp_path / name).write_text(text)
    return namespace.platform(required_tool("helm3"), chart=tmp_path)


def test_pods_of_every_kind_of_owner_are_waited_for(
    namespace: Namespace, of_groups: KubernetesPlatform
) -> None:
    production = Deployment(MODEL, "production", namespace.name)

    def make_group(version: str) -> None:
        labels = {"app.kubernetes.io/instance": production.release, "part": "group"}
        for number in range(2):
            containers = [{"name": "server", "image": f"ours/server:{version}"}]
            pod = {
                "metadata": {"name": f"group-{version}-{number}", "labels": labels},
                "spec": {"containers": containers, "tolerations": [{"operator": "Exists"}]},
            }
            namespace.create("pods", pod)

    def step(version: str, within: timedelta = LONG) -> None:
        apply(of_groups, production, version, 2, capacity=2, within=within)

    with pytest.raises(NotReadyError, match=f"Group {production.release}: 0 of 2 ready"):
        step("one", SHORT)
    make_group("one")
    step("one")

    # Nobody replaces what is OnDelete, or a group whose operator is away.
    with pytest.raises(NotReadyError) as caught:
        step("two", SHORT)
    left = f"{production.release}: 0 of 2 ready, 2 of the former template are still there"
    assert f"StatefulSet {left}, its updateStrategy OnDelete replaces none" in str(caught.value)
    assert f"Group {left}" in str(caught.value)

    # Both Deployments of the release have to be up, and what people replace counts.
    def crashes(pod: Mapping[str, Any]) -> bool:
        return pod["metadata"]["labels"]["part"] == "router" and "server:three" in str(pod["spec"])

    namespace.behave(lambda pod: CRASH if crashes(pod) else HEALTHY)
    shown: list[str] = []

    def help_it(line: str) -> None:
        pods = namespace.list("pods")
        applied = [pod for pod in pods if "server:three" in str(pod["spec"])]
        for pod in pods if applied else ():
            if pod not in applied:
                path = f"/api/v1/namespaces/{namespace.name}/pods/{pod['metadata']['name']}"
                namespace.cluster.send("DELETE", path)
        if applied and not any(p["metadata"]["name"].startswith("group-three") for p in applied):
            make_group("three")
        if "6 of 7 pods ready" in line:
            namespace.behave(HEALTHY)
        shown.append(line)

    with progress_shown(help_it):
        step("three")
    assert f"Deployment {production.release}-router: 0 of 1 ready" in shown[-1]
    pods = namespace.list("pods")
    assert all("server:three" in str(pod["spec"]) for pod in pods)
    assert len(of_groups.replicas(production)) == 7
