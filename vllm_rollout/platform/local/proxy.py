"""Divides requests among ready replicas, passes them on, and hides no failure.

The division is a smooth weighted round robin: shares are exact and repeatable.
"""

import errno
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

Member = TypeVar("Member")


class Balancer(Generic[Member]):
    """Spreads picks over members in proportion to their weights.

    Every pick raises each member's credit by its weight and takes the sum of all weights from the
    one that had most: over any run as long as the sum, shares are exact for whole weights.
    """

    def __init__(self) -> None:
        self._weights: dict[Member, float] = {}
        self._credit: dict[Member, float] = {}

    def update(self, weights: Mapping[Member, float]) -> None:
        """Take these members from now on; the same as before changes nothing."""
        positive = {member: weight for member, weight in weights.items() if weight > 0}
        if positive != self._weights:
            self._weights = positive
            self._credit = dict.fromkeys(positive, 0.0)

    def pick(self, *, besides: Member | None = None) -> Member | None:
        """The next member (another than `besides`), or None when there is none."""
        chosen: Member | None = None
        total = 0.0
        for member, weight in self._weights.items():
            if member == besides:
                continue
            total += weight
            self._credit[member] += weight
            if chosen is None or self._credit[member] > self._credit[chosen]:
                chosen = member
        if chosen is not None:
            self._credit[chosen] -= total
        return chosen


OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

OWN_PATH = "/-/own"
"""Under this path a router answers from its release's own replicas, never from the canary."""

_BUFFERED_BODY_BYTES = 1_000_000
_CONNECT_SECONDS = 5.0

# A connection that the replica closes for idleness just as a request is sent on it would make an
# error of our own. vLLM's server closes after 5 s, so ours are not kept that long.
_KEEPALIVE_SECONDS = 2.0

# RFC 9110 section 7.6.1: these speak of one connection and are not passed on.
_HOP_BY_HOP = frozenset(
    {
        hdrs.CONNECTION,
        hdrs.KEEP_ALIVE,
        hdrs.PROXY_AUTHENTICATE,
        hdrs.PROXY_AUTHORIZATION,
        "Proxy-Connection",
        hdrs.TE,
        hdrs.TRAILER,
        hdrs.TRANSFER_ENCODING,
        hdrs.UPGRADE,
    }
)
_NOT_FORWARDED = (*_HOP_BY_HOP, hdrs.HOST, hdrs.EXPECT)
_ADDED_BY_CLIENT = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)


class Upstream(Protocol):
    """Target of requests: `url` has no trailing slash, `open_requests` is counted here.

    `alone`: no other may answer in its place.
    """

    open_requests: int
    alone: bool

    @property
    def url(self) -> str:
        """Scheme, host and port."""


def make_session(*, keep: bool = True) -> aiohttp.ClientSession:
    """The connections to the replicas: no limit, no cookies, no decoding, no read timeout.

    A replica that hangs is for the gates to see, so it is not cut off here. Without `keep` each
    connection is closed with its answer.
    """
    connector = (
        aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS)
        if keep
        else aiohttp.TCPConnector(limit=0, force_close=True)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_ADDED_BY_CLIENT,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
    )


class Proxy:
    """The request handler of a release's router.

    503 when no replica is ready, 502 when the chosen one does not answer. Only a request that found
    no connection, of which no byte was sent, is tried once more, on another replica of the same
    side. A client that goes away ends its request at the replica; an answer that breaks off breaks
    off for the client too.
    """

    def __init__(
        self,
        release: str,
        balancer: Balancer[Upstream],
        session: aiohttp.ClientSession,
        *,
        others: Balancer[Upstream] | None = None,
        under: str = "",
    ) -> None:
        """`others` are the replicas that may answer for each other, by default all.

        `under` is the path that is taken off requests before they are passed on.
        """
        self._release = release
        self._balancer = balancer
        self._others = balancer if others is None else others
        self._session = session
        self._under = under

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request; one that names another server than this is none for it."""
        if not request.raw_path.startswith("/"):
            return _error(400, "BadRequest", f"{self._release}: ask by a path, not by a whole URL")
        upstream = self._balancer.pick()
        if upstream is None:
            return unavailable(f"{self._release}: no replica is ready")
        try:
            try:
                return await self._forward(request, upstream)
            except aiohttp.ClientConnectorError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    return unavailable(f"{self._release}: the router has no descriptor left")
                other = None if upstream.alone else self._others.pick(besides=upstream)
                if other is None:
                    raise
                return await self._forward(request, other)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _error(502, "BadGateway", f"{self._release}: a replica failed: {error!r}")

    async def _forward(self, request: web.Request, upstream: Upstream) -> web.StreamResponse:
        upstream.open_requests += 1
        try:
            async with self._session.request(
                request.method,
                URL(upstream.url + request.raw_path.removeprefix(self._under), encoded=True),
                headers=_passed_on(request.headers, _NOT_FORWARDED),
                data=await _body(request),
                allow_redirects=False,
            ) as answer:
                return await _relay(request, answer)
        finally:
            upstream.open_requests -= 1


async def _body(request: web.Request) -> bytes | aiohttp.StreamReader | None:
    if not request.body_exists:
        return None
    length = request.content_length
    if length is not None and length <= _BUFFERED_BODY_BYTES:
        return await request.read()
    return request.content


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_passed_on(answer.headers, _HOP_BY_HOP)
    )
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError, ConnectionError):
        # The status is out already; only a connection cut short can still say "not whole".
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


def _passed_on(
    headers: Mapping[str, str], dropped: "frozenset[str] | tuple[str, ...]"
) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    named = headers.get(hdrs.CONNECTION, "").split(",")
    for name in (*dropped, *filter(None, map(str.strip, named))):
        kept.popall(name, None)
    return kept


def unavailable(message: str) -> web.Response:
    """The answer to a request that cannot be served now: 503, with the reason."""
    return _error(503, "ServiceUnavailable", message)


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status
    )
