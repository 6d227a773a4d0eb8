"""A model server for the tests of this folder: an aiohttp handler in a thread."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

import pytest
from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], str]]:
    """Serve a handler of /v1/completions on a free port until the test ends; gives its base URL."""
    with ExitStack() as servers:
        yield lambda handler: servers.enter_context(_serving(handler))


@contextmanager
def _serving(handler: Handler) -> Iterator[str]:
    ready: Future[tuple[str, Callable[[], object]]] = Future()

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/completions", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set_result((url, lambda: loop.call_soon_threadsafe(stopping.set)))
        await stopping.wait()
        await runner.cleanup()

    # asyncio.run cancels the requests that a test left hanging.
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    url, stop = ready.result(timeout=10)
    try:
        yield url
    finally:
        stop()
        thread.join(timeout=10)
