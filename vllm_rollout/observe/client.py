"""Inference client: sends requests to one model server and reports the answers.

It observes and has no opinion. A server that answers badly gives an `Inference` whose outcome
says how; only a server that cannot be reached at all raises.
"""

import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urljoin

from vllm_rollout.http_client import Failure, HttpAnswer, HttpClient, HttpError, Sink, monotonic
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_plan import PATHS, Api
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.model.observation import ServedModels
from vllm_rollout.model.text import NOTHING, Printable, shown
from vllm_rollout.observe.answers import (
    Answer,
    AnswerError,
    SseAnswer,
    error_of,
    page_in,
    parse_completion,
)
from vllm_rollout.observe.caches import NO_CACHE, KnownAnswers, cached_by
from vllm_rollout.observe.served_models import served_models

_MAX_BYTES = 8 * 1024 * 1024
_OUTCOMES = {
    Failure.LATE: RequestOutcome.TIMEOUT,
    Failure.TOO_LARGE: RequestOutcome.MALFORMED,
    Failure.UNREADABLE: RequestOutcome.MALFORMED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Answer of `/health`: the HTTP status, or 0, the outcome and the error where no answer came.

    A redirect, which is not followed, has the error that names its target, and a web page the one
    that names it. `cached` as in `Inference`.
    """

    status: int
    seconds: float
    outcome: RequestOutcome = RequestOutcome.OK
    error: Printable = NOTHING
    cached: Printable = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One inference request. `answer` is there only when the outcome is OK.

    `seconds` and `ttft_seconds` run from the moment of sending, when the connection stands; None
    when it did not come so far. `cached` is what shows that the answer came from a cache, which
    says nothing of the engine.
    """

    outcome: RequestOutcome
    status: int
    seconds: float
    ttft_seconds: float | None = None
    answer: Answer | None = None
    error: Printable = NOTHING
    cached: Printable = NOTHING

    @property
    def ok(self) -> bool:
        """True if a whole, valid answer came."""
        return self.outcome is RequestOutcome.OK


class InferenceClient:
    """A client of one OpenAI-compatible server. Close it, or use it as a context manager.

    `api_key` is sent as a bearer token and shown nowhere; `key_variable` is where it comes from.
    `health_path` is from the host's root; without it `/health` is asked behind `base_url`. `api` is
    what `ask` and `greet` use. With `fresh`, each request has a connection of its own, so that a
    balancer may send it elsewhere.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        api_key: str | None = None,
        key_variable: str = "VLLM_ROLLOUT_API_KEY",
        health_path: str | None = None,
        api: Api = "completions",
        fresh: bool = False,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.has_key, self.key_variable = bool(api_key), key_variable
        self.health_url = (
            urljoin(self.base_url, health_path) if health_path else f"{self.base_url}/health"
        )
        self.model = model
        self.api = api
        headers = {"Cache-Control": NO_CACHE}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._known = KnownAnswers()
        self._numbers_answers: bool | None = None
        self._asking_for_another = threading.RLock()
        self._http = HttpClient(max_bytes=_MAX_BYTES, headers=headers, fresh=fresh)

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
        started = monotonic()
        try:
            answer = self._get(self.health_url, timeout_seconds)
        except HttpError as error:
            outcome = _OUTCOMES.get(error.failure, RequestOutcome.CONNECTION)
            seconds = monotonic() - started
            return Health(status=0, seconds=seconds, outcome=outcome, error=error.reason)
        page = page_in(answer.body) if answer.status == HTTPStatus.OK else ""
        words = str(_refusal(answer)) if answer.redirects_to else page
        return Health(
            status=answer.status, seconds=answer.seconds, error=shown(words), cached=_cached(answer)
        )

    def served_models(self, *, timeout_seconds: float) -> ServedModels:
        """Ask `/v1/models` for what the server says it serves.

        Raises:
            UnreachableError: no connection could be made.
        """
        try:
            answer = self._get(f"{self.base_url}/v1/models", timeout_seconds)
            if answer.status != HTTPStatus.OK:
                return ServedModels(status=answer.status, error=shown(str(_refusal(answer))))
            return served_models(answer)
        except HttpError as error:
            return ServedModels(status=error.status, error=error.reason)

    def models(self, *, timeout_seconds: float) -> list[str]:
        """The names that `served_models` has; empty when its answer cannot be read.

        Raises:
            UnreachableError: no connection could be made.
        """
        return [each.name for each in self.served_models(timeout_seconds=timeout_seconds).models]

    def has_metrics(self, *, timeout_seconds: float) -> bool | None:
        """Return whether `/metrics` has any of vLLM's; None where no answer came."""
        with suppress(HttpError):
            return b"\nvllm:" in self._get(f"{self.base_url}/metrics", timeout_seconds).body
        return None

    def speaks_tls(self, *, timeout_seconds: float) -> bool:
        """Return True if the server takes TLS, and is asked without."""
        if not self.base_url.startswith("http://"):
            return False
        url = self.health_url.replace("http://", "https://", 1)
        try:
            self._http.get(url, timeout_seconds=timeout_seconds, read=False)
        except HttpError as error:
            return error.failure is Failure.UNTRUSTED
        return True

    def offered(self, *, timeout_seconds: float) -> list[str]:
        """Return the paths of the APIs that answer a small request for the model."""
        tiny = {
            PATHS["completions"]: self._body("completions", "Hello", 1),
            PATHS["chat"]: self._body("chat", "Hello", 1),
            "/v1/embeddings": {"input": "Hello"},
            "/pooling": {"input": "Hello"},
            "/classify": {"input": "Hello"},
            "/score": {"text_1": "Hello", "text_2": "Hello"},
        }
        found = []
        for path, body in tiny.items():
            with suppress(HttpError):
                answer = self._http.request(
                    "POST",
                    self.base_url + path,
                    json={"model": self.model, **body},
                    timeout_seconds=timeout_seconds,
                )
                if answer.status == HTTPStatus.OK and not page_in(answer.body):
                    found.append(path)
        return found

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
        api = api or self.api
        body = self._body(api, prompt, max_tokens, stream=stream) | more
        return self._ask(api, body, timeout_seconds=timeout_seconds)

    def greet(self, *, max_tokens: int, timeout_seconds: float) -> Inference:
        """Ask with a prompt that nobody has sent before; otherwise as `ask`."""
        body = self._body(self.api, f"Hello {secrets.token_hex(4)}", max_tokens)
        return self._ask(self.api, body, timeout_seconds=timeout_seconds)

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

    def _came_before(self, answer: Answer, api: Api, timeout_seconds: float) -> bool:
        """Return True if a cache gave `answer`: it is the same as one before.

        A server that dates no answer may give all of them one id: once, it is asked for another.
        """
        if not self._known.came_before(answer):
            return False
        with self._asking_for_another:
            if answer.created is None and self._numbers_answers is None:
                self._numbers_answers = True
                count = f"Count from {secrets.randbelow(10**9)} to {secrets.randbelow(10**9)}."
                body = self._body(api, count, 1) | {"temperature": 0}
                other = self._ask(api, body, timeout_seconds=timeout_seconds).answer
                self._numbers_answers = other is None or other.id != answer.id
        return answer.created is not None or bool(self._numbers_answers)

    def _get(self, url: str, timeout_seconds: float) -> HttpAnswer:
        """Raises: HttpError; UnreachableError."""
        try:
            return self._http.get(url, timeout_seconds=timeout_seconds)
        except HttpError as error:
            raise self._unreachable(error) if error.unreachable else error from error

    def _ask(self, api: Api, body: dict[str, Any], *, timeout_seconds: float) -> Inference:
        started = monotonic()
        stream = _Stream(body["max_tokens"]) if body["stream"] else None
        status = 0
        seconds: float | None = None
        outcome, reason, answer, cached = RequestOutcome.OK, NOTHING, None, NOTHING
        try:
            got = self._http.request(
                "POST",
                self.base_url + PATHS[api],
                json=body,
                timeout_seconds=timeout_seconds,
                sink=stream.begin if stream else None,
            )
            status, seconds, cached = got.status, got.seconds, _cached(got)
            if status != HTTPStatus.OK:
                raise _refusal(got)
            answer = (
                stream.finish()
                if stream
                else parse_completion(got.body, max_tokens=body["max_tokens"])
            )
        except HttpError as error:
            if error.unreachable:
                raise self._unreachable(error) from error
            # An answer that had begun and broke off is the server's, not the network's to explain.
            broken = RequestOutcome.TRUNCATED if error.status else RequestOutcome.CONNECTION
            outcome = _OUTCOMES.get(error.failure, broken)
            status, reason = error.status, error.reason
        except AnswerError as error:
            outcome, reason = error.outcome, shown(str(error))
            status = error.status or status  # an error inside a 200 stream names its own
        if answer and not cached and self._came_before(answer, api, timeout_seconds):
            cached = shown(f"the answer {answer.id} came before")
        return Inference(
            outcome=outcome,
            status=status,
            seconds=monotonic() - started if seconds is None else seconds,
            ttft_seconds=stream.ttft_seconds if stream else None,
            answer=answer,
            error=reason,
            cached=cached,
        )

    def _unreachable(self, error: HttpError) -> UnreachableError:
        return UnreachableError(
            f"nobody can be asked at {self.base_url}: {error.reason}"
            if error.remedy
            else f"nothing answers at {self.base_url}: {error.reason}",
            address=self.base_url,
            remedy=error.remedy
            or "Check that the deployment runs and that this machine can reach it, or name "
            "another address with --base-url.",
        )


class _Stream:
    """Takes a streamed answer as it comes, and keeps what was wrong with it."""

    def __init__(self, max_tokens: int) -> None:
        self.ttft_seconds: float | None = None
        self._sse = SseAnswer(max_tokens=max_tokens)
        self._wrong: AnswerError | None = None

    def begin(self, status: int, sent: float) -> Sink | None:
        """Take the body of a 200; an error's is read as a whole."""
        self._sent = sent
        return self._feed if status == HTTPStatus.OK else None

    def finish(self) -> Answer:
        """The answer. Raises: AnswerError."""
        if self._wrong is not None:
            raise self._wrong
        return self._sse.finish()

    def _feed(self, data: bytes) -> bool:
        try:
            if self._sse.feed(data) and self.ttft_seconds is None:
                self.ttft_seconds = monotonic() - self._sent
        except AnswerError as error:
            self._wrong = error
            return False
        return True


def _cached(answer: HttpAnswer) -> Printable:
    return shown(cached_by(answer.headers))


def _refusal(answer: HttpAnswer) -> AnswerError:
    """Return the error that an answer other than 200 stands for."""
    if answer.redirects_to:
        words = f"{answer.status}, a redirect to {answer.redirects_to}"
        return AnswerError(RequestOutcome.HTTP_ERROR, words)
    return error_of(answer.status, answer.body)
