"""Requests for completions: each sent when due, and ended by its deadline at the latest.

Nothing here waits: gevent's event loop reports what comes, and what does not come in time.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import Any
from urllib.parse import SplitResult, urlsplit

import gevent

from loadtests.connections import Connections
from loadtests.request import Exchange
from vllm_rollout.load.itl_histogram import ItlHistogram
from vllm_rollout.load.workload import NUMBER_DIGITS, Template, Workload
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.observe.caches import NO_CACHE, KnownAnswers

_LONGEST_ERROR = 300
_SHORTEST_TIMER_SECONDS = 0.001

Done = Callable[[int, RequestRecord, int], None]
"""Called with a request's number, its record, and the number of body bytes received."""


class Completions:
    """Sends the requests of a plan. `zero` is the schedule's zero on `time.monotonic`'s clock.

    `done` is called once for each request, when it has ended; it may not block. `gaps` counts the
    times between tokens of judged requests.
    """

    def __init__(self, plan: LoadPlan, *, api_key: str | None, zero: float, done: Done) -> None:
        self.gaps = ItlHistogram()
        self._plan = plan
        self._zero = zero
        self._secret = api_key
        self._done = done
        url = urlsplit(plan.base_url)
        self._connections = Connections(url)
        self._head = _head(url, api_key)
        self._workload = Workload(plan)
        self._prepared = [self._prepare(each) for each in self._workload.templates]
        # In order of their deadlines, because they are sent in order of their intended times.
        self._under_way: dict[int, Exchange] = {}
        self._known = KnownAnswers()
        self._timer: Any = None

    @property
    def under_way(self) -> int:
        """Number of requests that were sent and have not ended."""
        return len(self._under_way)

    def now(self) -> float:
        """Seconds since the schedule's zero."""
        return time.monotonic() - self._zero

    def send(self, number: int, intended: float) -> None:
        """Send request `number`, which is due at `intended`, no earlier than those sent before.

        It ends whatever the server or the network does, by the plan's timeout counted from
        `intended`.
        """
        head, template = (
            self._prepared[self._workload.pick(number)]
            if self._prepared
            else self._prepare(self._workload.replayed(number))
        )
        exchange = Exchange(
            number,
            intended=intended,
            deadline=intended + self._plan.timeout_seconds,
            request_class=template.request_class,
            stream=template.stream,
            now=self.now,
            on_end=self._ended,
            known=self._known,
        )
        now = self.now()
        if exchange.deadline <= now:
            exchange.expire(RequestOutcome.UNSENT, "the generator fell behind")
            return
        exchange.sent = now
        self._under_way[number] = exchange
        if self._timer is None:
            self._arm(exchange.deadline)
        request = (
            b"%b%0*d%b" % (head, NUMBER_DIGITS, number, template.after)
            if template.numbered
            else head
        )
        exchange.connection = self._connections.take()
        if exchange.connection is None:
            exchange.opening = gevent.spawn(self._open, exchange, request)
        else:
            exchange.connection.send(request, exchange)

    def _prepare(self, template: Template) -> tuple[bytes, Template]:
        """Everything of the HTTP request that is known before it is sent, and its template."""
        head = self._head.format(
            path=template.path,
            accept="text/event-stream" if template.stream else "application/json",
            length=template.length,
        )
        return head.encode("latin-1") + template.before, template

    def _open(self, exchange: Exchange, request: bytes) -> None:
        try:
            connection = self._connections.open()
        except OSError as error:
            exchange.failed(error)
            return
        exchange.opening, exchange.connection = None, connection
        connection.send(request, exchange)

    def _ended(self, exchange: Exchange, record: RequestRecord) -> None:
        self._under_way.pop(exchange.number, None)
        if record.error:
            record = replace(record, error=self._redacted(record.error))
        elif exchange.intended >= self._plan.warmup_seconds:
            self.gaps.add(exchange.gaps)
        self._done(exchange.number, record, exchange.bytes_received)

    def _redacted(self, error: str) -> str:
        """Return the error as it may be written down: a server may send the key back."""
        return (error.replace(self._secret, "***") if self._secret else error)[:_LONGEST_ERROR]

    def _arm(self, deadline: float) -> None:
        seconds = max(_SHORTEST_TIMER_SECONDS, deadline - self.now())
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._expire, update=True)

    def _expire(self) -> None:
        self._timer.close()
        self._timer = None
        now = self.now()
        # The late ones are taken first: what follows their end may send others.
        late = list(takewhile(lambda each: each.deadline <= now, self._under_way.values()))
        outcome, what = RequestOutcome.TIMEOUT, "no whole answer"
        if not self._connections.resolved:
            outcome, what = RequestOutcome.UNSENT, "no address of the server's name"
        for exchange in late:
            exchange.expire(outcome, f"{what} within {self._plan.timeout_seconds:g} s")
        first = next(iter(self._under_way.values()), None)
        if first is not None and self._timer is None:
            self._arm(first.deadline)


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
        "Cache-Control": NO_CACHE,
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
