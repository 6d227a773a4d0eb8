"""A server that answers each request with whatever bytes the test gives it."""

import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[[socket.socket, bytes], None]
"""Answers the request on the connection."""
_PAUSE_SECONDS = 0.02


@contextmanager
def hostile(script: Script, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the URL of a server whose every connection is the script's, once a request came."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        threading.Thread(target=_accept, args=(server, script, over, context), daemon=True).start()
        try:
            yield f"http{'s' if context else ''}://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def _accept(
    server: socket.socket, script: Script, over: threading.Event, context: ssl.SSLContext | None
) -> None:
    with suppress(OSError):
        while not over.is_set():
            connection, _ = server.accept()
            threading.Thread(
                target=_answer, args=(connection, script, context), daemon=True
            ).start()


def _answer(connection: socket.socket, script: Script, context: ssl.SSLContext | None) -> None:
    with (
        suppress(OSError),
        connection
        if context is None
        else context.wrap_socket(connection, server_side=True) as connection,
    ):
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := connection.recv(65536)):
                return
            request += data
        script(connection, request)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def sends(data: bytes) -> Script:
    """Send `data`, and no more."""
    return lambda connection, _request: connection.sendall(data)


def _for_ever(first: bytes, again: bytes, pause: float = _PAUSE_SECONDS) -> Script:
    def script(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(again)
            time.sleep(pause)

    return script


def _bomb() -> bytes:
    """4 GiB of zeros in 4 MB of gzip, but for its end."""
    packer = zlib.compressobj(wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + block * 4096


def _gzip_bomb(connection: socket.socket, _request: bytes) -> None:
    connection.sendall(_OK + b"Content-Encoding: gzip\r\n\r\n")
    connection.sendall(_bomb())


_OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS: dict[str, Script] = {
    "nothing": lambda _connection, _request: time.sleep(60),
    "trickled headers": _for_ever(_OK + b"X: ", b"x"),
    "endless 1xx": _for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.0),
    "a trickled body": _for_ever(_OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "an endless body": _for_ever(
        _OK + b"Transfer-Encoding: chunked\r\n\r\n",
        b"10000\r\n" + b"data: " + b"x" * 65528 + b"\n\n" + b"\r\n",
        pause=0.0,
    ),
    "a gzip bomb": _gzip_bomb,
}
"""Answers that never end, or only when they have filled the memory."""
