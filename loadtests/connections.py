"""Connections to one server: as many as are wanted at once, kept alive between requests.

What comes is read by callbacks of gevent's event loop, not by a greenlet for each request: a
greenlet costs more than the request itself. Only opening a connection takes one.
"""

import contextlib
import errno
import math
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import SplitResult

import gevent.socket
import gevent.ssl
from gevent.monkey import get_original
from geventhttpclient._parser import HTTPResponseParser
from geventhttpclient.response import HTTPParseError

from vllm_rollout.http_client import tls_context, trust_also
from vllm_rollout.variables import LOAD_CA_FILE

_LONGEST_IDLE_SECONDS = 1.0
"""Servers close a connection that idles (uvicorn after 5 s); a request in transit at that moment
would be lost and look like the server's failure, so an older connection is not used again."""
_ADDRESSES_FOR_SECONDS = 1.0
_RECEIVE_BYTES = 1 << 16
_MOST_HEADER_BYTES = 1 << 16
"""Of one response, its trailers too: the parser has no limit of its own."""
_READ, _WRITE = 1, 2
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_OWN_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRNOTAVAIL,
        errno.ENETUNREACH,
        errno.ENETDOWN,
    }
)

_new_poll = get_original("select", "poll")
_getaddrinfo = get_original("socket", "getaddrinfo")


class GeneratorError(OSError):
    """The generator's own machine is why a request cannot be sent: nothing of the server is shown.

    It has no socket left, or never found an address for the server's name.
    """


class Receiver(Protocol):
    """Sender of a request on a connection, called with the response. No method may block."""

    def received(self, status: int, body: bytes | bytearray, *, ended: bool) -> None:
        """Take the next bytes of the response's body; `ended` with its last.

        May raise what `failed` takes.
        """

    def failed(self, error: Exception) -> None:
        """There will be no more: OSError, EOFError, HTTPParseError or what `received` raised."""


