"""What is asked of the API server in a dry run, and what its answers mean."""

import base64
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.scripted_api import Answer, ScriptedApi

from vllm_rollout.model.deployment import Canary, Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.preflight_facts import Admission
from vllm_rollout.platform.kubernetes.admission import admission, marked_by_helm
from vllm_rollout.platform.kubernetes.ramp_preflight import Ramp
from vllm_rollout.platform.kubernetes.surge_plan import Pods

PATHS = {
    ("v1", "Pod"): "/api/v1/namespaces/{}/pods",
    ("v1", "Secret"): "/api/v1/namespaces/{}/secrets",
    ("v1", "Service"): "/api/v1/namespaces/{}/services",
    ("apps/v1", "Deployment"): "/apis/apps/v1/namespaces/{}/deployments",
    ("batch/v1", "Job"): "/apis/batch/v1/namespaces/{}/jobs",
    ("example.com/v1", "Route"): "/apis/example.com/v1/namespaces/{}/routes",
}


class Asked(ScriptedApi):
    """An API server that gives `answer(method, path, kind)`, 200 where that is None."""

    def __init__(self, answer: Callable[[str, str, str], Answer | None]) -> None:
        super().__init__(self._noted)
        self.paths = PATHS
        self.answer, self.sent = answer, list[str]()

    def _noted(self, method: str, path: str, **request: Any) -> Answer:
        assert ("dryRun", "All") in request["query_params"]
        kind = request["header_params"]["Content-Type"].split("/")[1]
        self.sent.append(f"{method} {path} {kind}")
        return self.answer(method, path, kind) or (200, "{}")


def thing(version: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "m"}, **more}


SERVER = thing(
    "apps/v1", "Deployment", spec={"replicas": 2, "template": {"spec": {"containers": []}}}
)


def refused(status: int, message: str) -> Answer:
    return status, json.dumps({"message": message})


def asked_with(answer: Answer, *objects: dict[str, Any], applies: bool = True) -> Admission:
    return admission(Asked(lambda *_: answer), objects or [SERVER], "a", applies=applies)


@pytest.mark.parametrize(
    ("status", "message", "certain"),
    [
        (422, "spec.selector: field is immutable", True),
        (403, 'pods "m" is forbidden: violates PodSecurity "restricted:latest"', True),
        (400, 'admission webhook "x.example" denied the request: no', True),
        (400, 'admission webhook "x.example" does not support dry run', False),
        (500, 'failed calling webhook "x.example": failed to call webhook: refused', False),
        (403, 'User "ci" cannot patch resource "deployments" in API group "apps"', False),
    ],
)
def test_a_refusal_is_certain_unless_it_could_not_be_asked(
    status: int, message: str, certain: bool
) -> None:
    found = asked_with(refused(status, message))
    assert [each.certain for each in found.refusals] == [certain, certain]
    assert str(found.refusals[0]) == f"Deployment m: {message}"
    assert str(found.refusals[1]).startswith("a pod of Deployment m")


@pytest.mark.parametrize("status", [401, 429, 503])
def test_no_answer_is_no_admission(status: int) -> None:
    with pytest.raises(UnreachableError):
        asked_with(refused(status, "later"))


def test_conflicts_and_full_quotas_of_pods_are_for_others_to_judge() -> None:
    assert asked_with(refused(409, "conflict")).refusals == ()
    over = asked_with(refused(403, "exceeded quota: team"))
    assert [each.what for each in over.refusals] == ["Deployment m"]


def test_a_kind_that_nobody_knows_is_named() -> None:
    (found,) = asked_with((200, "{}"), thing("example.com/v1", "Thing")).refusals
    assert "the cluster knows no Thing of example.com/v1" in str(found)


def test_objects_are_sent_as_that_helm_would_send_them() -> None:
    route = thing("example.com/v1", "Route")
    hook = thing("batch/v1", "Job", spec={"template": {"spec": {"containers": []}}})
    hook["metadata"] = {"name": "m", "annotations": {"helm.sh/hook": "pre-upgrade"}}
    tests = {**hook, "metadata": {"name": "t", "annotations": {"helm.sh/hook": "test"}}}

    def answer(method: str, path: str, kind: str) -> Answer | None:
        if kind.startswith("strategic") and "example" in path:
            return 415, "{}"
        return (404, "{}") if method == "PATCH" and kind.startswith("merge") else None

    three = Asked(answer)
    assert admission(three, [SERVER, SERVER, route, hook, tests], "a", applies=False).asked == 4
    assert three.sent == [
        "PATCH /apis/apps/v1/namespaces/a/deployments/m strategic-merge-patch+json",
        "PATCH /apis/example.com/v1/namespaces/a/routes/m strategic-merge-patch+json",
        "PATCH /apis/example.com/v1/namespaces/a/routes/m merge-patch+json",
        "POST /apis/example.com/v1/namespaces/a/routes json",
        "POST /apis/batch/v1/namespaces/a/jobs json",
        "POST /api/v1/namespaces/a/pods json",
    ]
    four = Asked(answer)
    assert admission(four, [SERVER], "a", applies=True).refusals == ()
    assert four.sent[0].endswith("deployments/m apply-patch+yaml")


def test_what_the_chart_makes_first_is_not_missed_by_its_pods() -> None:
    pod = {"containers": [], "serviceAccountName": "m"}
    server = thing("apps/v1", "Deployment", spec={"template": {"spec": pod}})
    answers = iter([refused(403, "error looking up service account a/m"), (201, "{}")])
    api = Asked(lambda method, path, _: next(answers) if path.endswith("pods") else None)
    account = thing("v1", "ServiceAccount")
    api.paths = {**PATHS, ("v1", "ServiceAccount"): "/api/v1/namespaces/{}/serviceaccounts"}
    assert admission(api, [account, server], "a", applies=True).refusals == ()


def test_a_secret_is_in_no_refusal() -> None:
    secret = thing("v1", "Secret", stringData={"a": "correct horse"})
    secret["data"] = {"b": base64.b64encode(b"battery staple").decode()}
    (found,) = asked_with(refused(422, "correct horse, battery staple"), secret).refusals
    assert "horse" not in str(found)
    assert "staple" not in str(found)


def test_a_ramp_makes_a_revision_for_each_move() -> None:
    releases = SimpleNamespace(
        entries=lambda _: [],
        to_return_to=lambda *_: object(),
        pods=lambda *_: Pods(stable=4),
    )

    def ramp(deployment: Deployment) -> Ramp:
        whole = SimpleNamespace(deployment=deployment, capacity=4)
        return Ramp(
            whole=whole,  # type: ignore[arg-type]
            releases=releases,  # type: ignore[arg-type]
            driver=lambda _: "secret",
            routes=None,  # type: ignore[arg-type]
            steps=(1, 2, 3, 4),
            surge=1,
            unavailable=0,
            keeps_state=True,
        )

    assert ramp(Deployment("m", "production", "a")).revisions() >= 2 * 4
    assert ramp(Canary("m", "production", "a")).revisions() == 5


def test_objects_have_helms_mark_and_hooks_have_none() -> None:
    hook = thing("v1", "ConfigMap")
    hook["metadata"] = {"name": "h", "annotations": {"helm.sh/hook": "pre-install"}}
    both = {"kind": "List", "apiVersion": "v1", "items": [{**SERVER}, hook]}
    server, same = marked_by_helm([both], Deployment("m", "staging", "a"))
    assert same == hook
    assert server["metadata"]["annotations"]["meta.helm.sh/release-name"] == "m-staging"
    assert server["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "Helm"}
    assert SERVER["metadata"] == {"name": "m"}
