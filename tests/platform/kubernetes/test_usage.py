"""CPU and memory of pods by the metrics API, or why they are not known."""

import json
from typing import Any

import pytest
from support.scripted_api import ScriptedApi

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.platform.kubernetes.usage import usage_of

PRODUCTION = Deployment("llama-2-7b", "production")
# As metrics-server 0.7 answers, with a second container.
ANSWER = {
    "kind": "PodMetricsList",
    "apiVersion": "metrics.k8s.io/v1beta1",
    "metadata": {},
    "items": [
        {
            "metadata": {
                "name": "llama-0",
                "namespace": "system",
                "creationTimestamp": "2026-11-29T19:00:10Z",
                "labels": {"app.kubernetes.io/instance": "llama-2-7b-production"},
            },
            "timestamp": "2026-11-29T18:59:58Z",
            "window": "15.044s",
            "containers": [
                {"name": "vllm", "usage": {"cpu": "1250m", "memory": "3145728Ki"}},
                {"name": "proxy", "usage": {"cpu": "250000000n", "memory": "1Mi"}},
            ],
        }
    ],
}


def test_containers_of_a_pod_are_added_up() -> None:
    asked: list[Any] = []

    def answer(method: str, path: str, **request: Any) -> tuple[int, str]:
        asked.append((method, path, request["query_params"]))
        return 200, json.dumps(ANSWER)

    found = usage_of(ScriptedApi(answer), PRODUCTION)
    assert asked == [
        (
            "GET",
            "/apis/metrics.k8s.io/v1beta1/namespaces/system/pods",
            [("labelSelector", "app.kubernetes.io/instance=llama-2-7b-production")],
        )
    ]
    assert not found.unknown
    pod = found.replicas["llama-0"]
    assert (pod.cpu_cores, pod.memory_bytes) == (1.5, 3 * 2**30 + 2**20)
    assert pod.at.isoformat() == "2026-11-29T18:59:58+00:00"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, "404 page not found", "install metrics-server"),
        (403, '{"message": "pods.metrics.k8s.io is forbidden"}', "'list' on 'pods.metrics.k8s.io"),
        (503, "the server is currently unable to handle the request", "overloaded"),
        (200, "<html>", "cannot be read"),
        (200, '{"items": [{"metadata": {"name": "a"}}]}', "cannot be read"),
        (200, '{"items": [{"metadata": {"name": "a"}, "containers": []}]}', "cannot be read"),
        (200, json.dumps(ANSWER).replace("1250m", "lots"), "cannot be read"),
        (200, json.dumps(ANSWER).replace("59:58Z", "59:58"), "a time without its zone"),
        (200, "[]", "cannot be read"),
    ],
)
def test_what_the_metrics_api_does_not_say_is_unknown(status: int, body: str, words: str) -> None:
    found = usage_of(ScriptedApi(lambda *_, **__: (status, body)), PRODUCTION)
    assert words in found.unknown
    assert not found.replicas
