"""One HTTP request and its answer, or how it failed."""

import asyncio
import ssl
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_rollout.model.text import NOTHING, Printable, shown

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
monotonic = partial(time.monotonic)
"""The clock that measures answers: no test's fake of `time` gets at it, freezegun's neither."""
_BOM = b"\xef\xbb\xbf"

_AUTHORITY = (
    "Name the file with your authority's certificates: `ca_file` in the policy, or SSL_CERT_FILE."
)
_OTHER_HOST = "Name the host that the certificate is for, or have it issued for this one, too."
_BY_VERIFY_CODE = {
    9: "See the clocks of both machines: the certificate is not valid yet.",
    10: "Renew the server's certificate: it has expired.",
    62: _OTHER_HOST,
    64: _OTHER_HOST,
}
"""By OpenSSL's numbers for what is wrong with a certificate (`man verify`)."""
_PLAIN = "Write http:// in place of https://"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")

Sink = Callable[[bytes], bool]
"""Takes the next bytes of a body; False if no more are wanted."""
Begin = Callable[[int, float], Sink | None]
"""Called with the status, and when the request was sent, by the monotonic clock."""


class Failure(StrEnum):
    """How a request failed, in order of time."""

    NOT_SENT = "not sent"
    """The URL, a header or a certificate file cannot be used."""
    NO_CONNECTION = "no connection"
    """Nothing was sent: no name, no route, no listener, no TLS, or none of them in time."""
    UNTRUSTED = "certificate not trusted"
    """Nothing was sent: the server's certificate is not from a trusted authority."""
    LATE = "late"
    """The request was sent, and no whole answer came within the deadline."""
    BROKEN = "broken"
    """The answer broke off, or is no HTTP."""
    TOO_LARGE = "too large"
    UNREADABLE = "unreadable"
    """A whole answer whose encoding or JSON cannot be read."""


