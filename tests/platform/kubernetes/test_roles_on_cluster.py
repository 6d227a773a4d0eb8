"""The Roles of the chart rollout-roles, on a real API server with RBAC: enough, and no more."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from cluster.behaviour import HEALTHY
from cluster.fixtures import Namespace, eventually
from cluster.gateway import GROUP, running_gateway
from cluster.required import each_helm

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.preflight_checks import admission_verdict
from vllm_rollout.model.deployment import Build, Deployment, Target
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.platform.kubernetes.store import KEY_ANNOTATION, object_name
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.model_status import model_status, models_known
from vllm_rollout.rollout.sign_offs import SignOff, SignOffs

MODEL = "llama-2-7b"
QA = "people-of-qa"
SIGNED = f"sha256:{'5' * 64}"
NOBODY: set[str] = set()
CHANGES = {"promote", "watch"}
READS = {"gate", *CHANGES, "qa"}
LONG = timedelta(seconds=60)
As = Callable[[str], KubernetesPlatform]


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


@pytest.fixture
def acting_as(
    namespace: Namespace, helm_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> As:
    """The platform with the rights of one purpose; "admin" has all."""
    namespace.create("serviceaccounts", {"metadata": {"name": QA}})
    images = ["vllm/vllm-openai:", "vllm/vllm-openai@"]
    values = {
        "qa": {"enabled": True, "subjects": [{"kind": "ServiceAccount", "name": QA}]},
        "seesNodes": True,
        "models": [MODEL],
        "admission": {"enabled": True, "images": images, "signed": ["staging"]},
    }
    file = tmp_path / "roles.yaml"
    file.write_text(yaml.safe_dump(values))
    namespace.install(helm_binary, "roles", "rollout-roles", "--values", str(file))

    def acting_as(purpose: str) -> KubernetesPlatform:
        kubeconfig = namespace.kubeconfig
        if purpose != "admin":
            kubeconfig = namespace.cluster.control_plane.kubeconfig(
                f"{namespace.name}-{purpose}",
                token=namespace.token(account_of(purpose)),
                namespace=namespace.name,
            )
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        return namespace.platform(
            helm_binary, service_url="http://{model}-{environment}.{namespace}.svc:8000"
        )

    return acting_as


def account_of(purpose: str) -> str:
    return QA if purpose == "qa" else f"vllm-rollout-{purpose}"


def ask(
    namespace: Namespace, purpose: str, method: str, path: str, body: Any = None, *more_groups: str
) -> httpx.Response:
    """Ask in the name of the purpose's account, with a path from the namespace's own on."""
    account = account_of(purpose)
    groups = ("system:serviceaccounts", "system:authenticated")
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    headers = [
        ("Content-Type", kind),
        ("Impersonate-User", f"system:serviceaccount:{namespace.name}:{account}"),
        *(("Impersonate-Group", group) for group in (*groups, *more_groups)),
    ]
    group, _, rest = path.rpartition(":")
    own = f"/apis/{group}" if group else "/api/v1"
    path = rest if rest.startswith("/") else f"{own}/namespaces/{namespace.name}/{rest}"
    return namespace.cluster.api.request(method, path, json=body, headers=headers)


def enforced(namespace: Namespace) -> None:
    """Wait until the API server goes by the chart's Roles and policies, which it reads later."""
    foreign, broken = {"metadata": {"name": "foreign"}}, document("decisions/x/00000001", "")
    for purpose, resource, body, policy in (
        ("promote", "serviceaccounts", foreign, "objects"),
        *((purpose, "configmaps", broken, "documents") for purpose in (*CHANGES, "qa")),
    ):
        refused_by(f"{namespace.name}-{policy}", namespace, purpose, resource, body)


def refused_by(text: str, namespace: Namespace, purpose: str, resource: str, body: Any) -> None:
    """Wait until the API server refuses to create that, and says so."""
    path = f"{resource}?dryRun=All"
    eventually(lambda: text in ask(namespace, purpose, "POST", path, body).text)


def document(key: str, text: str) -> dict[str, Any]:
    """A ConfigMap as the suite makes it, with that content."""
    labels = {"app.kubernetes.io/managed-by": "vllm-rollout"}
    about = {"name": object_name(key), "labels": labels, "annotations": {KEY_ANNOTATION: key}}
    return {"metadata": about, "data": {"value.json": text}}


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


def apply(platform: KubernetesPlatform, deployment: Deployment, version: str, replicas: int) -> Any:
    values = {"model": {"name": MODEL, "revision": version}}
    build = platform.build(deployment, values)
    target = Target(build=build, values=values, replicas=replicas, capacity=2)
    return platform.apply(deployment, target, description=version, timeout=LONG)


