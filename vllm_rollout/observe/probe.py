"""Probes: a handful of real inference requests at once, and one look at `/health`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.observe.client import Inference, InferenceClient

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSample:
    """One observation of a deployment. A server that cannot be reached has failed every probe,
    unless it is known that the way there was at fault.
    """

    total: int
    failures: int
    latencies_seconds: tuple[float, ...]
    """Of the answered probes."""
    healthy: bool
    """Whether `/health` answered 200."""
    error: str = ""
    """The first failure, for people."""
    path_errors: str = ""
    """What ailed the way to the deployment; then nothing is known of the deployment, and no probe
    counts.
    """

    def unless(self, path_errors: UnreachableError | None) -> "ProbeSample":
        """The sample; one of nothing where what failed in it may be the doing of the way there."""
        if path_errors is None or (self.healthy and not self.failures):
            return self
        return replace(
            self, total=0, failures=0, latencies_seconds=(), path_errors=str(path_errors)
        )


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
        error=next((_trouble(a) for a in answers if a not in good), ""),
    )


def _or_error(ask: Callable[[], T]) -> T | UnreachableError:
    try:
        return ask()
    except UnreachableError as error:
        return error


def _trouble(answer: Inference | UnreachableError) -> str:
    if isinstance(answer, UnreachableError):
        return str(answer)
    return f"HTTP {answer.status} {answer.outcome}: {answer.error}"
