"""Probes: a handful of real inference requests at once, and one request to `/health`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.observe.client import Inference, InferenceClient

T = TypeVar("T")


def probe(client: InferenceClient, *, count: int, timeout_seconds: float) -> ProbeSample:
    """Send `count` small completions side by side and ask `/health` once.

    An answer from a cache is no probe of the engine, and counts as none.
    """
    with ThreadPoolExecutor(max_workers=count + 1) as pool:
        health = pool.submit(_or_error, lambda: client.health(timeout_seconds=timeout_seconds))
        asked = [
            pool.submit(
                _or_error,
                lambda: client.greet(max_tokens=5, timeout_seconds=timeout_seconds),
            )
            for _ in range(count)
        ]
        answers = [future.result() for future in asked]
        healthy = health.result()
    cached = [a.cached for a in answers if isinstance(a, Inference) and a.ok and a.cached]
    good = [a for a in answers if isinstance(a, Inference) and a.ok and not a.cached]
    total = count - len(cached)
    return ProbeSample(
        total=total,
        failures=total - len(good),
        latencies_seconds=tuple(a.seconds for a in good),
        healthy=not isinstance(healthy, UnreachableError) and healthy.status == 200,
        error=next((_error_text(a) for a in answers if _failed(a)), ""),
        health_cached=not isinstance(healthy, UnreachableError) and bool(healthy.cached),
        cached=len(cached),
        cached_by=next(iter(cached), ""),
        answers=tuple((a.answer.text, a.answer.completion_tokens) for a in good if a.answer),
    )


def _or_error(ask: Callable[[], T]) -> T | UnreachableError:
    try:
        return ask()
    except UnreachableError as error:
        return error


def _failed(answer: Inference | UnreachableError) -> bool:
    return isinstance(answer, UnreachableError) or not answer.ok


def _error_text(answer: Inference | UnreachableError) -> str:
    if isinstance(answer, UnreachableError):
        return str(answer)
    return f"HTTP {answer.status} {answer.outcome}: {answer.error}"
