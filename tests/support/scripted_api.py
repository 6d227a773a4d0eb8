"""An API server as a test scripts it: its answers to what the client has no method for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from vllm_rollout.platform.kubernetes.api import KubernetesApi

Answer = tuple[int, str]


class ScriptedApi(KubernetesApi):
    """An API server that gives `answer` to a method, a path and what else is sent."""

    def __init__(self, answer: Callable[..., Answer]) -> None:
        super().__init__(SimpleNamespace(configuration=SimpleNamespace(host="https://cluster")))
        self._answer = answer

    def ask(self, method: str, path: str, **request: Any) -> Answer:
        return self._answer(method, path, **request)
