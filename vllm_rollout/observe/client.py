"""Inference client: sends requests to one model server over httpx and reports the answers.

It observes and has no opinion. A server that answers badly gives an `Inference` whose outcome
says how; only a server that cannot be reached at all raises.
"""

import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.model.observation import ServedModel, ServedModels
from vllm_rollout.observe.answers import Answer, AnswerError, SseAnswer, error_of, parse_completion
from vllm_rollout.observe.caches import NO_CACHE, KnownAnswers, cached_by

if TYPE_CHECKING:
    import httpx

Api = Literal["completions", "chat"]
PATHS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Answer of `/health`: the HTTP status, or 0 and the error when no answer came in time.

    `cached` as in `Inference`.
    """

    status: int
    seconds: float
    error: str = ""
    cached: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One inference request. `answer` is there only when the outcome is OK.

    `seconds` and `ttft_seconds` run from the moment of sending; None when it did not come so far.
    `cached` is what shows that the answer came from a cache, which says nothing of the engine.
    """

    outcome: RequestOutcome
    status: int
    seconds: float
    ttft_seconds: float | None = None
    answer: Answer | None = None
    error: str = ""
    cached: str = ""

    @property
    def ok(self) -> bool:
        """True if a whole, valid answer came."""
        return self.outcome is RequestOutcome.OK


