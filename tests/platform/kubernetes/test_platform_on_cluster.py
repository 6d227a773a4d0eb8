"""The platform on a real API server under both Helms: what is applied is what runs."""

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster.behaviour import HEALTHY, crash_loop, slow_start
from cluster.fixtures import Namespace, eventually
from cluster.required import each_helm

from vllm_rollout.model.deployment import (
    Deployment,
    RevisionStatus,
    Target,
    images_of,
    newest_served,
)
from vllm_rollout.model.errors import DeployError, UnreachableError, UsageError
from vllm_rollout.platform.base import ForeignChangeError, NotReadyError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.resources import CHARTS
from vllm_rollout.rollout.preconditions import other_images

MODEL = "llama-2-7b"
LONG, SHORT = timedelta(seconds=60), timedelta(seconds=3)


@pytest.fixture
def platform(namespace: Namespace, helm_binary: str) -> KubernetesPlatform:
    return namespace.platform(
        helm_binary, service_url="http://{model}-{environment}.{namespace}:8000"
    )


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


@pytest.fixture
def apply(platform: KubernetesPlatform, production: Deployment) -> Callable[..., Any]:
    def apply(values: dict[str, Any], replicas: int = 2, *, within: timedelta = LONG) -> Any:
        build = platform.build(production, values)
        target = Target(build=build, values=values, replicas=replicas, capacity=2)
        return platform.apply(production, target, description="a test", timeout=within)

    return apply


def made_of(version: str) -> dict[str, Any]:
    return {"model": {"name": MODEL, "revision": version}}


@each_helm
def test_a_release_is_ramped_described_and_rolled_back(
    platform: KubernetesPlatform, production: Deployment, apply: Callable[..., Any]
) -> None:
    first = apply(made_of("one"))
    assert (first.status, first.replicas) == (RevisionStatus.DEPLOYED, 2)
    assert [replica.ready for replica in platform.replicas(production)] == [True, True]

    assert platform.running_differences(production) == []

    half = apply(made_of("two"), replicas=1)
    assert platform.running_differences(production) == []
    builds = sorted(replica.build for replica in platform.replicas(production))
    assert builds == sorted([first.build.digest, half.build.digest])

    whole = apply(made_of("two"))
    assert {replica.build for replica in platform.replicas(production)} == {whole.build.digest}
    described = [entry.description for entry in platform.history(production)]
    assert described[:3] == ["a test", "a test, move 1 of 2", "a test"]
    assert described[-1] == "a test"

    back = platform.rollback(production, first.number, description="it broke", timeout=LONG)
    assert back.build == first.build
    assert platform.running_differences(production) == []
    assert {replica.build for replica in platform.replicas(production)} == {first.build.digest}


@each_helm
def test_the_command_of_the_record_returns_to_the_revision_by_helm_alone(
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
    helm_binary: str,
) -> None:
    def type_it(revision: int | None) -> None:
        helm, *words = shlex.split(platform.undo_command(production, revision))
        assert helm == "helm"
        subprocess.run([helm_binary, *words], check=True, capture_output=True)

    first = apply(made_of("one"))
    apply(made_of("two"))
    type_it(first.number)
    assert {r.build for r in platform.replicas(production) if r.ready} == {first.build.digest}
    type_it(None)
    assert platform.history(production) == []


