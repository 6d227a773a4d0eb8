"""Whatever a server, the network or TLS does: its name is said, nothing hangs, nothing is lost."""

import errno
import gzip
import itertools
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
import trustme

from vllm_rollout.load.run_load import run_load
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult
from vllm_rollout.ports import free_port
from vllm_rollout.simulator.running import RunningSimulator

NOAUTH = Path(__file__).parents[1] / "data" / "vllm-0.32.0" / "noauth"
RECORDED = (NOAUTH / "completion_stream_usage.body").read_bytes()
# Undated: a dated answer that comes a second time is a cache's.
STREAM = re.sub(rb'"created":\d+,', b"", RECORDED)
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n"
WHOLE = SSE + LENGTH % len(STREAM) + STREAM

Treat = Callable[[socket.socket], None]


def http_1_0(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + STREAM)


def megabyte_tokens(sock: socket.socket) -> None:
    stream = STREAM.replace(b'"text":"J"', b'"text":"%b"' % (b"J" * 1_000_000))
    sock.sendall(SSE + LENGTH % len(stream) + stream)


def interim_first(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE)


def byte_by_byte(sock: socket.socket) -> None:
    for byte in WHOLE[:40]:
        sock.sendall(bytes([byte]))
        time.sleep(0.002)
    sock.sendall(WHOLE[40:])


def dripping_headers(sock: socket.socket) -> None:
    sock.sendall(SSE)
    while True:
        sock.sendall(b"X-Again: and again\r\n")
        time.sleep(0.05)