class Connection(HTTPResponseParser):
    """An open connection, and the parser of the responses on it.

    The receiver of a request is called with everything that comes, until its response has ended or
    it calls `close`. What comes unasked (the server closes an idle connection) closes it.
    """

    # What is of no use here goes into a queue without room: no Python code is run for it.
    _on_status = deque[str](maxlen=0).append

    def __init__(self, sock: gevent.socket.socket, give_back: Callable[["Connection"], None]):
        super().__init__()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(0.0)  # never waits: the callbacks come when there is something to read
        self.idle_since = 0.0
        self._names: list[str] = []
        self._values: list[str] = []
        self._counted = (0, 0, 0)
        """Names, values and their bytes that are counted."""
        self._on_header_field, self._on_header_value = self._names.append, self._values.append
        self._give_back = give_back
        self._sock: gevent.socket.socket | None = sock
        self._pending = sock.pending if isinstance(sock, gevent.ssl.SSLSocket) else None
        self._receiver: Receiver | None = None
        self._poll = _new_poll()
        self._poll.register(sock, select.POLLIN)
        loop = gevent.get_hub().loop
        self._readable = loop.io(sock.fileno(), _READ)
        self._readable.start(self._read)
        self._writable = loop.io(sock.fileno(), _WRITE)
        self._unsent = memoryview(b"")
        self._body: bytes | bytearray = b""
        self._begun = self._ended = self._interim = False

    def is_fresh(self) -> bool:
        """Return True if a request may be sent: not idle for long, and nothing waits to be read."""
        return (
            self._sock is not None
            and time.monotonic() - self.idle_since < _LONGEST_IDLE_SECONDS
            # One that is readable was closed, which the event loop may not have reported yet.
            and not self._poll.poll(0)
        )

    def headers(self) -> Iterator[tuple[str, str]]:
        """The headers of the newest response, names and values."""
        return zip(self._names, self._values, strict=False)

    def send(self, request: bytes, receiver: Receiver) -> None:
        """Send a request; its receiver is called with the response."""
        self._receiver = receiver
        self._begun = self._ended = False
        self._unsent = memoryview(request)
        self._write()

    def close(self) -> None:
        """Close it; its receiver is not called again. May be called again."""
        sock, self._sock, self._receiver = self._sock, None, None
        if sock is not None:
            # A watcher must go before its file descriptor does.
            self._readable.close()
            self._writable.close()
            with contextlib.suppress(OSError):
                sock.close()

    def _write(self) -> None:
        try:
            if self._sock is not None:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except _AGAIN:
            pass
        except OSError as error:
            # What the server sent before it closed tells more than that it did.
            self._unsent = memoryview(b"")
            self._read(otherwise=error)
        if not self._unsent:
            self._writable.stop()
        elif not self._writable.active:
            self._writable.start(self._write)

    def _read(self, otherwise: OSError | None = None) -> None:
        while self._sock is not None:
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except _AGAIN:
                if otherwise is not None:
                    self._fail(otherwise)
                return
            except OSError as error:
                self._fail(otherwise or error)
                return
            self._take(data)
            # What TLS has read ahead makes no socket readable.
            if not data or (otherwise is None and not (self._pending and self._pending())):
                return

    def _take(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.close()
            return
        try:
            self._parse(data)
        except (HTTPParseError, EOFError, OSError) as error:
            self._fail(error)
            return
        if not self._begun:
            return
        body, self._body = self._body, b""
        status, ended = self.get_code(), self._ended
        if ended:
            # First, so that a request which follows from this one's end finds it idle.
            self._release(reusable=bool(data) and not self._unsent and self.should_keep_alive())
        try:
            receiver.received(status, body, ended=ended)
        except Exception as error:  # noqa: BLE001 - the receiver knows what it is
            if not ended:
                self.close()
            receiver.failed(error)

    def _release(self, *, reusable: bool) -> None:
        self._receiver = None
        if reusable:
            self.idle_since = time.monotonic()
            self._give_back(self)
        else:
            self.close()

    def _parse(self, data: bytes) -> None:
        try:
            self.feed(data)
        except HTTPParseError as error:
            if data:
                raise
            raise EOFError("the connection was closed in the middle of the answer") from error
        self._count_headers()
        if not data and not self._ended:
            if not self._begun:
                raise ConnectionResetError("closed before any answer")
            raise EOFError("the connection was closed in the middle of the answer")

    def _count_headers(self) -> None:
        """Count the bytes of the headers that have come since it was called last.

        Raises:
            HTTPParseError: they are too many.
        """
        names, values, size = self._counted
        if (names, values) == (len(self._names), len(self._values)):
            return
        size += sum(map(len, self._names[names:])) + sum(map(len, self._values[values:]))
        self._counted = (len(self._names), len(self._values), size)
        if size > _MOST_HEADER_BYTES:
            raise HTTPParseError(f"more than {_MOST_HEADER_BYTES} bytes of headers")

    def _fail(self, error: Exception) -> None:
        receiver = self._receiver
        self.close()
        if receiver is not None:
            receiver.failed(error)

    def _on_message_begin(self) -> None:
        if self._ended:
            raise HTTPParseError("more than the one answer that was asked for")
        self._names.clear()
        self._values.clear()
        self._counted = (0, 0, 0)

    def _on_headers_complete(self) -> None:
        # Interim responses (1xx) have no body and are followed by the real one.
        self._interim = self.get_code() < 200
        self._begun = not self._interim

    def _on_body(self, part: bytearray) -> None:
        self._body = self._body + part if self._body else part

    def _on_message_complete(self) -> None:
        self._ended = not self._interim


class Connections:
    """Opens and keeps connections to the host of `url`, http or https (verified)."""

    def __init__(self, url: SplitResult) -> None:
        self._secure = url.scheme == "https"
        self._host, self._port = url.hostname or "", url.port or (443 if self._secure else 80)
        self._tls = _tls_context() if self._secure else None
        self._idle: list[Connection] = []
        self.resolved = False
        """True once the host's name had an address."""
        self._lookup: Any = None
        self._lookup_at = -math.inf

    def take(self) -> Connection | None:
        """An idle connection, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.close()
        return None

    def open(self) -> Connection:
        """A new connection. Blocks, without a timeout of its own: the caller has a deadline.

        Raises:
            GeneratorError: for want of a socket or of an address, by no fault of the server.
            OSError: it could not be opened (refused, DNS, TLS).
        """
        errors: list[OSError] = []
        for family, _, _, _, address in self._addresses():
            try:
                return self._connected(family, address)
            except OSError as error:
                errors.append(error)
        if errors and all(error.errno in _OWN_ERRORS for error in errors):
            raise GeneratorError(str(errors[0]))
        raise errors[0] if errors else OSError(f"{self._host} has no address")

    def _connected(self, family: int, address: Any) -> Connection:
        sock = gevent.socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.connect(address)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            return Connection(sock, self._idle.append)
        except BaseException:
            sock.close()
            raise

    def _addresses(self) -> list[Any]:
        """Return the answer of `getaddrinfo`, looked up in a thread that many connections share."""
        old = time.monotonic() - self._lookup_at > _ADDRESSES_FOR_SECONDS
        if self._lookup is None or (self._lookup.ready() and old):
            self._lookup_at = time.monotonic()
            self._lookup = gevent.get_hub().threadpool.spawn(
                _getaddrinfo, self._host, self._port, type=socket.SOCK_STREAM
            )
        try:
            found: list[Any] = self._lookup.get()
        except (OSError, UnicodeError) as error:
            if self.resolved:
                raise
            raise GeneratorError(f"{self._host} does not resolve: {error}") from error
        self.resolved = True
        return found


def _tls_context() -> ssl.SSLContext:
    """Trust what the suite's other clients do; `ca_file` comes from who started the load."""
    trust_also(os.environ.get(LOAD_CA_FILE))
    return tls_context(new=gevent.ssl.create_default_context)
