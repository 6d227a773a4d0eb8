"""Requests that the chart rollout-roles allows, and refuses, each purpose: on a real API server."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cluster.fixtures import Namespace, eventually
from cluster.gateway import GROUP, running_gateway
from cluster.roles import CHANGES, MODEL, QA, As, ask, document, enforced, refused_by

from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.kubernetes.store import KEY_ANNOTATION, object_name
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.sign_offs import SignOff, SignOffs

SIGNED = f"sha256:{'5' * 64}"
NOBODY: set[str] = set()
READS = {"gate", *CHANGES, "qa"}
LONG = timedelta(seconds=60)


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


def released(kind: str, name: str, **more: Any) -> dict[str, Any]:
    """An object of the release in production, as Helm makes it."""
    about = {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": f"{MODEL}-production"},
    }
    return {"kind": kind, "metadata": about, **more}


def server(**changes: Any) -> dict[str, Any]:
    """The release's Deployment, with changes of its pods."""
    labels = {"matchLabels": {"a": "b"}}
    pod = {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v1"}], **changes}
    spec = {"selector": labels, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}
    return {**released("Deployment", f"{MODEL}-production", spec=spec), "apiVersion": "apps/v1"}


def staged(image: str) -> dict[str, Any]:
    """A Deployment of the release in staging, where QA signs."""
    made = server(containers=[{"name": "vllm", "image": image}])
    release = f"{MODEL}-staging"
    made["metadata"] |= {"name": release, "annotations": {"meta.helm.sh/release-name": release}}
    return made


@pytest.mark.usefixtures("acting_as")
def test_each_purpose_may_do_its_own_and_no_more(namespace: Namespace) -> None:
    foreign = server()
    foreign["metadata"] |= {"name": "others", "annotations": {"meta.helm.sh/release-name": "watch"}}
    namespace.create("deployments", foreign, "apis/apps/v1")
    release = f"{MODEL}-production"
    stored = f"sh.helm.release.v1.{release}.v1"
    namespace.create("secrets", {"metadata": {"name": stored}, "type": "helm.sh/release.v1"})
    for made in (
        document("evidence/m/a", "{}"),
        document("decided/m", noted(7)),
        document("signed-images", json.dumps([SIGNED])),
        {"metadata": {"name": "others"}},
    ):
        namespace.create("configmaps", made)
    note, evidence, images = map(object_name, ("decided/m", "evidence/m/a", "signed-images"))
    other = {"metadata": {"name": "other"}}
    other_lease = {**other, "spec": {}}
    token_of_qa = {"kubernetes.io/service-account.name": QA}
    decided = decision("sign-off")
    renamed = document("evidence/m/a", "{}")
    renamed["metadata"]["annotations"] = {KEY_ANNOTATION: "capacity/m"}
    taken = document("evidence/m/d", "{}")
    taken["metadata"]["name"] = "others"
    enforced(namespace)
    apps, dry = "apps/v1:deployments", "?dryRun=All"
    signed, other_image = staged(f"vllm/vllm-openai@{SIGNED}"), staged("vllm/vllm-openai:v1")
    eventually(lambda: ask(namespace, "watch", "POST", apps + dry, signed).is_success)
    eventually(lambda: not ask(namespace, "watch", "POST", apps + dry, other_image).is_success)
    rows: list[tuple[set[str], str, str, Any]] = [
        (READS, "GET", "secrets", None),
        (READS, "GET", "configmaps", None),
        ({"promote", "watch", "gate"}, "GET", "/api/v1/nodes", None),
        (NOBODY, "GET", "/api/v1/namespaces/kube-system/secrets", None),
        # The objects of a release, by its pods, accounts and images alone.
        (CHANGES, "POST", apps, server()),
        (CHANGES, "POST", apps, server(serviceAccountName=release)),
        (NOBODY, "POST", apps, server(serviceAccountName="vllm-rollout-promote")),
        (NOBODY, "POST", apps, server(serviceAccountName=QA)),
        (NOBODY, "POST", apps, server(containers=[{"name": "a", "image": "evil/vllm"}])),
        (NOBODY, "POST", apps, server(volumes=[{"name": "a", "image": {"reference": "evil/a"}}])),
        (NOBODY, "POST", apps, {**server(), "metadata": {"name": release}}),
        (NOBODY, "PATCH", f"{apps}/others", {"spec": {"replicas": 0}}),
        (NOBODY, "PATCH", f"{apps}/others", {"metadata": server()["metadata"]}),
        (NOBODY, "DELETE", f"{apps}/others", None),
        (CHANGES, "POST", "serviceaccounts", released("ServiceAccount", release)),
        (NOBODY, "POST", "serviceaccounts", released("ServiceAccount", "vllm-rollout-other")),
        (CHANGES, "POST", apps, staged(f"vllm/vllm-openai@{SIGNED}")),
        (NOBODY, "POST", apps, staged(f"vllm/vllm-openai@{SIGNED[:-1]}0")),
        (NOBODY, "POST", apps, staged("vllm/vllm-openai:v1")),
        ({"promote"}, "POST", "pods", {**other, "spec": server()["spec"]["template"]["spec"]}),
        (NOBODY, "POST", "rbac.authorization.k8s.io/v1:rolebindings", {}),
        (NOBODY, "DELETE", f"/api/v1/namespaces/{namespace.name}", None),
        # Helm's history, and no other Secret: of an account's it would be the token.
        (CHANGES, "PATCH", f"secrets/{stored}", {"metadata": {"labels": {"a": "b"}}}),
        ({"promote"}, "DELETE", f"secrets/{stored}", None),
        (NOBODY, "POST", "secrets", other),
        (
            NOBODY,
            "POST",
            "secrets",
            {
                "metadata": {"name": stored + "0", "annotations": token_of_qa},
                "type": "kubernetes.io/service-account-token",
            },
        ),
        # What the suite keeps.
        (CHANGES, "POST", "configmaps", document("evidence/m/b", "{}")),
        (NOBODY, "PUT", f"configmaps/{evidence}", document("evidence/m/a", "[]")),
        (NOBODY, "PUT", f"configmaps/{evidence}", renamed),
        (NOBODY, "DELETE", f"configmaps/{evidence}", None),
        (NOBODY, "POST", "configmaps", other),
        (NOBODY, "PUT", "configmaps/others", {"metadata": {"name": "others"}}),
        (NOBODY, "PUT", "configmaps/others", taken),
        ({"qa"}, "PUT", f"configmaps/{images}", document("signed-images", "[]")),
        (CHANGES, "POST", "configmaps", entry(decision("promotion"))),
        (CHANGES, "POST", "configmaps", entry(decision("rolled-back", why='"kind": "sign-off"'))),
        ({"qa"}, "POST", "configmaps", entry(decided)),
        ({"qa"}, "POST", "configmaps", entry(decision("rejection"))),
        *(
            (NOBODY, "POST", "configmaps", entry(disguised))
            for disguised in (
                decided.replace('"kind": ', '"kind":'),
                decided.replace("sign-off", r"sign\u002doff"),
                decided.replace('"kind": ', r'"\u006bind": '),
                decided.replace('"why"', '"kind": "promotion", "why"'),
                decision("promotion").replace('"why"', '"kind": "sign-off", "why"'),
                decision("promotion").replace('"why"', r'"\u006bind": "sign-off", "why"'),
                decision("promotion").replace('"why": ', '"kind" : "sign-off", "why": '),
            )
        ),
        ({*CHANGES, "qa"}, "PUT", f"configmaps/{note}", document("decided/m", noted(8))),
        (NOBODY, "PUT", f"configmaps/{note}", document("decided/m", noted(6))),
        (NOBODY, "POST", "coordination.k8s.io/v1:leases", other_lease),
        (
            CHANGES,
            "POST",
            "coordination.k8s.io/v1:leases",
            {**other_lease, "metadata": document(MODEL, "")["metadata"]},
        ),
    ]
    wrong = []
    for allowed, method, path, body in rows:
        for purpose in sorted(READS):
            answer = ask(namespace, purpose, method, path + dry, body)
            refused = answer.status_code == httpx.codes.FORBIDDEN
            if not (answer.is_success if purpose in allowed else refused):
                wrong.append((purpose, method, path, body, answer.text))
    assert wrong == []
    pod = {**other, "spec": server()["spec"]["template"]["spec"]}
    both = ask(namespace, "qa", "POST", f"configmaps{dry}", other, "system:masters")
    assert both.is_success  # what another Role allows a person of QA stays allowed
    assert "dry runs alone" in ask(namespace, "promote", "POST", "pods", pod).text
    # What another Role allows these accounts stays refused, of parts of objects too.
    for method, path, body in (
        ("POST", f"serviceaccounts/{QA}/token", {"spec": {}}),
        ("PATCH", f"{apps}/others/scale", {"spec": {"replicas": 0}}),
    ):
        answer = ask(namespace, "promote", method, path, body, "system:masters")
        assert "promote and watch change only what belongs" in answer.text


def decision(kind: str, why: str = "") -> str:
    """A decision as the suite writes it."""
    about = {"number": 8, "kind": kind, "model": "m", "why": why, "unfinished": True}
    return json.dumps({"decision": about, "digest": "sha256:0"})


def entry(text: str) -> dict[str, Any]:
    return document("decisions/m/00000008", text)


def noted(number: int) -> str:
    return json.dumps({"number": number, "digest": f"sha256:{'0' * 64}"})


def test_qa_signs_and_a_role_of_an_earlier_chart_is_told_which_does(
    acting_as: As, namespace: Namespace
) -> None:
    enforced(namespace)
    word = SignOff(
        evidence="sha256:e",
        approved=True,
        by="Ada",
        user="ada",
        at=datetime.now(UTC),
        note='of "quality"',
        environment="staging",
        revision=1,
        build="sha256:b",
    )
    about = {"model": MODEL, "environment": "production", "at": word.at, "who": "ci", "why": ""}
    AuditLog(acting_as("promote").store).append(DecisionKind.REFUSAL, **about)
    with pytest.raises(UnreachableError, match="takes the Role vllm-rollout-qa of the chart"):
        SignOffs(acting_as("promote").store, MODEL).add(word, "")
    run: Any = SimpleNamespace(build=Build(image_digest=SIGNED))
    store = acting_as("qa").store
    SignOffs(store, MODEL).add(replace(word, run=run), "")
    noted_images = store.read("signed-images")
    assert noted_images is not None
    assert noted_images.value == [SIGNED]
    AuditLog(acting_as("watch").store).append(DecisionKind.PROMOTION, **about)
    read = AuditLog(acting_as("gate").store).whole(MODEL)
    assert [each.kind for each in read] == ["refusal", "sign-off", "promotion"]
    # A Role of an earlier chart allows ConfigMaps, and knows nothing of the suite's documents.
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace.name}/roles/"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "create"]}]
    role = namespace.cluster.send("PATCH", f"{path}vllm-rollout-watch", {"rules": rules})
    role.raise_for_status()
    named = "of this version of the chart rollout-roles"
    refused_by(named, namespace, "watch", "configmaps", document("evidence/a", "{}"))