def dripping_tokens(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        sock.sendall(STREAM.partition(b"\n\n")[0] + b"\n\n")
        time.sleep(0.05)


def garbage(sock: socket.socket) -> None:
    sock.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")


def two_answers(sock: socket.socket) -> None:
    sock.sendall(WHOLE + WHOLE)


def broken_chunks(sock: socket.socket) -> None:
    sock.sendall(SSE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")


def half_a_head(sock: socket.socket) -> None:
    sock.sendall(SSE)


def half_a_body(sock: socket.socket) -> None:
    sock.sendall(WHOLE[:-20])


def half_an_error(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\n" + LENGTH % 100 + b"<html>")


def half_a_pair(sock: socket.socket) -> None:
    error = rb'{"error": {"message": "cut in the middle of \ud83d"}}'
    sock.sendall(b"HTTP/1.1 500 Error\r\n" + LENGTH % len(error) + error)


def a_code_beyond_numbers(sock: socket.socket) -> None:
    error = b'data: {"error": {"code": 1' + b"0" * 400 + b"}}\n\n"
    sock.sendall(SSE + LENGTH % len(error) + error)


def compressed(sock: socket.socket) -> None:
    body = gzip.compress(STREAM)
    sock.sendall(SSE + b"Content-Encoding: gzip\r\n" + LENGTH % len(body) + body)


def endless_event(sock: socket.socket) -> None:
    endless(sock, b"200 OK", b"data: {", b"x" * (1 << 16))


def endless_events(sock: socket.socket) -> None:
    endless(sock, b"200 OK", b"", 100 * (STREAM.partition(b"\n\n")[0] + b"\n\n"))


def endless_error(sock: socket.socket) -> None:
    endless(sock, b"500 Error", b"no end", b"x" * (1 << 16))


def endless(sock: socket.socket, status: bytes, first: bytes, more: bytes) -> None:
    sock.sendall(b"HTTP/1.0 %b\r\n\r\n%b" % (status, first))
    while True:
        sock.sendall(more)


def no_content(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


def nothing(sock: socket.socket) -> None:
    """Close without a word."""


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


WAYS: dict[Treat, str] = {
    http_1_0: "ok",
    megabyte_tokens: "ok",
    interim_first: "ok",
    byte_by_byte: "ok",
    dripping_headers: "timeout",
    dripping_tokens: "timeout",
    garbage: "malformed",
    two_answers: "malformed",
    broken_chunks: "malformed",
    half_a_head: "truncated",
    half_a_body: "truncated",
    half_an_error: "http_error 502",
    half_a_pair: "http_error 500",
    a_code_beyond_numbers: "http_error 200",
    compressed: "malformed",
    endless_event: "malformed",
    endless_events: "malformed",
    endless_error: "http_error 500",
    no_content: "http_error 204",
    nothing: "connection",
    reset: "connection",
}


@contextmanager
def serving(*ways: Treat, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that treats its n-th connection in the n-th way, then closes it; gives its port."""

    def treat(sock: socket.socket, way: Treat) -> None:
        with sock:
            try:
                if tls is not None:
                    sock = tls.wrap_socket(sock, server_side=True)
                with sock:
                    received = b""
                    while b'"include_usage"' not in received:
                        if not (data := sock.recv(1 << 16)):
                            return
                        received += data
                    way(sock)
            except OSError:
                pass  # the client has gone

    def accept() -> None:
        for way in itertools.cycle(ways):
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=treat, args=(sock, way), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def load(
    base_url: str,
    folder: Path,
    *,
    requests: int,
    timeout_seconds: float = 20,
    complete: bool = True,
) -> LoadResult:
    rate = 20.0
    plan = LoadPlan(
        base_url=base_url,
        model="llama-2-7b",
        rate_per_second=rate,
        duration_seconds=requests / rate,
        arrivals="constant",
        timeout_seconds=timeout_seconds,
    )
    result = run_load(plan, work_dir=folder)
    assert result.total == requests
    assert (result.incomplete == "") is complete
    return result


def outcomes(result: LoadResult) -> Counter[str]:
    return Counter({"ok": len(result.latencies_seconds)}) + Counter(result.failures_by_kind)


def errors(result: LoadResult) -> set[str]:
    return {request.error for request in result.requests}


def test_every_way_to_answer_badly_has_its_name(tmp_path: Path) -> None:
    with serving(*WAYS) as port:
        url = f"http://127.0.0.1:{port}"
        result = load(url, tmp_path, requests=3 * len(WAYS), timeout_seconds=5)
    assert outcomes(result) == Counter([*WAYS.values()] * 3), errors(result)
    for request in result.requests:
        assert request.outcome != "timeout" or request.latency_seconds >= 5
        assert not request.ok or request.completion_tokens == 4


def test_a_server_that_dies_takes_no_request_out_of_the_result(tmp_path: Path) -> None:
    with RunningSimulator(ttft_seconds=0.5, crash_after=30) as simulator:
        result = load(simulator.url, tmp_path, requests=60)
    found = outcomes(result)
    assert found["ok"] + found["connection"] + found["truncated"] == 60
    assert not any(request.ok for request in result.requests[30:])
    assert all(request.outcome == "connection" for request in result.requests[30:])


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_a_host_that_never_had_an_address_is_not_the_servers_failure(
    tmp_path: Path, host: str
) -> None:
    result = load(f"http://{host}", tmp_path, requests=10, timeout_seconds=10, complete=False)
    assert set(outcomes(result)) == {"unsent"}
    # Where the resolver itself does not answer, the deadline comes first.
    assert "does not resolve" in result.incomplete or "no address" in result.incomplete


@pytest.mark.parametrize(
    ("trusted", "identity", "speaks_tls", "outcome", "told"),
    [
        (True, "127.0.0.1", True, "ok", ""),
        (True, "other.example", True, "connection", "certificate is not valid for '127.0.0.1'"),
        (False, "127.0.0.1", True, "connection", "certificate verify failed"),
        (True, "127.0.0.1", False, "timeout", "no whole answer within 2 s"),
    ],
    ids=["trusted", "another host's certificate", "an unknown issuer", "a mute server"],
)
def test_tls_is_verified_and_its_errors_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted: bool,
    identity: str,
    speaks_tls: bool,
    outcome: str,
    told: str,
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(identity).configure_cert(context)
    if trusted:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with ExitStack() as stack:
        port = stack.enter_context(
            serving(megabyte_tokens, byte_by_byte, tls=context if speaks_tls else None)
        )
        seconds = 20 if speaks_tls else 2
        url = f"https://127.0.0.1:{port}"
        result = load(url, tmp_path, requests=10, timeout_seconds=seconds)
    assert outcomes(result) == {outcome: 10}, errors(result)
    assert all(told in error for error in errors(result))


def test_no_socket_left_is_the_generators_failure_and_a_refusal_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loadtests import connections

    own = connections.Connections(urlsplit(f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(ConnectionRefusedError):
        own.open()
    none_left = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(connections.gevent.socket, "socket", Mock(side_effect=none_left))
    with pytest.raises(connections.GeneratorError, match="Too many open files"):
        own.open()
