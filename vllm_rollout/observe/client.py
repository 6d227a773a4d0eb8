"""Inference client: sends requests to one model server over httpx and reports the answers.

It observes and has no opinion. A server that answers badly gives an `Inference` whose outcome
says how; only a server that cannot be reached at all raises.
"""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.observe.answers import Answer, AnswerError, SseAnswer, error_of, parse_completion

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Answer of `/health`: the HTTP status, or 0 and the error when no answer came in time."""

    status: int
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One inference request. `answer` is there only when the outcome is OK.

    `seconds` and `ttft_seconds` run from the moment of sending; NaN when it did not come so far.
    """

    outcome: RequestOutcome
    status: int
    seconds: float
    ttft_seconds: float = math.nan
    answer: Answer | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """True if a whole, valid answer came."""
        return self.outcome is RequestOutcome.OK


class InferenceClient:
    """A client of one OpenAI-compatible server. Close it, or use it as a context manager.

    `api_key` is sent as a bearer token and shown nowhere.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        api_key: str | None = None,
        transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        import httpx

        self.base_url = base_url.rstrip("/")
        self.model = model
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.base_url, headers=headers, transport=transport, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self, *, timeout_seconds: float) -> Health:
        """Ask `/health`.

        Raises:
            UnreachableError: no connection could be made.
        """
        import httpx

        started = time.monotonic()
        try:
            response = self._http.get("/health", timeout=timeout_seconds)
        except _no_connection() as error:
            raise self._unreachable(error) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            return Health(
                status=0,
                seconds=time.monotonic() - started,
                error=_describe(error, timeout_seconds),
            )
        return Health(status=response.status_code, seconds=time.monotonic() - started)

    def models(self, *, timeout_seconds: float) -> list[str]:
        """The names the server says it serves; empty when its answer cannot be read.

        Raises:
            UnreachableError: no connection could be made.
        """
        import httpx

        try:
            response = self._http.get("/v1/models", timeout=timeout_seconds)
            return [str(entry["id"]) for entry in response.json()["data"]]
        except _no_connection() as error:
            raise self._unreachable(error) from error
        except (httpx.RequestError, ValueError, KeyError, TypeError, RecursionError):
            return []

    def complete(
        self, prompt: str, *, max_tokens: int, timeout_seconds: float, stream: bool = False
    ) -> Inference:
        """Ask `/v1/completions` for up to `max_tokens` tokens, within `timeout_seconds` in all.

        Raises:
            UnreachableError: no connection could be made.
        """
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        return self._ask("/v1/completions", body, timeout_seconds=timeout_seconds)

    def chat(
        self, message: str, *, max_tokens: int, timeout_seconds: float, stream: bool = False
    ) -> Inference:
        """Ask `/v1/chat/completions` with one user message; otherwise as `complete`."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "max_tokens": max_tokens,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        return self._ask("/v1/chat/completions", body, timeout_seconds=timeout_seconds)

    def _ask(self, path: str, body: dict[str, object], *, timeout_seconds: float) -> Inference:
        import httpx

        started = time.monotonic()
        deadline = started + timeout_seconds
        status, ttft = 0, math.nan
        try:
            with self._http.stream("POST", path, json=body, timeout=timeout_seconds) as response:
                status = response.status_code
                sse = SseAnswer() if body["stream"] and status == httpx.codes.OK else None
                whole = bytearray()
                for chunk in response.iter_bytes():
                    # httpx times each read alone: trickled bytes must not outlive our limit.
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("still answering")
                    if sse is None:
                        whole += chunk
                    elif sse.feed(chunk) and math.isnan(ttft):
                        ttft = time.monotonic() - started
            seconds = time.monotonic() - started
            if status != httpx.codes.OK:
                raise error_of(status, bytes(whole))
            answer = parse_completion(bytes(whole)) if sse is None else sse.finish()
        except _no_connection() as error:
            raise self._unreachable(error) from error
        except httpx.TimeoutException as error:
            outcome, reason = RequestOutcome.TIMEOUT, _describe(error, timeout_seconds)
        except (httpx.TransportError, httpx.DecodingError) as error:
            # An answer that had begun and broke off is the server's, not the network's to explain.
            outcome = RequestOutcome.TRUNCATED if status else RequestOutcome.CONNECTION
            reason = _describe(error, timeout_seconds)
        except AnswerError as error:
            outcome, reason = error.outcome, str(error)
        else:
            return Inference(
                outcome=RequestOutcome.OK,
                status=status,
                seconds=seconds,
                ttft_seconds=ttft,
                answer=answer,
            )
        return Inference(
            outcome=outcome,
            status=status,
            seconds=time.monotonic() - started,
            ttft_seconds=ttft,
            error=reason,
        )

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"nothing answers at {self.base_url}: {error}",
            address=self.base_url,
            remedy="Check that the deployment runs and that this machine can reach it, or name "
            "another address with --base-url.",
        )


def _no_connection() -> tuple[type[Exception], ...]:
    """Return the errors that say that no connection could be made."""
    import httpx

    return (httpx.ConnectError, httpx.ConnectTimeout)


def _describe(error: "httpx.RequestError", timeout_seconds: float) -> str:
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return f"no complete answer within {timeout_seconds:g} s"
    return f"{type(error).__name__}: {error}"
