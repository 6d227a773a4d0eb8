"""The proxy passes on what it gets, hides no failure and retries only what is safe."""

import asyncio
import io
import json
import socket
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from vllm_rollout.platform.local.proxy import Balancer, Proxy, Upstream, make_session
from vllm_rollout.ports import LOOPBACK, free_port

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Place:
    """An upstream at `port`."""

    def __init__(self, port: int, *, alone: bool = False) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        self.open_requests = 0
        self.alone = alone


async def listen(handler: Serve) -> tuple[web.AppRunner, int]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    with socket.socket() as chosen:
        chosen.bind((LOOPBACK, 0))
        await web.SockSite(runner, chosen.dup()).start()
        return runner, chosen.getsockname()[1]


def ask(
    behind: Serve,
    *,
    dead_first: bool = False,
    alive: bool = True,
    alone: bool = False,
    **request: object,
) -> tuple[int, Mapping[str, str], bytes]:
    """One request through a proxy; `dead_first`: to a place where nothing listens."""

    async def run() -> tuple[int, Mapping[str, str], bytes]:
        served, port = await listen(behind)
        balancer: Balancer[Upstream] = Balancer()
        places = [Place(free_port(), alone=alone)] * dead_first + [Place(port)] * alive
        balancer.update(dict.fromkeys(places, 1.0))
        async with make_session() as session, aiohttp.ClientSession() as client:
            proxy, front = await listen(Proxy("system.llama", balancer, session).handle)
            options = {"method": "GET", "path": "/"} | request
            url = f"http://{LOOPBACK}:{front}{options.pop('path')}"
            try:
                async with client.request(url=URL(url, encoded=True), **options) as answer:
                    return answer.status, answer.headers, await answer.read()
            finally:
                assert all(place.open_requests == 0 for place in places)
                await proxy.cleanup()
                await served.cleanup()

    return asyncio.run(run())


async def echo(request: web.Request) -> web.StreamResponse:
    length = 0
    async for chunk in request.content.iter_any():
        length += len(chunk)
    return web.json_response(
        {
            "path": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "length": length,
        },
        status=418,
        headers={"X-Request-Id": "abc", "Server": "uvicorn"},
    )


@pytest.mark.parametrize("data", [None, b"{}", io.BytesIO(b"x" * 3_000_000)])
def test_a_request_that_finds_no_connection_is_tried_on_another_replica(data: object) -> None:
    status, _, body = ask(echo, dead_first=True, method="POST", data=data)
    assert (status, json.loads(body)["length"]) == (
        418,
        len(getattr(data, "getvalue", lambda: data or b"")()),
    )


def test_a_request_is_502_where_no_other_may_answer_it() -> None:
    assert ask(echo, dead_first=True, alive=False)[0] == 502
    status, _, body = ask(echo, dead_first=True, alone=True, method="POST", data=b"{}")
    assert (status, json.loads(body)["error"]["code"]) == (502, 502)


def test_without_a_ready_replica_the_answer_is_503() -> None:
    status, headers, body = ask(echo, alive=False)
    assert status == 503
    assert headers["Content-Type"].startswith("application/json")
    assert "no replica is ready" in json.loads(body)["error"]["message"]


def test_path_headers_status_and_body_arrive_as_they_were_sent() -> None:
    status, headers, body = ask(
        echo,
        method="POST",
        path="/v1/a%2Fb//c?x=%20y&x=2",
        data=io.BytesIO(b"x" * 3_000_000),
        headers={"Authorization": "Bearer k", "Connection": "X-Drop, keep-alive", "X-Drop": "1"},
    )
    seen = json.loads(body)
    assert status == 418
    assert seen["path"] == "/v1/a%2Fb//c?x=%20y&x=2"
    assert seen["length"] == 3_000_000
    assert seen["headers"]["authorization"] == "Bearer k"
    assert "x-drop" not in seen["headers"]
    assert (headers["X-Request-Id"], headers["Server"]) == ("abc", "uvicorn")


def test_an_answer_that_breaks_off_breaks_off_for_the_client() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: first\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    try:
        ask(broken)
    except aiohttp.ClientError:
        return
    raise AssertionError("a truncated stream arrived as a whole one")


def test_a_request_that_names_another_server_is_400_and_goes_nowhere() -> None:
    seen: list[str] = []

    async def note(request: web.Request) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.Response(text="from the replica")

    async def run(target: str) -> bytes:
        served, port = await listen(note)
        balancer: Balancer[Upstream] = Balancer()
        balancer.update({Place(port): 1.0})
        async with make_session() as session:
            proxy, front = await listen(Proxy("system.llama", balancer, session).handle)
            reader, writer = await asyncio.open_connection(LOOPBACK, front)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            await proxy.cleanup()
            await served.cleanup()
        return answer.partition(b"\r\n")[0]

    assert asyncio.run(run("/v1")) == b"HTTP/1.1 200 OK"
    seen.clear()
    assert asyncio.run(run("http://evil.example/x")) == b"HTTP/1.1 400 Bad Request"
    for target in ("https://evil.example", "@evil.example/x", "evil", "?x", "*"):
        assert asyncio.run(run(target)).split()[1] in (b"400", b"404"), target
    assert seen == []
