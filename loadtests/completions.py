"""One request: a completion asked for, its answer read as it comes and checked, its times taken."""

import math
import time
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

import gevent
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from loadtests.connections import Connections, Response
from vllm_rollout.errors import UsageError
from vllm_rollout.observe.answers import Answer, AnswerError, SseAnswer, error_of, parse_completion
from vllm_rollout.observe.load import RequestOutcome, RequestRecord
from vllm_rollout.observe.load_plan import LoadPlan
from vllm_rollout.observe.workload import NUMBER_DIGITS, Template, Workload

_LONGEST_BODY = 64 * 1024 * 1024
_LONGEST_ERROR = 300


@dataclass(slots=True)
class _Request:
    """What is known so far of a request under way; times in seconds since the schedule's zero."""

    intended: float
    request_class: str
    sent: float = math.nan
    first_token: float = math.nan
    status: int = 0
    received: int = 0


class Completions:
    """Sends the requests of a plan. `zero` is the schedule's zero on `time.monotonic`'s clock.

    `gaps` are the seconds between tokens of judged requests; whoever counts them empties it.
    """

    def __init__(self, plan: LoadPlan, *, api_key: str | None, zero: float) -> None:
        self._plan = plan
        self._zero = zero
        self._secret = api_key
        url = urlsplit(plan.base_url)
        self._connections = Connections(url)
        self._head = _head(url, api_key)
        self._workload = Workload(plan)
        self._prepared = [self._prepare(each) for each in self._workload.templates]
        self.gaps: list[float] = []

    def now(self) -> float:
        """Seconds since the schedule's zero."""
        return time.monotonic() - self._zero

    def send(self, number: int, intended: float) -> tuple[RequestRecord, int]:
        """Send request `number`, which is due at `intended`, and wait for its end.

        Never raises for what the server or the network does, and returns by the plan's timeout,
        counted from `intended`.

        Returns:
            The record, and the number of body bytes received.
        """
        head, template = (
            self._prepared[self._workload.pick(number)]
            if self._prepared
            else self._prepare(self._workload.replayed(number))
        )
        request = _Request(intended, template.request_class)
        left = intended + self._plan.timeout_seconds - self.now()
        if left <= 0:
            return self._failed(request, RequestOutcome.UNSENT, "the generator fell behind"), 0
        deadline = gevent.Timeout(left)
        deadline.start()
        try:
            return self._exchange(request, head, template, number), request.received
        except gevent.Timeout as fired:
            if fired is not deadline:
                raise
            error = f"no whole answer within {self._plan.timeout_seconds:g} s"
            return self._failed(request, RequestOutcome.TIMEOUT, error), request.received
        except AnswerError as error:
            request.status = error.status or request.status
            return self._failed(request, error.outcome, str(error)), request.received
        except EOFError as error:
            return self._failed(request, RequestOutcome.TRUNCATED, str(error)), request.received
        except (OSError, HTTPConnectionClosed) as error:
            text = f"{type(error).__name__}: {error}"
            return self._failed(request, RequestOutcome.CONNECTION, text), request.received
        except HTTPParseError as error:
            text = f"not HTTP: {error}"
            return self._failed(request, RequestOutcome.MALFORMED, text), request.received
        finally:
            deadline.close()

    def _prepare(self, template: Template) -> tuple[bytes, Template]:
        """Everything of the HTTP request that is known before it is sent, and its template."""
        head = self._head.format(
            path=template.path,
            accept="text/event-stream" if template.stream else "application/json",
            length=template.length,
        )
        return head.encode("latin-1") + template.before, template

    def _exchange(
        self, request: _Request, head: bytes, template: Template, number: int
    ) -> RequestRecord:
        request.sent = self.now()
        sock = self._connections.take()
        response: Response | None = None
        try:
            sock.sendall(
                b"%b%0*d%b" % (head, NUMBER_DIGITS, number, template.after)
                if template.numbered
                else head
            )
            response = Response(sock, method="POST")
            request.status = response.status_code
            if request.status != HTTPStatus.OK:
                raise self._http_error(request, response)
            answer, end = (self._streamed if template.stream else self._whole)(request, response)
        finally:
            reusable = response is not None and not response.should_close()
            self._connections.give_back(sock, reusable=reusable)
        return RequestRecord(
            intended=request.intended,
            sent=request.sent,
            first_token=request.first_token,
            end=end,
            outcome=RequestOutcome.OK,
            status=request.status,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            request_class=request.request_class,
        )

    def _streamed(self, request: _Request, response: Response) -> tuple[Answer, float]:
        sse = SseAnswer()
        gaps: list[float] = []
        last = math.nan
        while data := response.read_some():
            came = self.now()
            request.received += len(data)
            for _ in sse.feed(data):
                if math.isnan(last):
                    request.first_token = came
                else:
                    gaps.append(came - last)
                last = came
        end = self.now()
        answer = sse.finish()
        if request.intended >= self._plan.warmup_seconds:
            self.gaps += gaps
        return answer, end

    def _whole(self, request: _Request, response: Response) -> tuple[Answer, float]:
        body = self._body(request, response)
        end = self.now()
        return parse_completion(body), end

    def _http_error(self, request: _Request, response: Response) -> AnswerError:
        try:
            body = self._body(request, response)
        except (EOFError, OSError, HTTPParseError):
            body = b"(the error's body did not come)"
        return error_of(request.status, body)

    def _body(self, request: _Request, response: Response) -> bytes:
        parts = []
        while data := response.read_some():
            request.received += len(data)
            if request.received > _LONGEST_BODY:
                raise AnswerError(RequestOutcome.MALFORMED, f"more than {_LONGEST_BODY} bytes")
            parts.append(data)
        return b"".join(parts)

    def _failed(self, request: _Request, outcome: RequestOutcome, error: str) -> RequestRecord:
        if self._secret:
            error = error.replace(self._secret, "***")
        return RequestRecord(
            intended=request.intended,
            sent=request.sent,
            first_token=request.first_token,
            end=self.now(),
            outcome=outcome,
            status=request.status,
            error=error[:_LONGEST_ERROR],
            request_class=request.request_class,
        )


def _head(url: SplitResult, api_key: str | None) -> str:
    """The head of every HTTP request, with `{path}`, `{accept}` and `{length}` to be filled in.

    Raises:
        UsageError: the API key cannot go in a header.
    """
    headers = {
        "Host": url.netloc,
        "User-Agent": "vllm-rollout",
        "Accept": "{accept}",
        "Content-Type": "application/json",
        "Content-Length": "{length}",
    }
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise UsageError(
                "the API key holds characters that an HTTP header cannot carry",
                remedy="Look for a line break or a non-ASCII character in VLLM_ROLLOUT_API_KEY.",
            )
        headers["Authorization"] = f"Bearer {_literal(api_key)}"
    lines = [f"POST {_literal(url.path.rstrip('/'))}{{path}} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""])


def _literal(text: str) -> str:
    """The text as `str.format` leaves it."""
    return text.replace("{", "{{").replace("}", "}}")
