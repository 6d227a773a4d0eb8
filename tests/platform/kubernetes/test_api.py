"""What the API server's answers mean to the suite."""

import json
from types import SimpleNamespace

import pytest
import urllib3
from kubernetes.client.exceptions import ApiException

from vllm_rollout.model.errors import (
    AccessError,
    DeployError,
    RolloutError,
    UnreachableError,
    UsageError,
)
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.kubernetes.api import KubernetesApi, NotFoundError, connect
from vllm_rollout.platform.kubernetes.retry import throttling_retry
from vllm_rollout.platform.kubernetes.store import object_name

API = KubernetesApi(SimpleNamespace(configuration=SimpleNamespace(host="https://cluster")))
FORBIDDEN = 'pods is forbidden: User "ci" cannot list resource "pods" in the namespace "system"'


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, DeployError),
        (401, AccessError),
        (403, AccessError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, DeployError),
        (429, UnreachableError),
        (500, UnreachableError),
        (503, UnreachableError),
    ],
)
def test_each_status_has_its_error_which_names_what_was_done(
    status: int, kind: type[RolloutError]
) -> None:
    refusal = ApiException(status=status)
    refusal.body = json.dumps({"kind": "Status", "message": FORBIDDEN})

    with pytest.raises(kind) as caught, API.doing("list", "pods in namespace system"):
        raise refusal

    assert type(caught.value) is kind
    assert str(caught.value).startswith("cannot list pods in namespace system")
    assert FORBIDDEN in str(caught.value)


def test_a_webhook_that_is_away_is_named_in_the_remedy() -> None:
    away = 'failed calling webhook "x.example": failed to call webhook: connection refused'
    error = API.refusal(500, json.dumps({"message": away}), "patch", "httproutes a")
    assert "webhook x.example is not" in error.remedy


def test_a_missing_permission_says_which_role_to_ask_for() -> None:
    refusal = ApiException(status=403, reason="Forbidden")

    with pytest.raises(UnreachableError) as caught, API.doing("update", "leases in namespace a"):
        raise refusal

    assert "'update'" in caught.value.remedy
    assert "'leases in namespace a'" in caught.value.remedy


@pytest.mark.parametrize(
    "failure",
    [
        urllib3.exceptions.MaxRetryError(None, "/api", None),  # type: ignore[arg-type]
        urllib3.exceptions.ReadTimeoutError(None, "/api", "timed out"),  # type: ignore[arg-type]
        ConnectionResetError(),
    ],
)
def test_no_answer_is_unreachable_with_the_address(failure: Exception) -> None:
    with pytest.raises(UnreachableError) as caught, API.doing("get", "pods"):
        raise failure

    assert caught.value.address == API.address


def test_a_discovery_that_is_refused_is_not_one_without_apis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = SimpleNamespace(get_code=lambda **_: SimpleNamespace(git_version="v1.37.2"))
    refused = SimpleNamespace(status=403, read=lambda: json.dumps({"message": FORBIDDEN}).encode())
    connection = SimpleNamespace(
        configuration=SimpleNamespace(host="https://cluster"),
        param_serialize=lambda *request, **_: request,
        call_api=lambda *_, **__: refused,
    )
    api = KubernetesApi(connection)
    monkeypatch.setattr(api, "_group", lambda _: version)

    with pytest.raises(UnreachableError, match="pods is forbidden"):
        api.capabilities()


def test_an_unknown_context_is_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))

    with pytest.raises(UsageError, match="elsewhere"):
        connect("elsewhere")


@pytest.mark.parametrize("key", ["evidence/llama-2-7b/ÄÖ 1", "x" * 5000, ""])
def test_any_key_has_a_name_that_kubernetes_accepts(key: str) -> None:
    name = object_name(key)

    assert len(name) <= 63
    assert name.replace("-", "").isalnum()
    assert name == name.lower()
    assert name != object_name(key + "/")


def test_429_and_503_are_asked_again_with_pauses() -> None:
    retry = throttling_retry()
    pauses = []
    for _ in range(3):
        assert retry.is_retry("POST", 503)
        assert retry.is_retry("POST", 429, has_retry_after=True)
        retry = retry.increment("POST", "/api", response=urllib3.HTTPResponse(status=503))
        pauses.append(retry.get_backoff_time())
    assert pauses == [0.5, 1, 2]
    assert not retry.is_retry("POST", 503)
    assert not retry.is_retry("POST", 500)
