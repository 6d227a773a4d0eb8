"""The times of an answer are those at which it came, or not known."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import gevent
import pytest
from support.completions import EVENTS

from loadtests.completions import Completions
from loadtests.connections import Connections
from loadtests.request import Exchange
from vllm_rollout.load.workload import Workload
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestRecord
from vllm_rollout.observe.caches import KnownAnswers

BODY = b"".join(EVENTS)
PLAN = LoadPlan(base_url="http://h", model="m", rate_per_second=1, duration_seconds=1)


def read(
    *events: bytes, at: list[float], stalled: list[float], known: KnownAnswers | None = None
) -> tuple[RequestRecord, Exchange]:
    """The record of an answer whose n-th event is read at `at`, after a stall of `stalled`.

    `known` are the answers that came before.
    """
    records: list[RequestRecord] = []
    times = iter(zip(at, stalled, strict=True))
    exchange = Exchange(
        0,
        Workload(PLAN).templates[0],
        intended=0.0,
        deadline=30.0,
        now=lambda: next(times),
        may_hold=lambda: 1 << 20,
        on_end=lambda _, record: records.append(record),
        known=known or KnownAnswers(),
    )
    for event in events:
        exchange.received(200, event, ended=event is events[-1])
    return records[0], exchange


def test_times_taken_across_a_stall_are_not_known() -> None:
    at = [float(second) for second in range(1, len(EVENTS) + 1)]
    whole, exchange = read(*EVENTS, at=at, stalled=[0.0] * len(at))
    assert (whole.first_token, whole.end, whole.stalled_seconds) == (1.0, at[-1], 0.0)
    assert (exchange.gaps, exchange.unknown_gaps) == ([1.0, 1.0, 1.0], 0)

    late, exchange = read(*EVENTS, at=at, stalled=[0.5] + [0.0] * (len(at) - 1))
    assert (late.first_token, late.ttft_seconds, late.itl_seconds) == (None, None, None)
    assert (late.end, late.stalled_seconds) == (at[-1], 0.5)
    assert (exchange.gaps, exchange.unknown_gaps) == ([1.0, 1.0], 1)
    assert (late.at_best.ttft_seconds, late.at_best.itl_seconds) == (0.0, 0.0)
    assert late.at_best.latency_seconds == at[-1] - 0.5

    middle, exchange = read(*EVENTS, at=at, stalled=[0.0, 0.5] + [0.0] * (len(at) - 2))
    assert (middle.first_token, middle.stalled_seconds) == (1.0, 0.0)
    assert (exchange.gaps, exchange.unknown_gaps) == ([1.0], 2), "before it and after it"

    at_once, exchange = read(BODY, at=[9.0], stalled=[0.5])
    assert (at_once.first_token, at_once.itl_seconds) == (None, None)
    assert (exchange.gaps, exchange.unknown_gaps) == ([], 3)


@pytest.fixture
def begun_and_sent() -> Iterator[tuple[int, threading.Event, threading.Event]]:
    """A server that answers once when `begin` is set; it sets `sent` when all of it is sent."""
    begin, sent = threading.Event(), threading.Event()

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1 << 16)
            begin.wait(30)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
            sent.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1], begin, sent
        thread.join(30)


def test_a_loop_that_stood_still_while_an_answer_came_knows_it(
    begun_and_sent: tuple[int, threading.Event, threading.Event],
) -> None:
    port, begin, sent = begun_and_sent
    records: list[RequestRecord] = []
    plan = json.loads(PLAN.to_json()) | {"base_url": f"http://127.0.0.1:{port}"}
    completions = Completions(
        LoadPlan.from_json(json.dumps(plan)),
        api_key=None,
        zero=0.0,
        done=lambda record, _: records.append(record),
    )

    def stand_still() -> None:
        begin.set()
        sent.wait(30)
        threading.Event().wait(0.1)

    completions.send(0, completions.now())
    gevent.sleep(0.1)
    stand_still()
    while not records:
        gevent.sleep(0.01)
    completions.close()
    [record] = records
    assert record.ok, record.error
    assert record.first_token is None
    assert record.stalled_seconds >= 0.1
    assert completions.gaps.encoded() == ""
    assert completions.unknown_gaps == 3


def test_one_dated_answer_for_the_whole_load_is_a_caches() -> None:
    known = KnownAnswers()
    first, again = (read(BODY, at=[9.0], stalled=[0.0], known=known)[0] for _ in range(2))
    assert (first.cached, again.cached[-11:]) == ("", "came before")

    undated = re.sub(rb'"created":\d+,', b"", BODY)  # as of a server that numbers nothing
    known = KnownAnswers()
    same = [read(undated, at=[9.0], stalled=[0.0], known=known)[0] for _ in range(2)]
    assert [record.cached for record in same] == ["", ""]


@pytest.fixture
def endless_headers() -> Iterator[int]:
    """A server whose answer has headers, or after a body trailers, without end."""

    def answer() -> None:
        for head in (b"", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"):
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.recv(1 << 16)
                sock.sendall(b"HTTP/1.1 200 OK\r\n" + head)
                for number in range(2000):
                    sock.sendall(b"X-%d: %b\r\n" % (number, b"x" * 4000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


def test_headers_and_trailers_without_end_are_malformed(
    endless_headers: int,
) -> None:
    failed: list[Exception] = []

    class Receiver:
        def received(self, status: int, body: bytes | bytearray, *, ended: bool) -> None:
            assert not ended

        def failed(self, error: Exception) -> None:
            failed.append(error)

    connections = Connections(urlsplit(f"http://127.0.0.1:{endless_headers}"))
    for number in (1, 2):
        connections.open().send(b"GET / HTTP/1.1\r\n\r\n", Receiver())
        while len(failed) < number:
            gevent.sleep(0.01)
    assert [str(error) for error in failed] == ["more than 65536 bytes of headers"] * 2
