"""What a Service does: passes requests on to the ready pods of a release, in turn."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence

import aiohttp
from aiohttp import web

from vllm_rollout.platform.local.proxy import make_session

Ready = Callable[[str, str], Sequence[str]]
"""Base URLs of what answers for the ready pods of a release in a namespace."""

_NOT_PASSED_ON = ("host", "content-length", "transfer-encoding", "connection", "keep-alive")


class Services:
    """One address on loopback for every Service: `{url}/{namespace}/{release}`.

    503 where no pod is ready, 502 where the pod does not answer.
    """

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self.url = ""
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve()), daemon=True
        )
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """Stop answering."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{namespace}/{release}/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with make_session() as self._session:
            self._started.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        urls = self._ready(request.match_info["namespace"], request.match_info["release"])
        if not urls:
            return web.Response(status=503, text="no endpoints")
        url = f"{urls[next(self._turn) % len(urls)]}/{request.match_info['path']}"
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_PASSED_ON}
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=await request.read() or None
            ) as answer:
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _NOT_PASSED_ON}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=repr(error))
