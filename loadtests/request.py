"""One request in flight: its answer is read and checked as it comes, its times are taken."""

import math
from collections.abc import Callable
from http import HTTPStatus

import gevent
from geventhttpclient.response import HTTPParseError

from loadtests.connections import Connection, GeneratorError
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.observe.answers import Answer, AnswerError, SseAnswer, error_of, parse_completion
from vllm_rollout.observe.caches import KnownAnswers, cached_by

_LONGEST_BODY = 64 * 1024 * 1024


class Exchange:
    """State of request `number`; times in seconds since the schedule's zero (`now`).

    Calls `on_end` with itself and its record, once, when the answer has ended or `failed` or
    `expire` was called. `known` are the answers that other requests got.
    """

    __slots__ = (
        "_body",
        "_known",
        "_last",
        "_now",
        "_on_end",
        "_stream",
        "bytes_received",
        "connection",
        "deadline",
        "first_token",
        "gaps",
        "intended",
        "number",
        "opening",
        "over",
        "request_class",
        "sent",
        "status",
    )

    def __init__(
        self,
        number: int,
        *,
        intended: float,
        deadline: float,
        request_class: str,
        stream: bool,
        now: Callable[[], float],
        on_end: Callable[["Exchange", RequestRecord], None],
        known: KnownAnswers,
    ) -> None:
        self.number = number
        self.intended = intended
        self.deadline = deadline
        self.request_class = request_class
        self.sent = self.first_token = self._last = math.nan
        self.gaps: list[float] = []
        self.status = 0
        self.bytes_received = 0
        self.connection: Connection | None = None
        self.opening: gevent.Greenlet | None = None
        """The greenlet that opens a connection for it."""
        self.over = False
        self._now = now
        self._on_end = on_end
        self._known = known
        self._stream = SseAnswer() if stream else None
        self._body = bytearray()

    def received(self, status: int, body: bytes | bytearray, *, ended: bool) -> None:
        """Take the next bytes of the answer.

        Raises:
            AnswerError: it is no success.
        """
        came = self._now()
        self.status = status
        self.bytes_received += len(body)
        if status != HTTPStatus.OK or self._stream is None:
            self._body += body
            if len(self._body) > _LONGEST_BODY:
                raise AnswerError(RequestOutcome.MALFORMED, f"more than {_LONGEST_BODY} bytes")
            if ended:
                if status != HTTPStatus.OK:
                    raise error_of(status, bytes(self._body))
                answer = parse_completion(bytes(self._body))
                self._end(RequestOutcome.OK, answer=answer, end=came)
            return
        for _ in self._stream.feed(body):
            if self._last == self._last:  # not NaN: there was one before
                self.gaps.append(came - self._last)
            else:
                self.first_token = came
            self._last = came
        if ended:
            self._end(RequestOutcome.OK, answer=self._stream.finish(), end=came)

    def failed(self, error: Exception) -> None:
        """There is no answer, or no more of it."""
        if isinstance(error, AnswerError):
            self.status = error.status or self.status
            self._end(error.outcome, str(error))
        elif self.status not in (0, HTTPStatus.OK):
            error = error_of(self.status, b"(the error's body did not come)")
            self._end(error.outcome, str(error))
        elif isinstance(error, EOFError):
            self._end(RequestOutcome.TRUNCATED, str(error))
        elif isinstance(error, GeneratorError):
            self._end(RequestOutcome.UNSENT, str(error))
        elif isinstance(error, OSError):
            self._end(RequestOutcome.CONNECTION, f"{type(error).__name__}: {error}")
        elif isinstance(error, HTTPParseError):
            self._end(RequestOutcome.MALFORMED, f"not HTTP: {error}")
        else:
            raise error

    def expire(self, outcome: RequestOutcome, error: str) -> None:
        """Give it up, whatever stage it is at."""
        if self.opening is not None:
            self.opening.kill(block=False)
        if self.connection is not None:
            self.connection.close()
        self._end(outcome, error)

    def _cached_by(self, answer: Answer) -> str:
        if self.connection and (by := cached_by(self.connection.headers())):
            return by
        # A stand-in that replays one recording gives all of its answers one id.
        again = self._known.came_before(answer) and self._known.several
        return f"the answer {answer.id[:40]} came before" if again else ""

    def _end(
        self,
        outcome: RequestOutcome,
        error: str = "",
        *,
        answer: Answer | None = None,
        end: float | None = None,
    ) -> None:
        if self.over:
            return
        self.over = True
        record = RequestRecord(
            intended=self.intended,
            sent=math.nan if outcome is RequestOutcome.UNSENT else self.sent,
            first_token=self.first_token,
            end=self._now() if end is None else end,
            outcome=outcome,
            status=self.status,
            prompt_tokens=answer.prompt_tokens if answer else 0,
            completion_tokens=answer.completion_tokens if answer else 0,
            error=error,
            request_class=self.request_class,
            cached=self._cached_by(answer) if answer else "",
        )
        self._on_end(self, record)