class HttpError(Exception):
    """No answer that can be used; the text is printable. `status` is 0 before the headers came.

    `remedy` says what to do, where the failure itself shows it.
    """

    def __init__(self, failure: Failure, reason: str, *, status: int = 0, remedy: str = "") -> None:
        self.failure = failure
        self.reason: Printable = shown(reason)
        self.status, self.remedy = status, remedy
        super().__init__(self.reason)

    @property
    def unreachable(self) -> bool:
        """True if no connection was made: nothing is known of the server."""
        return self.failure in (Failure.NOT_SENT, Failure.NO_CONNECTION, Failure.UNTRUSTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """A whole answer. `seconds` is from sending the request, without the time to connect."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    seconds: float
    redirects_to: Printable = NOTHING
    """Where a redirect that was not followed leads; else empty."""

    def header(self, name: str) -> str:
        """The first header of that name; empty without one."""
        return next((v for n, v in self.headers if n.lower() == name.lower()), "")

    def json(self, kind: type[T]) -> T:
        """The body as JSON of that type.

        Raises:
            HttpError: it is not.
        """
        import msgspec

        try:
            return msgspec.json.decode(self.body.removeprefix(_BOM), type=kind)
        except (ValueError, RecursionError) as error:
            raise HttpError(
                Failure.UNREADABLE, f"HTTP {self.status}, and no JSON: {error}", status=self.status
            ) from error


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        max_bytes: int,
        most_redirects: int,
        timeout_seconds: float,
        sink: Begin | None,
        *,
        read: bool,
    ) -> None:
        self._max_bytes, self._redirects_left = max_bytes, most_redirects
        self._timeout_seconds, self._sink, self._read = timeout_seconds, sink, read
        self._status = 0
        self._started = monotonic()
        self._sent: float | None = None
        self._connected: Any = None
        self._in_handshake = False

    async def run(
        self, client: "Callable[[], httpx.AsyncClient]", method: str, url: str, **content: Any
    ) -> HttpAnswer:
        """Send it, and take what comes. Raises: HttpError."""
        import httpx

        try:
            request = client().build_request(
                method, url, extensions={"trace": self._trace}, **content
            )
        except (httpx.InvalidURL, ValueError, OSError) as error:
            # Its text may hold a key.
            why = "certificate file" if isinstance(error, OSError) else "URL or a header"
            raise HttpError(
                Failure.NOT_SENT, f"the {why} cannot be used ({type(error).__name__})"
            ) from None
        try:
            async with asyncio.timeout(self._timeout_seconds) as deadline:
                return await self._answer(client(), request)
        except HttpError:
            raise
        except Exception as error:
            if self._in_handshake:  # which httpcore leaves open when its time is over
                await self._connected.aclose()
            raise self._error(error, expired=deadline.expired()) from error

    async def _answer(self, client: "httpx.AsyncClient", request: "httpx.Request") -> HttpAnswer:
        while True:
            self._sent = None
            response = await client.send(request, stream=True)
            try:
                self._status = response.status_code
                follows = response.next_request
                if follows is not None and self._redirects_left:
                    self._redirects_left -= 1
                    request = follows
                    continue
                body = await self._body(response) if self._read else b""
                return HttpAnswer(
                    status=self._status,
                    headers=response.headers.multi_items(),
                    body=body,
                    seconds=monotonic() - (self._sent or self._started),
                    redirects_to=shown(str(follows.url)) if follows else NOTHING,
                )
            finally:
                await response.aclose()

    async def _body(self, response: "httpx.Response") -> bytes:
        whole = bytearray()
        take = self._sink(self._status, self._sent or self._started) if self._sink else None
        decoder = _decoder(response.headers.get("Content-Encoding", ""), self._status)
        raw = size = 0
        async for data in response.aiter_raw():
            raw += len(data)
            if decoder is not None:
                data = decoder.decompress(data, self._max_bytes - size + 1)  # noqa: PLW2901
            size += len(data)
            if max(raw, size) > self._max_bytes:
                raise HttpError(
                    Failure.TOO_LARGE,
                    f"the answer is longer than {self._max_bytes:,} bytes",
                    status=self._status,
                )
            if take is None:
                whole += data
            elif data and not take(data):
                break
        else:
            if decoder is not None and raw and not decoder.eof:
                raise _unreadable("the answer's gzip ends before its end", self._status)
        return bytes(whole)

    async def _trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Note when the request is sent: what took its time before is no answer's."""
        if name == "connection.connect_tcp.complete":
            self._connected = info["return_value"]
        if name in ("connection.start_tls.started", "connection.start_tls.complete"):
            self._in_handshake = name.endswith(".started")
        if name == "http11.send_request_headers.started":
            self._sent = monotonic()

    def _error(self, error: Exception, *, expired: bool) -> HttpError:
        import httpx

        within = f"within {self._timeout_seconds:g} s"
        sent = self._sent is not None
        if expired and not sent:
            if self._in_handshake:
                return HttpError(
                    Failure.NO_CONNECTION,
                    f"it takes connections and ends no TLS handshake {within}",
                    remedy=f"{_PLAIN} if it speaks plain HTTP; else see why it hangs.",
                )
            return HttpError(Failure.NO_CONNECTION, f"no connection {within}")
        if expired or (isinstance(error, httpx.TimeoutException) and sent):
            return HttpError(Failure.LATE, f"no complete answer {within}", status=self._status)
        if isinstance(error, httpx.LocalProtocolError) or (
            isinstance(error, httpx.UnsupportedProtocol) and not sent
        ):
            # Its text may hold a header, with a key.
            return HttpError(Failure.NOT_SENT, f"the request is not valid ({type(error).__name__})")
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            return _no_connection(error, text)
        if not self._status and isinstance(error, (httpx.ReadError, httpx.RemoteProtocolError)):
            text = f"the connection was closed before any answer ({type(error).__name__})"
        if isinstance(error, zlib.error):
            return _unreadable(f"the answer's gzip cannot be read: {error}", self._status)
        if isinstance(error, httpx.TimeoutException):
            return HttpError(Failure.LATE, text, status=self._status)
        return HttpError(Failure.BROKEN, text, status=self._status)


def _decoder(encodings: str, status: int) -> "zlib._Decompress | None":
    """Return a decoder for a body of these encodings; None where there is nothing to decode."""
    named = [each for each in encodings.lower().replace(" ", "").split(",") if each]
    named = [each for each in named if each != "identity"]
    if not named:
        return None
    if named in (["gzip"], ["x-gzip"]):
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    raise _unreadable(f"the answer's encoding {encodings!r} was not asked for", status)


def _unreadable(reason: str, status: int) -> HttpError:
    return HttpError(Failure.UNREADABLE, reason, status=status)


def _no_connection(error: Exception, text: str) -> HttpError:
    """The error of a connection that was not made; one of TLS has what to do about it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    if isinstance(found, ssl.SSLCertVerificationError):
        why = found.verify_message
        return HttpError(
            Failure.UNTRUSTED,
            f"its certificate is not trusted: {why}",
            remedy=_BY_VERIFY_CODE.get(found.verify_code, _AUTHORITY),
        )
    code = found.reason if isinstance(found, ssl.SSLError) else ""
    if code in _NO_TLS:
        return HttpError(
            Failure.NO_CONNECTION,
            f"it speaks no TLS ({code})",
            remedy=f"{_PLAIN}.",
        )
    return HttpError(Failure.NO_CONNECTION, text)
