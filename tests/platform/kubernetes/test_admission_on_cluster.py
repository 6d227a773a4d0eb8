"""Admission on a real API server: webhooks that are away, objects and pods that are refused."""

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster.fixtures import Namespace, eventually
from cluster.required import required_tool

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.diagnosis import diagnose
from vllm_rollout.judge.preflight_checks import admission_verdict
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import DeployError
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.ports import free_port
from vllm_rollout.resources import CHARTS

MODEL = "llama-2-7b"
LONG = timedelta(seconds=60)
INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .Release.Name }}
  annotations: {revision: {{ .Values.model.revision | quote }}}
spec:
  defaultBackend: {service: {name: {{ .Release.Name }}, port: {number: 8000}}}
"""
SETTINGS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
immutable: true
data: {revision: {{ .Values.model.revision | quote }}}
"""


@pytest.fixture
def platform(namespace: Namespace, tmp_path: Path) -> KubernetesPlatform:
    """Of the suite's chart with an Ingress, which Helm changes after the Deployment."""
    chart = Path(shutil.copytree(CHARTS / "vllm-deployment", tmp_path / "chart"))
    (chart / "templates" / "ingress.yaml").write_text(INGRESS)
    return namespace.platform(required_tool("helm4"), chart=chart, service_url="http://x")


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


def made_of(version: str, **values: Any) -> dict[str, Any]:
    return {"model": {"name": MODEL, "revision": version}, **values}


@pytest.fixture
def apply(platform: KubernetesPlatform, production: Deployment) -> Callable[..., Any]:
    def apply(values: dict[str, Any], replicas: int = 2) -> Any:
        build = platform.build(production, values)
        target = Target(build=build, values=values, replicas=replicas, capacity=2)
        return platform.apply(production, target, description="a test", timeout=LONG)

    return apply


@pytest.fixture
def webhook(namespace: Namespace) -> Iterator[Callable[..., None]]:
    """Puts a webhook that is away before changes of `resource` in the namespace."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    name = f"away-{namespace.name}"

    def put(resource: str, group: str = "", **more: Any) -> None:
        rule = {"apiGroups": [group], "apiVersions": ["*"], "resources": [resource]}
        hook = {
            "name": "policy.tests.example",
            "clientConfig": {"url": f"https://127.0.0.1:{free_port()}/"},
            "rules": [{**rule, "operations": ["CREATE", "UPDATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            **more,
        }
        send = namespace.cluster.send
        send("DELETE", f"{path}/{name}")
        send("POST", path, {"metadata": {"name": name}, "webhooks": [hook]}).raise_for_status()

    yield put
    namespace.cluster.send("DELETE", f"{path}/{name}")


def test_a_change_that_a_webhook_stops_half_way_is_undone(
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
    webhook: Callable[..., None],
) -> None:
    first = apply(made_of("one"))
    gone_since = {"name": "gone-since", "expression": "request.dryRun != true"}
    webhook("ingresses", "networking.k8s.io", matchConditions=[gone_since])
    with pytest.raises(NotReadyError, match=r"policy\.tests\.example") as caught:
        apply(made_of("two"))
    assert "webhook policy.tests.example is not" in caught.value.remedy

    def builds() -> set[str]:
        return {each.build for each in platform.replicas(production)}

    eventually(lambda: builds() == {first.build.digest})
    assert platform.history(production)[0].status == "deployed"


def test_what_the_api_server_refuses_changes_nothing(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
    webhook: Callable[..., None],
    tmp_path: Path,
) -> None:
    def admitted(values: dict[str, Any]) -> Verdict:
        facts = platform.preflight(production, values, capacity=2, steps=(1, 2))
        return admission_verdict(facts.admission())

    templates = tmp_path / "chart" / "templates"
    (templates / "settings.yaml").write_text(SETTINGS)
    apply(made_of("one"))
    verdict = admitted(made_of("two"))
    assert verdict.outcome is Outcome.FAIL
    assert "ConfigMap settings" in verdict.reason
    assert "immutable" in verdict.reason
    with pytest.raises(DeployError, match="is not changed, as the API server refuses ConfigMap"):
        apply(made_of("two"), replicas=1)

    here = f"/api/v1/namespaces/{namespace.name}"

    def causes() -> str:
        return str([each.cause for each in diagnose(platform.symptoms(production), production)])

    big = {"type": "Container", "max": {"memory": "1Gi"}}
    limits = {"metadata": {"name": "small"}, "spec": {"limits": [big]}}
    namespace.create("limitranges", limits)
    verdict = admitted(made_of("one", resources={"limits": {"memory": "2Gi"}}))
    assert verdict.outcome is Outcome.FAIL
    assert "a pod of Deployment" in verdict.reason
    assert "maximum memory usage per Container is 1Gi" in verdict.reason
    pod = platform.replicas(production)[0].name
    namespace.cluster.send("DELETE", f"{here}/pods/{pod}").raise_for_status()
    eventually(lambda: "the API server refuses its pods: maximum memory" in causes())
    namespace.cluster.send("DELETE", f"{here}/limitranges/small").raise_for_status()

    webhook("services")
    verdict = admitted(made_of("one"))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "policy.tests.example" in verdict.reason
    with pytest.raises(DeployError, match=r"policy\.tests\.example"):
        apply(made_of("one"), replicas=1)
    assert len(platform.history(production)) == 1

    (templates / "kind.yaml").write_text(
        "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}"
    )
    missing = admitted(made_of("one"))
    assert missing.outcome is Outcome.FAIL
    assert "Thing" in missing.reason