@each_helm
def test_promote_may_do_all_that_a_rollout_takes(
    acting_as: As, production: Deployment, namespace: Namespace
) -> None:
    enforced(namespace)
    platform = acting_as("promote")
    first = apply(platform, production, "one", 2)
    values = {"model": {"name": MODEL, "revision": "two"}}
    ramp = platform.preflight(production, values, capacity=2, steps=(1, 2))
    assert admission_verdict(ramp.admission()).passed
    secrets = ramp.new_objects().counts["count/secrets"]
    apply(platform, production, "two", 1)
    apply(platform, production, "two", 2)
    assert secrets == len(platform.history(production)) - 1 + 2  # of the way back
    platform.rollback(production, first.number, description="back", timeout=LONG)
    version = platform.store.write("capacity/a", {}, expect=None)
    platform.store.write("capacity/a", {}, expect=version)
    assert platform.store.keys("capacity/") == ["capacity/a"]
    platform.store.acquire(MODEL, "us", ttl=LONG)
    platform.store.release(MODEL, "us")
    assert platform.recover(production, timeout=LONG) == ""
    platform.uninstall(production, timeout=LONG)


def test_gate_reads_and_changes_nothing(acting_as: As, production: Deployment) -> None:
    apply(acting_as("admin"), production, "one", 2)
    platform = acting_as("gate")
    assert len(platform.history(production)) == 1
    assert len(platform.replicas(production)) == 2
    assert "==>" in platform.logs(production)
    assert len(platform.symptoms(production)) == 2
    assert platform.running_differences(production) == []
    preflight = platform.preflight(production, {"model": {"name": MODEL}}, capacity=2)
    assert preflight.namespace() == "Active"
    assert list(preflight.quotas()) == []
    assert preflight.room().existing == 2
    barred = admission_verdict(preflight.admission())
    assert barred.outcome is Outcome.INCONCLUSIVE
    assert "cannot" in barred.reason
    values = {"modelCache": {"existingClaim": "cache"}}
    (claim,) = platform.preflight(production, values, capacity=2).references()
    assert "there is none" in claim.problem
    # As `vllm-rollout status` asks: every model that is known, and where each stands.
    acting_as("admin").store.write("rollout/other", None, expect=None)
    platform = acting_as("gate")
    assert models_known(platform) == ["other"]
    policy = load_policy(None, overrides={"namespace": production.namespace})
    status = model_status(platform, policy, MODEL, datetime.now(UTC))
    assert [each.revision for each in status.environments] == [None, None, 1]
    with pytest.raises(UnreachableError, match=r"cannot (create|patch|update) resource"):
        apply(platform, production, "two", 2)
    with pytest.raises(UnreachableError, match="secrets"):
        platform.rollback(production, 1, description="back", timeout=LONG)
    with pytest.raises(UnreachableError) as caught:
        platform.store.write("evidence/a", {}, expect=None)
    assert "verb 'create' on 'configmaps" in caught.value.remedy
    assert len(acting_as("admin").history(production)) == 1


def test_gate_reaches_the_pods_by_a_tunnel(
    namespace: Namespace, acting_as: As, production: Deployment
) -> None:
    namespace.behave(HEALTHY.serving())
    apply(acting_as("admin"), production, "one", 2)
    platform = acting_as("gate")
    try:
        assert httpx.get(f"{platform.base_url(production)}/health").status_code == httpx.codes.OK
    finally:
        platform.close()


@each_helm
def test_watch_rolls_back_and_removes_nothing(acting_as: As, production: Deployment) -> None:
    apply(acting_as("promote"), production, "one", 2)
    apply(acting_as("promote"), production, "two", 1)
    platform = acting_as("watch")
    platform.store.acquire(MODEL, "us", ttl=LONG)
    back = platform.rollback(production, 1, description="back", timeout=LONG)
    assert back.build == platform.history(production)[0].build
    with pytest.raises(UnreachableError, match="secrets"):
        platform.uninstall(production, timeout=timedelta(seconds=20))
    assert acting_as("admin").history(production)


def test_without_a_look_at_nodes_their_room_is_unknown(
    namespace: Namespace, acting_as: As, production: Deployment
) -> None:
    role = f"vllm-rollout-{namespace.name}-sees-nodes"
    path = f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{role}"
    namespace.cluster.send("DELETE", path).raise_for_status()
    preflight = acting_as("gate").preflight(production, {"model": {"name": MODEL}}, capacity=2)
    with pytest.raises(UnreachableError) as caught:
        preflight.room()
    assert "verb 'list' on 'pods in all namespaces'" in caught.value.remedy
    assert "`seesNodes: true`" in caught.value.remedy


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