class InferenceClient:
    """A client of one OpenAI-compatible server. Close it, or use it as a context manager.

    `api_key` is sent as a bearer token and shown nowhere. `api` is what `ask` and `greet` use. With
    `fresh`, each request has a connection of its own, so that a balancer may send it elsewhere.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        api_key: str | None = None,
        api: Api = "completions",
        fresh: bool = False,
        transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        import httpx

        self.base_url = base_url.rstrip("/")
        self.model = model
        self.api = api
        headers = {"Cache-Control": NO_CACHE}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._known = KnownAnswers()
        self._numbers_answers: bool | None = None
        self._asking_for_another = threading.RLock()
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=0 if fresh else 20),
            transport=transport,
            trust_env=False,
        )

    @property
    def path(self) -> str:
        """The path that `ask` asks."""
        return PATHS[self.api]

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
        return Health(
            status=response.status_code,
            seconds=time.monotonic() - started,
            cached=cached_by(response.headers.multi_items()),
        )

    def models(self, *, timeout_seconds: float) -> list[str]:
        """The names that `served_models` has. Raises: as it does."""
        return [each.name for each in self.served_models(timeout_seconds=timeout_seconds).models]

    def served_models(self, *, timeout_seconds: float) -> ServedModels:
        """The models the server says it serves; none when its answer cannot be read.

        Raises:
            UnreachableError: no connection could be made.
        """
        import httpx

        try:
            response = self._http.get("/v1/models", timeout=timeout_seconds)
            entries = response.json()["data"]
            return ServedModels(
                models=tuple(
                    ServedModel(name=str(entry["id"]), root=str(entry.get("root") or ""))
                    for entry in entries
                )
            )
        except _no_connection() as error:
            raise self._unreachable(error) from error
        except (
            *(httpx.RequestError, ValueError, KeyError, TypeError, AttributeError),
            RecursionError,
        ):
            return ServedModels()

    def ask(
        self,
        prompt: str,
        *,
        max_tokens: int,
        timeout_seconds: float,
        stream: bool = False,
        api: Api | None = None,
        **sampling: float,
    ) -> Inference:
        """Ask for up to `max_tokens` tokens in answer to `prompt`, within `timeout_seconds` in all.

        `sampling` are further numbers of the request: `temperature`, `seed`. No two requests are
        equal: each names another user.

        Raises:
            UnreachableError: no connection could be made.
        """
        more: dict[str, Any] = {"user": f"vllm-rollout-{secrets.token_hex(8)}", **sampling}
        if stream:
            more["stream_options"] = {"include_usage": True}
        body = self._body(api or self.api, prompt, max_tokens, stream=stream) | more
        return self._ask(PATHS[api or self.api], body, timeout_seconds=timeout_seconds)

    def greet(self, *, max_tokens: int, timeout_seconds: float) -> Inference:
        """Ask with a prompt that nobody has sent before; otherwise as `ask`."""
        body = self._body(self.api, f"Hello {secrets.token_hex(4)}", max_tokens)
        return self._ask(PATHS[self.api], body, timeout_seconds=timeout_seconds)

    def complete(
        self, prompt: str, *, max_tokens: int, timeout_seconds: float, stream: bool = False
    ) -> Inference:
        """Ask `/v1/completions`; otherwise as `ask`."""
        limits: dict[str, Any] = {"max_tokens": max_tokens, "timeout_seconds": timeout_seconds}
        return self.ask(prompt, **limits, stream=stream, api="completions")

    def chat(
        self, message: str, *, max_tokens: int, timeout_seconds: float, stream: bool = False
    ) -> Inference:
        """Ask `/v1/chat/completions` with one user message; otherwise as `ask`."""
        limits: dict[str, Any] = {"max_tokens": max_tokens, "timeout_seconds": timeout_seconds}
        return self.ask(message, **limits, stream=stream, api="chat")

    def _body(
        self, api: Api, prompt: str, max_tokens: int, *, stream: bool = False
    ) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": prompt}
        if api == "chat":
            asked = {"messages": [{"role": "user", "content": prompt}]}
        return {"model": self.model, **asked, "max_tokens": max_tokens, "stream": stream}

    def _came_before(self, answer: Answer, path: str, timeout_seconds: float) -> bool:
        """Return True if a cache gave `answer`: it is the same as one before.

        A server that dates no answer may give all of them one id: once, it is asked for another.
        """
        if not self._known.came_before(answer):
            return False
        with self._asking_for_another:
            if answer.created is None and self._numbers_answers is None:
                self._numbers_answers = True
                api: Api = "chat" if path == PATHS["chat"] else "completions"
                count = f"Count from {secrets.randbelow(10**9)} to {secrets.randbelow(10**9)}."
                body = self._body(api, count, 1) | {"temperature": 0}
                other = self._ask(path, body, timeout_seconds=timeout_seconds).answer
                self._numbers_answers = other is None or other.id != answer.id
        return answer.created is not None or bool(self._numbers_answers)

    def _ask(self, path: str, body: dict[str, Any], *, timeout_seconds: float) -> Inference:
        import httpx

        started = time.monotonic()
        deadline = started + timeout_seconds
        status, ttft, cached = 0, None, ""
        try:
            with self._http.stream("POST", path, json=body, timeout=timeout_seconds) as response:
                status = response.status_code
                cached = cached_by(response.headers.multi_items())
                streamed = body["stream"] and status == httpx.codes.OK
                sse = SseAnswer(max_tokens=body["max_tokens"]) if streamed else None
                whole = bytearray()
                for chunk in response.iter_bytes():
                    # httpx times each read alone: trickled bytes must not outlive our limit.
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("still answering")
                    if sse is None:
                        whole += chunk
                    elif sse.feed(chunk) and ttft is None:
                        ttft = time.monotonic() - started
            seconds = time.monotonic() - started
            if status != httpx.codes.OK:
                raise error_of(status, bytes(whole))
            answer = (
                parse_completion(bytes(whole), max_tokens=body["max_tokens"])
                if sse is None
                else sse.finish()
            )
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
            if not cached and self._came_before(answer, path, timeout_seconds):
                cached = f"the answer {answer.id} came before"
            return Inference(
                outcome=RequestOutcome.OK,
                status=status,
                seconds=seconds,
                ttft_seconds=ttft,
                answer=answer,
                cached=cached,
            )
        return Inference(
            outcome=outcome,
            status=status,
            seconds=time.monotonic() - started,
            ttft_seconds=ttft,
            error=reason,
            cached=cached,
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
