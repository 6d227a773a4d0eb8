"""Probes: a handful of real inference requests at once, and one request to `/health`.

Which answers are about the key or the address, and show nothing of the build, is decided here.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TypeVar

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.observation import NAME_THE_ADDRESS, ProbeSample
from vllm_rollout.observe.client import Health, Inference, InferenceClient

T = TypeVar("T")

_NO_SUCH_KEY = "No connected db"
"""What LiteLLM without a database answers to a key that is not its own, with status 400."""
_REDIRECTS = range(300, 400)


def not_of_the_build(client: InferenceClient, status: int, error: str) -> tuple[str, str] | None:
    """Return reason and remedy of an answer about the key or the address; None for any other."""
    key = client.key_variable
    if status == HTTPStatus.UNAUTHORIZED or _NO_SUCH_KEY in error:
        ours = f"the key in {key} is not its own" if client.has_key else f"{key} is not set"
        return (
            f"{client.base_url} asks for a bearer key (HTTP {status}), and {ours}",
            f"Put the server's key into the environment variable {key}.",
        )
    if status == HTTPStatus.FORBIDDEN:
        ours = f"the key in {key} may not" if client.has_key else f"{key} is not set"
        return (
            f"{client.base_url} refuses the request (HTTP {error or status}), and {ours}",
            f"Put a key that may use this model into the environment variable {key}.",
        )
    if status in _REDIRECTS:
        return (
            f"{client.base_url} answers {error or status}: is this vLLM's address?",
            NAME_THE_ADDRESS,
        )
    return None


def probe(client: InferenceClient, *, count: int, timeout_seconds: float) -> ProbeSample:
    """Send `count` small completions side by side and ask `/health` once.

    An answer from a cache is no probe of the engine, and counts as none; nor is one about the key
    or the address.
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
    refused = [
        refusal
        for answer in (*answers, healthy)
        if (refusal := _refusal(client, answer)) is not None
    ]
    health_refused = _refusal(client, healthy) is not None
    cached = [a.cached for a in answers if isinstance(a, Inference) and a.ok and a.cached]
    good = [a for a in answers if isinstance(a, Inference) and a.ok and not a.cached]
    unheard = len(refused) - health_refused
    total = count - len(cached) - unheard
    return ProbeSample(
        total=total,
        failures=total - len(good),
        latencies_seconds=tuple(a.seconds for a in good),
        healthy=not isinstance(healthy, UnreachableError) and healthy.status == 200,
        error=next((_error_text(a) for a in answers if _failed(a)), ""),
        health_cached=not isinstance(healthy, UnreachableError) and bool(healthy.cached),
        cached=len(cached),
        cached_by=next(iter(cached), ""),
        refused=unheard,
        refused_because=next(iter(refused), ""),
        health_refused=health_refused,
        answers=tuple((a.answer.text, a.answer.completion_tokens) for a in good if a.answer),
    )


def _or_error(ask: Callable[[], T]) -> T | UnreachableError:
    try:
        return ask()
    except UnreachableError as error:
        return error


def _refusal(client: InferenceClient, answer: Health | Inference | UnreachableError) -> str | None:
    if isinstance(answer, UnreachableError):
        return None
    found = not_of_the_build(client, answer.status, answer.error)
    return found and found[0]


def _failed(answer: Inference | UnreachableError) -> bool:
    return isinstance(answer, UnreachableError) or not answer.ok


def _error_text(answer: Inference | UnreachableError) -> str:
    if isinstance(answer, UnreachableError):
        return str(answer)
    return f"HTTP {answer.status} {answer.outcome}: {answer.error}"