def test_promote_and_watch_may_move_traffic_and_gate_may_not(
    acting_as: As, production: Deployment, namespace: Namespace
) -> None:
    half, whole = Weights.of_share(0.5), Weights(stable=1)
    with running_gateway(namespace) as gateway:
        gateway.add_route(production.release)
        path = f"{GROUP}/v1:httproutes/{production.release}"
        (rule,) = gateway.route(production.release)["spec"]["rules"]
        others = {"backendRefs": [{"name": "docs", "port": 80, "weight": 3}]}
        shared = {"spec": {"rules": [rule, others]}}
        assert ask(namespace, "admin", "PATCH", path, shared, "system:masters").is_success
        for purpose in ("promote", "watch"):
            platform = acting_as(purpose)
            platform.set_weights(production, half, expect=whole, timeout=LONG)
            platform.set_weights(production, whole, expect=half, timeout=LONG)
        assert acting_as("gate").weights(production) == whole
        (stable,), canary = rule["backendRefs"], {"name": production.canary.release, "port": 8000}
        for allowed, *rules in (
            (True, {**rule, "backendRefs": [stable, canary]}, others),
            (False, {**rule, "backendRefs": [canary]}, others),
            (False, {**rule, "backendRefs": [{**stable, "name": f"{MODEL}-staging"}]}, others),
            (False, {**rule, "backendRefs": [{**stable, "port": 9}]}, others),
            (False, {**rule, "backendRefs": [stable, {**canary, "port": 9}]}, others),
            (False, {**rule, "backendRefs": [stable, {**canary, "namespace": "a"}]}, others),
            (False, rule, {"backendRefs": [*others["backendRefs"], canary]}),
            (False, rule, {"backendRefs": [{"name": "docs", "port": 80, "weight": 0}]}),
            (False, rule),
        ):
            body = {"spec": {"rules": rules}}
            answer = ask(namespace, "watch", "PATCH", f"{path}?dryRun=All", body)
            assert answer.is_success == allowed, (rules, answer.text)
        with pytest.raises(UnreachableError, match="httproutes"):
            acting_as("gate").set_weights(production, half, expect=whole, timeout=LONG)
