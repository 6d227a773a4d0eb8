"""Connections to one server: as many as are wanted at once, kept alive between requests."""

import select
import socket
import time
from collections import deque
from urllib.parse import SplitResult

import gevent.socket
from gevent.monkey import get_original
from geventhttpclient.connectionpool import ConnectionPool, SSLConnectionPool
from geventhttpclient.response import HTTPParseError, HTTPSocketResponse

_NO_LIMIT = 1_000_000_000
_LONGEST_IDLE_SECONDS = 1.0
"""Servers close a connection that idles (uvicorn after 5 s); a request on its way at that moment
would be lost and look like the server's failure, so an older connection is not used again."""
_RECEIVE_BYTES = 1 << 16

_new_poll = get_original("select", "poll")


class Connections:
    """Opens and keeps connections to the host of `url`, http or https (verified)."""

    def __init__(self, url: SplitResult) -> None:
        secure = url.scheme == "https"
        host, port = url.hostname or "", url.port or (443 if secure else 80)
        pool_class = SSLConnectionPool if secure else ConnectionPool
        # The pool only opens connections; idle ones are kept here. Neither makes a request wait.
        self._pool = pool_class(host, port, host, port, size=_NO_LIMIT)
        self._idle: deque[tuple[float, gevent.socket.socket]] = deque()

    def take(self) -> gevent.socket.socket:
        """A connection for one request, without a timeout of its own: the caller has a deadline.

        Raises:
            OSError: it could not be opened (refused, DNS, TLS, no file descriptor left).
        """
        while self._idle:
            since, sock = self._idle.pop()
            if time.monotonic() - since < _LONGEST_IDLE_SECONDS and _is_quiet(sock):
                return sock
            self._pool.release_socket(sock)
        sock = self._pool.get_socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(None)
        return sock

    def give_back(self, sock: gevent.socket.socket, *, reusable: bool) -> None:
        """Return a connection after its request, to be kept or closed."""
        if reusable:
            self._idle.append((time.monotonic(), sock))
        else:
            self._pool.release_socket(sock)


def _is_quiet(sock: gevent.socket.socket) -> bool:
    """Whether nothing waits to be read: an idle connection that is readable was closed."""
    poll = _new_poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


class Response(HTTPSocketResponse):
    """A response whose body is given as it comes, without waiting for a block to fill.

    Raises:
        HTTPConnectionClosed: the connection was closed before any of it came.
        HTTPParseError: what came is not HTTP.
    """

    def read_some(self) -> bytes:
        """The body bytes that are there, or the next to come; empty at the end of the body.

        Raises:
            EOFError: the connection ended before the body did.
            HTTPParseError: the body's framing is broken.
        """
        sock = self._sock
        while sock is not None and not self._body_buffer and not self.message_complete:
            data = sock.recv(_RECEIVE_BYTES)
            try:
                self.feed(data)
            except HTTPParseError as error:
                if data:
                    raise
                raise EOFError("the connection was closed in the middle of the body") from error
        body = bytes(self._body_buffer)
        self._body_buffer.clear()
        return body
