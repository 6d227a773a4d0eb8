"""Every request of every client ends: in its time, in bounded memory, and in an outcome."""

import gzip
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.every_client import CLIENTS, outcome
from support.hostile import ENDLESS, Script, hostile, sends

from vllm_rollout.http_client import Failure, HttpClient, HttpError
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.text import one_line
from vllm_rollout.observe.answers import Answer
from vllm_rollout.observe.client import Health, Inference, InferenceClient

SECONDS = 0.4
STATUS_ALONE = ("on call", "webhook")
"""Clients that read no body: what follows the headers is nothing to them."""


def good(end: object) -> bool:
    """Whether a client took the answer for a good one."""
    if isinstance(end, RolloutError):
        return False
    if isinstance(end, Health):
        return end.status == 200
    if isinstance(end, Inference):
        return end.ok
    if isinstance(end, ProbeSample):
        return end.healthy or end.failures < end.total
    return end in ("", None)


@pytest.mark.parametrize("answer", ENDLESS)
def test_no_client_outlives_its_deadline_or_its_size(answer: str, tmp_path: Path) -> None:
    with hostile(ENDLESS[answer]) as url, ThreadPoolExecutor(len(CLIENTS)) as pool:
        asked = {name: pool.submit(outcome, name, url, SECONDS, tmp_path) for name in CLIENTS}
        ends = {name: future.result() for name, future in asked.items()}
    taken = {name for name, end in ends.items() if good(end)}
    assert taken <= (set(STATUS_ALONE) if "body" in answer or "bomb" in answer else set())


def failure(script: Script, *, seconds: float = 50 * SECONDS) -> HttpError:
    with (
        hostile(script) as url,
        HttpClient(max_bytes=1_000_000) as client,
        pytest.raises(HttpError) as caught,
    ):
        client.get(url, timeout_seconds=seconds)
    return caught.value


def test_no_more_is_read_than_the_limit_and_what_is_on_its_way() -> None:
    sent = 0

    def endless(connection: socket.socket, _request: bytes) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent += connection.send(bytes(65536))

    assert failure(endless).failure is Failure.TOO_LARGE
    assert sent < 20_000_000


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        ("gzip", gzip.compress(bytes(2_000_000)), Failure.TOO_LARGE),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), Failure.UNREADABLE),
        ("br", b"{}", Failure.UNREADABLE),
        ("gzip", b"no gzip", Failure.UNREADABLE),
        ("gzip", gzip.compress(b"{}")[:-4], Failure.UNREADABLE),
    ],
    ids=["too large", "twice", "not asked for", "none", "cut off"],
)
def test_a_body_is_unpacked_once_and_no_further_than_the_limit(
    encoding: str, body: bytes, expected: Failure
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    assert failure(sends(head.encode() + body)).failure is expected


def test_no_connection_in_time_is_unreachable_and_no_slow_server() -> None:
    with socket.socket() as full:  # a listener whose backlog is full drops what comes
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address), HttpClient(max_bytes=1000) as client:
            url = f"http://127.0.0.1:{address[1]}"
            with pytest.raises(HttpError) as dropped:
                client.get(url, timeout_seconds=SECONDS)
    assert dropped.value.unreachable
    assert "no connection within" in dropped.value.reason
    silent = failure(ENDLESS["nothing"], seconds=SECONDS)
    assert (silent.failure, silent.unreachable) == (Failure.LATE, False)


def test_slow_name_resolution_counts_against_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    real = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(SECONDS)
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with hostile(sends(answer)) as url:
        named = url.replace("127.0.0.1", "localhost")
        with InferenceClient(named, model="m") as client:
            health = client.health(timeout_seconds=20 * SECONDS)
            with pytest.raises(RolloutError, match="no connection within"):
                client.health(timeout_seconds=SECONDS / 4)
    assert health.status == 200
    assert health.seconds < SECONDS


