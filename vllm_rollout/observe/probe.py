"""Probes: a handful of real inference requests at once, and one request to `/health`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.observe.client import Inference, InferenceClient

T = TypeVar("T")


def probe(client: InferenceClient, *, count: int, timeout_seconds: float) -> ProbeSample:
    """Send `count` small completions side by side and ask `/health` once."""
    with ThreadPoolExecutor(max_workers=count + 1) as pool:
        health = pool.submit(_or_error, lambda: client.health(timeout_seconds=timeout_seconds))
        asked = [
            pool.submit(
                _or_error,
                lambda: client.complete("Hello", max_tokens=5, timeout_seconds=timeout_seconds),
            )
            for _ in range(count)
        ]
        answers = [future.result() for future in asked]
        healthy = health.result()
    good = [a for a in answers if isinstance(a, Inference) and a.ok]
    return ProbeSample(
        total=count,
        failures=count - len(good),
        latencies_seconds=tuple(a.seconds for a in good),
        healthy=not isinstance(healthy, UnreachableError) and healthy.status == 200,
        error=next((_error_text(a) for a in answers if a not in good), ""),
    )


def _or_error(ask: Callable[[], T]) -> T | UnreachableError:
    try:
        return ask()
    except UnreachableError as error:
        return error


def _error_text(answer: Inference | UnreachableError) -> str:
    if isinstance(answer, UnreachableError):
        return str(answer)
    return f"HTTP {answer.status} {answer.outcome}: {answer.error}"
