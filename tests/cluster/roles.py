"""Accounts of the chart rollout-roles, and the API server's answers to their requests."""

from collections.abc import Callable
from typing import Any

import httpx
from cluster.fixtures import Namespace, eventually

from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.platform.kubernetes.store import KEY_ANNOTATION, object_name

MODEL = "llama-2-7b"
QA = "people-of-qa"
CHANGES = {"promote", "watch"}
As = Callable[[str], KubernetesPlatform]


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