def test_redirects_are_followed_within_one_deadline_and_a_count() -> None:
    found = []

    def again(connection: socket.socket, _request: bytes) -> None:
        found.append(1)
        connection.sendall(
            b"HTTP/1.1 307 Go\r\nLocation: /again\r\nContent-Length: 9999999\r\n\r\n"
        )

    with hostile(again) as url:
        with HttpClient(max_bytes=1000, redirects=True) as client:
            assert client.get(url, timeout_seconds=20, read=False).status == 307
        assert len(found) == 6
        with HttpClient(max_bytes=1000) as client:
            answer = client.get(url, timeout_seconds=20, read=False)
    assert answer.redirects_to == f"{url}/again"


def test_a_key_that_no_header_can_hold_is_in_no_message() -> None:
    for key in ("sec\nret", "sécret"):
        with (
            InferenceClient("http://127.0.0.1:9", model="m", api_key=key) as client,
            pytest.raises(RolloutError) as caught,
        ):
            client.health(timeout_seconds=5)
        assert "ret" not in str(caught.value).replace("secret", "") + caught.value.remedy


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_of_ones_own_is_trusted_where_a_variable_names_it(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(each, raising=False)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def tls(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with hostile(tls, context=context) as url:
        with (
            InferenceClient(url, model="m") as client,
            pytest.raises(RolloutError, match="certificate") as untrusted,
        ):
            client.health(timeout_seconds=20)
        assert "SSL_CERT_FILE" in untrusted.value.remedy
        monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
        with InferenceClient(url, model="m") as client:
            assert client.health(timeout_seconds=20).status == 200


# ------------------------------------------------- whatever bytes a server sends

NASTY = [
    json.dumps({"data": [{"id": "m", "max_model_len": 10**400}]}),
    "[" * 100_000,
    "NaN",
    json.dumps({"data": [{"id": "a\x1b[31m\n" * 50}] * 3000}),
    json.dumps({"error": {"message": "\ud800\x1b[2J", "code": 10**400}}),
    json.dumps({"choices": [{"index": 0, "text": "\ud800", "finish_reason": "length"}]}),
    'data: {"choices": [{"index": 0, "text": "\\ud83d"}]}\n\ndata: [DONE]\n\n',
    json.dumps(
        {"status": "success", "data": {"result": [{"metric": {}, "value": [10**400, "1"]}]}}
    ),
    '{"status": "error", "error": {"a": [1e999]}}',
    '{"schemaVersion": 2}',
    '{"sha": null}',
    "BEGIN:VCALENDAR\n\x00\xff",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["data", "id", "error", "choices", "usage", "status", "sha"]), inner
        )
    ),
    max_leaves=10,
)
bodies = (
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(NASTY).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Location", b"Content-Encoding", b"Content-Type", b"WWW-Authenticate", b"Set-Cookie",
             b"Transfer-Encoding", b"X-Error-Code", b"Docker-Content-Digest", b"Content-Length"]
        ),
        st.binary(max_size=20)
        | st.sampled_from([b"gzip", b"chunked", b"http://[", b"ftp://x", b'Bearer realm="http://["']),
    ),
    max_size=3,
)  # fmt: skip


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    status = draw(st.sampled_from([200, 200, 200, 204, 302, 401, 404, 500, 599]))
    body = draw(bodies)
    lines = [b"HTTP/1.1 %d OK" % status, *(b": ".join(pair) for pair in draw(headers))]
    if draw(st.booleans()):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def texts(value: object) -> Iterator[str]:
    """Every text that an outcome holds, but for what a model wrote."""
    if isinstance(value, RolloutError):
        yield from (str(value), value.remedy)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from texts(each)
    elif is_dataclass(value) and not isinstance(value, Answer):
        for each in fields(value):
            yield from texts(getattr(value, each.name))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300) | responses())
def test_whatever_a_server_sends_is_an_outcome_in_printable_words(data: bytes) -> None:
    with TemporaryDirectory() as folder, hostile(sends(data)) as url:
        for name in CLIENTS:
            for text in texts(outcome(name, url, 10, Path(folder))):
                assert (name, text) == (name, one_line(text)[:1000])


def test_a_fake_clock_of_a_test_measures_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        time.sleep(0.02)
        return httpx.Response(200)

    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    with HttpClient(max_bytes=10, transport=httpx.MockTransport(answer)) as client:
        answered = client.get("http://a", timeout_seconds=9, read=False)
        assert answered.seconds >= 0.02