@pytest.mark.parametrize("helm_binary", ["helm4"], indirect=True)
def test_a_way_back_takes_fields_from_others_and_a_promotion_refuses(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
    helm_binary: str,
) -> None:
    where = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/{production.release}/scale"

    def scale(replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        namespace.cluster.send("PATCH", f"{where}?fieldManager=kubectl", patch).raise_for_status()

    first = apply(made_of("one"))
    (live,) = namespace.list("deployments", "apis/apps/v1")
    second = apply(made_of("two"))
    assert platform.field_conflicts(production) == []
    scale(3)
    found = f".spec.replicas of Deployment {production.release} is set by kubectl"
    with pytest.raises(ForeignChangeError, match=found):
        apply(made_of("three"))
    assert [r.status for r in platform.history(production)[1:]] == [RevisionStatus.DEPLOYED]

    assert platform.field_conflicts(production, first.number) == [found]
    back = platform.rollback(production, first.number, description="it broke", timeout=LONG)
    assert back.build == first.build
    assert platform.field_conflicts(production) == []

    scale(3)
    words = shlex.split(platform.undo_command(production, second.number))[1:]
    subprocess.run([helm_binary, *words], check=True, capture_output=True)
    assert platform.history(production)[-1].build == second.build

    scale(3)
    overwriting = namespace.platform(helm_binary, overwrite=True)
    target = Target(build=second.build, values=made_of("two"), replicas=2, capacity=2)
    overwriting.apply(production, target, description="a test", timeout=LONG)
    assert platform.field_conflicts(production) == []

    # As `kubectl rollout undo` does. A first step keeps that template, and the next would not.
    undone = {"spec": {"template": live["spec"]["template"]}}
    where = where.removesuffix("/scale")
    namespace.cluster.send("PATCH", f"{where}?fieldManager=undo", undone).raise_for_status()
    eventually(lambda: {r.build for r in platform.replicas(production)} == {first.build.digest})
    serving = newest_served(platform.history(production))
    assert serving is not None
    assert serving.build == first.build
    with pytest.raises(ForeignChangeError, match="set by undo"):
        apply(made_of("three"), replicas=1)
    assert {r.build for r in platform.replicas(production)} == {first.build.digest}


def test_what_is_not_as_rendered_is_named(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
    helm_binary: str,
) -> None:
    apply(made_of("one"))
    # With the values that say which build it is.
    set_tag = ["--reuse-values", "--set", "image.tag=other", "-n", namespace.name]
    command = [helm_binary, "upgrade", production.release, str(CHARTS / "vllm-deployment")]
    subprocess.run([*command, *set_tag], check=True, capture_output=True)
    found = "; ".join(platform.running_differences(production))
    assert ':other", and "vllm/vllm-openai:v0.32.0" in the build' in found

    where = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/{production.release}"
    own = namespace.cluster.api.get(where).json()["spec"]["template"]["spec"]["containers"][0]
    own["env"].append({"name": "VLLM_USE_V1", "value": "0"})
    own["args"].append("--quantization=fp8")
    changed = {"spec": {"template": {"spec": {"containers": [own]}}}}
    namespace.cluster.send("PATCH", where, changed).raise_for_status()
    found = "; ".join(platform.running_differences(production))
    assert "spec.containers[vllm].args[]: 5 was rendered, 6 runs" in found
    assert '"VLLM_USE_V1"] runs' in found


def test_a_tag_that_moved_is_another_image_of_the_same_build(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    values = {**made_of("one"), "image": {"repository": "registry.example.com/vllm", "tag": "v1"}}
    staging = Deployment(MODEL, "staging", namespace.name)
    images: dict[Deployment, tuple[str, ...]] = {}
    for deployment in (staging, production):
        build = platform.build(deployment, values)
        target = Target(build=build, values=values, replicas=1, capacity=1)
        platform.apply(deployment, target, description="a test", timeout=LONG)
        images[deployment] = images_of(platform.replicas(deployment))
        assert len(images[deployment]) == 1
        namespace.behave(replace(HEALTHY, tagged="something newer"))

    (difference,) = other_images(images[staging], platform.replicas(production), build)
    assert images[staging][0] in difference
    assert images[production][0] in difference
    assert other_images(images[production], platform.replicas(production), build) == []


@each_helm
def test_what_does_not_come_up_is_undone_and_says_what_its_pods_said(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
) -> None:
    first = apply(made_of("one"))
    running = {replica.name for replica in platform.replicas(production)}
    broken = crash_loop("torch.OutOfMemoryError: CUDA out of memory\n")
    namespace.behave(lambda pod: HEALTHY if pod["metadata"]["name"] in running else broken)

    with pytest.raises(NotReadyError) as caught:
        apply(made_of("two"), within=SHORT)

    assert f"is back at revision {first.number}" in str(caught.value)
    unready = [s for s in caught.value.symptoms if s.replica and not s.replica.ready]
    assert {symptoms.replica.reason for symptoms in unready} == {"CrashLoopBackOff"}
    assert "CUDA out of memory" in unready[0].log
    history = platform.history(production)
    assert [entry.status for entry in history[1:]] == [
        RevisionStatus.FAILED,
        RevisionStatus.DEPLOYED,
    ]
    assert history[-1].build == first.build
    eventually(lambda: {r.name for r in platform.replicas(production)} == running)


@each_helm
def test_no_limit_takes_the_revision_to_return_to(
    namespace: Namespace,
    production: Deployment,
    helm_binary: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HELM_MAX_HISTORY", "2")
    platform = namespace.platform(
        helm_binary, chart=own_chart(tmp_path), service_url="http://{model}-{environment}"
    )
    for version in ("good", "bad", "worse", "worst"):
        values = made_of(version)
        build = platform.build(production, values)
        target = Target(build=build, values=values, replicas=1, capacity=1)
        platform.apply(production, target, description="", timeout=LONG)
    good = platform.history(production)[0]
    back = platform.rollback(production, good.number, description="back", timeout=LONG)
    assert back.build == good.build
    assert [entry.number for entry in platform.history(production)] == [1, 2, 3, 4, 5]


OWN_CHART = {
    "Chart.yaml": "apiVersion: v2\nname: ours\nversion: 1.0.0\n",
    "values.yaml": "replicaCount: 1\nmodel: {}\n",
    "values.schema.json": '{"additionalProperties": false, "properties": {"model": {}}}',
    "values-production.yaml": "",
    "templates/all.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata: {name: "{{ .Release.Name }}"}
spec:
  replicas: {{ .Values.replicaCount }}
  selector: {matchLabels: {app.kubernetes.io/instance: "{{ .Release.Name }}"}}
  template:
    metadata: {labels: {app.kubernetes.io/instance: "{{ .Release.Name }}"}}
    spec:
      tolerations: [{operator: Exists}]
      volumes:
        - {name: all, projected: {sources: [{serviceAccountToken: {path: key}}]}}
        - {name: about, downwardAPI: {items: [{path: me, fieldRef: {fieldPath: metadata.name}}]}}
        - {name: map, configMap: {name: none, optional: true}}
        - {name: host, hostPath: {path: /models}}
        - {name: empty}
      containers:
        - name: server
          image: "ours:{{ .Values.model.revision }}"
          env:
            - {name: CLUSTER, value: "{{ .Capabilities.KubeVersion.Version }}"}
            {{- if .Capabilities.APIVersions.Has "coordination.k8s.io/v1/LeaseCandidate" }}
            - {name: NEVER, value: ""}
            {{- end }}
            {{- if .Capabilities.APIVersions.Has "apps/v1/Deployment" }}
            - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
            {{- end }}
            - {name: EMPTY, value: ""}
          ports: [{containerPort: 8000}]
          securityContext: {runAsUser: 0, privileged: false}
          resources: {limits: {cpu: 0.5}}
          lifecycle: {postStart: {httpGet: {port: 8000}}}
          volumeMounts: [{name: host, mountPath: /models, readOnly: false}]
---
apiVersion: v1
kind: Service
metadata: {name: "{{ .Release.Name }}"}
spec:
  selector: {app.kubernetes.io/instance: "{{ .Release.Name }}"}
  ports: [{port: 8000}]
""",
}


def own_chart(folder: Path) -> Path:
    """A team's chart: a Deployment and a Service, and a schema that knows nothing of the suite."""
    (folder / "templates").mkdir()
    for name, text in OWN_CHART.items():
        (folder / name).write_text(text)
    return folder


def test_a_chart_of_a_teams_own_is_rolled_out_in_one_step(
    namespace: Namespace, production: Deployment, helm_binary: str, tmp_path: Path
) -> None:
    platform = namespace.platform(
        helm_binary, chart=own_chart(tmp_path), service_url="http://{model}-{environment}"
    )

    def target(version: str, replicas: int) -> Target:
        values = made_of(version)
        build = platform.build(production, values)
        return Target(build=build, values=values, replicas=replicas, capacity=2)

    for version in ("one", "two"):
        revision = platform.apply(production, target(version, 2), description=version, timeout=LONG)
        assert revision.build == target(version, 2).build
        eventually(lambda: [r.ready for r in platform.replicas(production)] == [True, True])
    # The API server's own defaults are no edits, and what the chart asks of it is answered.
    assert platform.running_differences(production) == []
    with pytest.raises(UsageError, match="cannot run two builds side by side"):
        platform.apply(production, target("three", 1), description="", timeout=LONG)
    assert [entry.description for entry in platform.history(production)] == ["one", "two"]


def upgrade(deployment: Deployment, version: str) -> list[str]:
    chart = str(CHARTS / "vllm-deployment")
    values = f"model.name={MODEL},model.revision={version}"
    return ["upgrade", "--install", deployment.release, chart, "--set", values]


def killed_while_it_waits(
    namespace: Namespace, deployment: Deployment, helm_binary: str, words: list[str]
) -> None:
    """A client that is killed while Helm waits for pods that load for too long."""
    wait = "--wait" if "helm3" in helm_binary else "--wait=watcher"
    command = [helm_binary, *words, "-n", namespace.name, wait, "--timeout", "5m"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
        helm = Helm(helm_binary)

        def pending() -> bool:
            history = helm.history(deployment.release, namespace=namespace.name)
            return bool(history) and history[-1].status.startswith("pending")

        eventually(pending)
        client.kill()


HASTY = """#!/bin/sh
# Helm 4 where it looks before it has heard of each object: it does not wait, and complains.
[ "$1" = uninstall ] || exec {helm} "$@"
{helm} uninstall "$2" --namespace {namespace} --cascade foreground || exit
echo "Error: uninstallation completed with 1 error(s): resource Deployment/x still exists" >&2
exit 1
"""


@each_helm
def test_a_release_is_removed_when_its_pods_are_gone_whatever_helm_says(
    namespace: Namespace, production: Deployment, helm_binary: str, tmp_path: Path
) -> None:
    hasty = tmp_path / "helm"
    hasty.write_text(HASTY.format(helm=helm_binary, namespace=namespace.name))
    hasty.chmod(0o755)
    platform = namespace.platform(str(hasty))
    build = platform.build(production, made_of("one"))
    target = Target(build=build, values=made_of("one"), replicas=2, capacity=2)
    deployments = f"/apis/apps/v1/namespaces/{namespace.name}/deployments/{production.release}"

    def finalized_by(*finalizers: str) -> None:
        body = {"metadata": {"finalizers": finalizers}}
        namespace.cluster.send("PATCH", deployments, body).raise_for_status()

    platform.apply(production, target, description="a test", timeout=LONG)
    platform.uninstall(production, timeout=LONG)
    assert namespace.list("pods") == []
    assert platform.history(production) == []

    platform.apply(production, target, description="a test", timeout=LONG)
    finalized_by("example.test/never")
    with pytest.raises(DeployError, match="still exists"):
        platform.uninstall(production, timeout=SHORT)
    assert platform.history(production) == []
    finalized_by()


@each_helm
def test_what_a_killed_client_left_pending_is_recovered(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
    helm_binary: str,
) -> None:
    namespace.behave(slow_start())
    killed_while_it_waits(namespace, production, helm_binary, upgrade(production, "none"))
    found = platform.recover(production, timeout=LONG)
    assert "was left pending-install since" in found
    assert "so it was uninstalled" in found
    assert platform.history(production) == []

    namespace.behave(HEALTHY)
    first = apply(made_of("one"))
    namespace.behave(lambda pod: slow_start() if "two" in str(pod["spec"]) else HEALTHY)
    killed_while_it_waits(namespace, production, helm_binary, upgrade(production, "two"))
    with pytest.raises(DeployError, match="is in progress"):
        apply(made_of("two"))
    assert "rolled back to revision 1" in platform.recover(production, timeout=LONG)
    assert platform.recover(production, timeout=LONG) == ""
    assert platform.history(production)[-1].build == first.build

    namespace.behave(HEALTHY)
    second = apply(made_of("two"))
    namespace.behave(lambda pod: slow_start() if "--revision=one" in str(pod) else HEALTHY)
    back = ["rollback", production.release, str(first.number)]
    killed_while_it_waits(namespace, production, helm_binary, back)
    found = platform.recover(production, timeout=LONG)
    assert "was left pending-rollback since" in found
    assert f"rolled back to revision {second.number}" in found
    assert platform.history(production)[-1].build == second.build


def test_a_cluster_that_goes_away_is_never_an_empty_release(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
) -> None:
    apply(made_of("one"))
    control_plane = namespace.cluster.control_plane
    control_plane.stop_api_server()
    try:
        recover = partial(platform.recover, timeout=LONG)
        for ask in (platform.history, platform.replicas, recover, platform.logs):
            with pytest.raises(UnreachableError):
                ask(production)
    finally:
        control_plane.start_api_server()
    assert len(platform.history(production)) == 1
    assert len(platform.replicas(production)) == 2
