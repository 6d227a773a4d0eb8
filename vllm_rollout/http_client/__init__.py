"""HTTP client of the whole suite: each request has a total deadline and a size limit.

The deadline covers everything from the name's resolution to the last byte, redirects included; the
limit holds after decompression. Whatever else a server sends is an `HttpAnswer` or an `HttpError`,
whose texts are printable. Nothing else in the suite imports an HTTP library for its questions.

A request runs on an event loop in a thread of the client's own: there it can be ended at any point.
"""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import CancelledError
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vllm_rollout.http_client.exchange import (
    Begin,
    Exchange,
    Failure,
    HttpAnswer,
    HttpError,
    Sink,
    monotonic,
)
from vllm_rollout.http_client.trust import tls_context, trust_also, trusted_also

if TYPE_CHECKING:
    import httpx

    Transport = httpx.MockTransport

__all__ = [
    "Begin",
    "Failure",
    "HttpAnswer",
    "HttpClient",
    "HttpError",
    "Sink",
    "monotonic",
    "tls_context",
    "trust_also",
    "trusted_also",
]

_MOST_REDIRECTS = 5
_MOST_IDLE = 20
_CLOSE_SECONDS = 5.0


class HttpClient:
    """Asks servers over HTTP. Close it, or use it as a context manager.

    Args:
        headers: sent with each request.
        max_bytes: the longest body, compressed or not.
        ca_file: the only certificates to trust; by default as `tls_context` has it.
        proxy: heed HTTP_PROXY and the like.
        redirects: follow redirects.
        fresh: make a connection for each request.
        transport: for tests.

    Raises:
        OSError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        ca_file: Path | str | None = None,
        proxy: bool = False,
        redirects: bool = False,
        fresh: bool = False,
        transport: "Transport | None" = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._headers = {"Accept-Encoding": "gzip", **(headers or {})}
        # An authority of the caller's own is read now, so that the caller hears what is wrong.
        self._verify = tls_context(ca_file) if ca_file else None
        self._proxy, self._transport = proxy, transport
        self._most_idle = 0 if fresh else _MOST_IDLE
        self._most_redirects = _MOST_REDIRECTS if redirects else 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._made: list[httpx.AsyncClient] = []
        self._end: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._end()

    def get(self, url: str, *, timeout_seconds: float, **request: Any) -> HttpAnswer:
        """As `request`."""
        return self.request("GET", url, timeout_seconds=timeout_seconds, **request)

    def request(
        self,
        method: str,
        url: str,
        *,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        sink: Begin | None = None,
        read: bool = True,
        **content: Any,
    ) -> HttpAnswer:
        """Ask, and return the whole answer, whatever its status.

        `sink` is called when the headers have come; what it returns, if anything, takes the body in
        place of the answer. Without `read` the body is left unread. `content` is as httpx has
        it: `json`, `data`, `content`, `params`, `auth`.

        Raises:
            HttpError: there is none.
        """
        exchange = Exchange(self._max_bytes, self._most_redirects, timeout_seconds, sink, read=read)
        asked = asyncio.run_coroutine_threadsafe(
            exchange.run(
                self._client, method, url, headers={**self._headers, **(headers or {})}, **content
            ),
            self._running_loop(),
        )
        try:
            return asked.result()
        except CancelledError as error:
            raise HttpError(Failure.BROKEN, "the client was closed meanwhile") from error
        finally:
            asked.cancel()  # of one who was interrupted while waiting

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_serve, args=(self._loop, self._made), name="HTTP client", daemon=True
                )
                thread.start()
                self._end = weakref.finalize(self, _stop, self._loop, thread)
            return self._loop

    def _client(self) -> "httpx.AsyncClient":
        """The client of the loop, made by the first request on it."""
        if not self._made:
            import httpx

            self._made.append(
                httpx.AsyncClient(
                    # No cookie is kept: requests are independent, and memory is bounded.
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                    limits=httpx.Limits(
                        max_connections=None, max_keepalive_connections=self._most_idle
                    ),
                    timeout=None,  # noqa: S113 - the exchange has a deadline as a whole
                    transport=self._transport,
                    trust_env=self._proxy,
                    verify=self._verify or tls_context(),
                )
            )
        return self._made[0]


def _serve(loop: asyncio.AbstractEventLoop, made: "list[httpx.AsyncClient]") -> None:
    """Run the loop until it is stopped, then end what still runs on it and close its clients."""
    try:
        loop.run_forever()
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        ends = (*tasks, *(client.aclose() for client in made))
        loop.run_until_complete(_all_of(ends))
    finally:
        loop.close()


async def _all_of(ends: Iterable[Awaitable[object]]) -> None:
    await asyncio.gather(*ends, return_exceptions=True)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():  # as where the garbage collector closes it
        thread.join(_CLOSE_SECONDS)
