"""Requests for completions: each sent when due, and ended by its deadline at the latest.

Nothing here waits: gevent's event loop reports what comes, and what does not come in time.
"""

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any
from urllib.parse import SplitResult, urlsplit

import gevent
from msgspec.structs import replace

from loadtests.connections import Connections
from loadtests.request import Exchange
from vllm_rollout.load.itl_histogram import ItlHistogram
from vllm_rollout.load.workload import NUMBER_DIGITS, Template, Workload
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord
from vllm_rollout.observe.caches import NO_CACHE, KnownAnswers

_LONGEST_TEXT = 300
_SHORTEST_PART = 6
"""Characters of a key by which it is recognised."""
_SHORTEST_TIMER_SECONDS = 0.001
_MOST_HELD_BYTES, _LEAST_HELD_BYTES = 1 << 28, 1 << 16
"""What all unfinished answers may hold together, and what each may at any time."""
_BEAT_SECONDS = 0.005
_STALL_SECONDS = 0.02


Done = Callable[[RequestRecord, int], None]
"""Called with a request's record and the number of body bytes received."""


class Stalls:
    """Measures for how long the event loop did not poll its sockets.

    It polls every 5 ms at least, and more often where there is something to do. A process that
    gets no CPU, or is busy elsewhere, does not: what it reads then came at some time since.
    """

    def __init__(self) -> None:
        loop = gevent.get_hub().loop
        self._last = self._last_but_one = time.monotonic()
        self._polled = loop.check(ref=False)
        self._polled.start(self._take_time)
        self._beat = loop.timer(_BEAT_SECONDS, _BEAT_SECONDS, ref=False)
        self._beat.start(lambda: None)

    def close(self) -> None:
        """Measure no more."""
        self._beat.close()
        self._polled.close()

    def seconds(self, now: float) -> float:
        """For how long what is read `now` may have waited; 0 where that is no stall."""
        # What the last poll found is being read: it came since the one before.
        waited = now - self._last_but_one
        return waited if waited > _STALL_SECONDS else 0.0

    def _take_time(self) -> None:
        self._last_but_one, self._last = self._last, time.monotonic()


class Completions:
    """Sends the requests of a plan. `zero` is the schedule's zero on `time.monotonic`'s clock.

    `done` is called once for each request, when it has ended; it may not block. `gaps` counts the
    times between tokens of judged requests, `unknown_gaps` is how many more are not known.
    """

    def __init__(self, plan: LoadPlan, *, api_key: str | None, zero: float, done: Done) -> None:
        self.gaps = ItlHistogram()
        self.unknown_gaps = 0
        self._stalls = Stalls()
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

    def close(self) -> None:
        """Measure no more; for when every request has ended."""
        self._stalls.close()

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
            template,
            intended=intended,
            deadline=intended + self._plan.timeout_seconds,
            now=self._now_and_stalled,
            may_hold=self._may_hold,
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
        if record.error or record.cached:
            error = presentable(record.error, self._secret)
            cached = presentable(record.cached, self._secret)
            record = replace(record, error=error, cached=cached)
        if record.ok and exchange.intended >= self._plan.warmup_seconds:
            self.gaps.add(exchange.gaps)
            self.unknown_gaps += exchange.unknown_gaps
        self._done(record, exchange.bytes_received)

    def _now_and_stalled(self) -> tuple[float, float]:
        now = time.monotonic()
        return now - self._zero, self._stalls.seconds(now)

    def _may_hold(self) -> int:
        return max(_LEAST_HELD_BYTES, _MOST_HELD_BYTES // max(1, self.under_way))

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


def presentable(text: str, key: str | None) -> str:
    """Return text of the server's as it may be written down.

    A server may send the key back, whole or cut off where its text was cut, or half of a surrogate
    pair, which UTF-8 cannot hold.
    """
    if key and key[:_SHORTEST_PART] in text:
        for length in range(len(key), _SHORTEST_PART - 1, -1):
            text = text.replace(key[:length], "***")
    return text[:_LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")


def _head(url: SplitResult, api_key: str | None) -> str:
    """The head of every HTTP request, with `{path}`, `{accept}` and `{length}` to be filled in.

    Raises:
        UsageError: the API key cannot go in a header.
    """
    headers = {
        "Host": url.netloc,
        "User-Agent": "vllm-rollout",
        "Accept": "{accept}",
        "Accept-Encoding": "identity",
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
