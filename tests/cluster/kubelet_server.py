"""The kubelet's own HTTPS server: logs, and port-forward over WebSocket."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web
from cluster.behaviour import HEALTHY, Behaviour

Answering = Callable[[str, str, int], str]
"""Base URL of what answers for a namespace's pod at a port; empty if nothing does."""

_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = b"\0", b"\1"


@contextmanager
def kubelet_server(
    logs: Mapping[tuple[str, str], Behaviour], answering: Answering, pem: Path
) -> Iterator[int]:
    """Answer `GET /containerLogs/…` and `/portForward/…` of the API server; gives the port."""
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", _logs(logs))
    app.router.add_get("/portForward/{namespace}/{pod}", _forward(answering))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), Future[int]()

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        started.set_result(int(runner.addresses[0][1]))
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    yield started.result()
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


Handler = Callable[[web.Request], object]


def _logs(logs: Mapping[tuple[str, str], Behaviour]) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        behaviour = logs.get((request.match_info["namespace"], request.match_info["pod"]), HEALTHY)
        previous = request.query.get("previous") == "true"
        text = behaviour.previous_log if previous else behaviour.log
        lines = text.splitlines(keepends=True)
        return web.Response(text="".join(lines[-int(request.query.get("tailLines", "100")) :]))

    return handle


def _forward(answering: Answering) -> Handler:
    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(_PROTOCOL,), max_msg_size=0)
        await socket.prepare(request)
        port = int(request.query["port"])
        for channel in (_DATA, _ERROR):
            await socket.send_bytes(channel + port.to_bytes(2, "little"))
        url = urlsplit(answering(request.match_info["namespace"], request.match_info["pod"], port))
        try:
            # Port 1 is nobody's: the connection is refused, as that of a pod where nothing listens.
            reader, writer = await asyncio.open_connection("127.0.0.1", url.port or 1)
        except OSError as error:
            await socket.send_bytes(_ERROR + f"error forwarding port: {error}".encode())
            await socket.close()
            return socket
        answers = asyncio.create_task(_pass_back(reader, socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    writer.write(message.data[1:])
                    await writer.drain()
        except ConnectionError:
            pass  # the pod's server has gone; its end of the tunnel closes
        finally:
            answers.cancel()
            writer.close()
            await asyncio.gather(answers, writer.wait_closed(), return_exceptions=True)
        return socket

    return handle


async def _pass_back(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while data := await reader.read(1 << 16):
        await socket.send_bytes(_DATA + data)
    await socket.close()
