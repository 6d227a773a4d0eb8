"""One request in flight: its answer is read and checked as it comes, its times are taken."""

from collections.abc import Callable
from http import HTTPStatus

import gevent
from geventhttpclient.response import HTTPParseError

from loadtests.connections import Connection, GeneratorError
from vllm_rollout.load.workload import Template
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.observe.answers import Answer, AnswerError, SseAnswer, error_of, parse_completion
from vllm_rollout.observe.caches import KnownAnswers, cached_by

_MOST_BYTES, _MOST_BYTES_PER_TOKEN = 1 << 22, 1 << 12
_MOST_ERROR_BYTES = 1 << 16
_MOST_GAPS_PER_TOKEN = 8
"""Gateways send tokens in pieces, and who sends more has no answer."""


class Exchange:
    """State of request `number`; times in seconds since the schedule's zero.

    `now` says the time, and for how long what is read now may have waited for this process: 0 where
    that is no stall, across which times are not known. `may_hold` says how many bytes of
    an unfinished answer may be kept. Calls `on_end` with itself and its record, once, when the
    answer has ended or `failed` or `expire` was called. `known` are the answers that other
    requests got.
    """

    __slots__ = (
        "_answering",
        "_body",
        "_known",
        "_last",
        "_max_tokens",
        "_may_hold",
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
        "stalled_seconds",
        "status",
        "unknown_gaps",
    )

    def __init__(
        self,
        number: int,
        template: Template,
        *,
        intended: float,
        deadline: float,
        now: Callable[[], tuple[float, float]],
        may_hold: Callable[[], int],
        on_end: Callable[["Exchange", RequestRecord], None],
        known: KnownAnswers,
    ) -> None:
        self.number = number
        self.intended = intended
        self.deadline = deadline
        self.request_class = template.request_class
        self.sent: float | None = None
        self.first_token: float | None = None
        self.gaps: list[float] = []
        self.unknown_gaps = 0
        self.stalled_seconds = 0.0
        self.status = 0
        self.bytes_received = 0
        self.connection: Connection | None = None
        self.opening: gevent.Greenlet | None = None
        """The greenlet that opens a connection for it."""
        self.over = False
        self._max_tokens = template.max_tokens
        self._now = now
        self._may_hold = may_hold
        self._on_end = on_end
        self._known = known
        self._answering = False
        self._last: float | None = None
        self._stream = SseAnswer(max_tokens=template.max_tokens) if template.stream else None
        self._body = bytearray()

    def received(self, status: int, body: bytes | bytearray, *, ended: bool) -> None:
        """Take the next bytes of the answer.

        Raises:
            AnswerError: it is no success.
        """
        came, stalled = self._now()
        self.status = status
        self.bytes_received += len(body)
        if status != HTTPStatus.OK:
            self._body += body
            if ended or len(self._body) > _MOST_ERROR_BYTES:
                raise error_of(status, bytes(self._body))
            return
        most = _MOST_BYTES + _MOST_BYTES_PER_TOKEN * self._max_tokens
        if self.bytes_received > most:
            raise AnswerError(RequestOutcome.MALFORMED, f"more than {most} bytes")
        if self._stream is None:
            self._body += body
            held = len(self._body)
        else:
            if tokens := len(self._stream.feed(body)):
                self._take_times(tokens, came, stalled)
            held = self._stream.held
        if ended:
            answer = (
                parse_completion(bytes(self._body), max_tokens=self._max_tokens)
                if self._stream is None
                else self._stream.finish()
            )
            self.stalled_seconds = max(self.stalled_seconds, stalled)
            self._end(RequestOutcome.OK, answer=answer, end=came)
        elif held > self._may_hold():
            raise AnswerError(
                RequestOutcome.MALFORMED, f"{held} bytes of an answer that does not end"
            )

    def _take_times(self, tokens: int, came: float, stalled: float) -> None:
        """Take the times of tokens that were read at once; across a stall they are not known."""
        if not self._answering:
            self._answering = True
            tokens -= 1
            if stalled:
                self.stalled_seconds = stalled
            else:
                self.first_token = self._last = came
        if stalled:
            self.unknown_gaps += tokens
            self._last = None
            return
        if tokens and self._last is None:
            self.unknown_gaps += 1
            tokens -= 1
            self._last = came
        if tokens and self._last is not None:
            if len(self.gaps) < _MOST_GAPS_PER_TOKEN * self._max_tokens:
                self.gaps.append(came - self._last)
                self.gaps += [0.0] * (tokens - 1)
            self._last = came

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
        # A stand-in that replays one undated recording gives all of its answers one id.
        again = self._known.came_before(answer) and (
            answer.created is not None or self._known.several
        )
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
            number=self.number,
            intended=self.intended,
            sent=None if outcome is RequestOutcome.UNSENT else self.sent,
            first_token=self.first_token,
            end=self._now()[0] if end is None else end,
            outcome=outcome,
            status=self.status,
            prompt_tokens=answer.prompt_tokens if answer else 0,
            completion_tokens=answer.completion_tokens if answer else 0,
            error=error,
            request_class=self.request_class,
            cached=self._cached_by(answer) if answer else "",
            stalled_seconds=self.stalled_seconds,
        )
        self._on_end(self, record)
