"""A door in front of the API server that refuses some requests; the others go through."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx

Refusal = tuple[int, dict[str, str]]
"""Status, and headers to send with it."""

_KINDS = {410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


class FaultyDoor:
    """Forwards over plain HTTP on loopback what `refuse(method, path)` gives None for."""

    def __init__(self, api: httpx.Client, refuse: Callable[[str, str], Refusal | None]) -> None:
        door = self
        self._api, self._refuse = api, refuse
        self.seen: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                door.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Refuse, or pass on."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.seen.append(f"{request.command} {request.path}")
        refusal = self._refuse(request.command, request.path)
        if refusal is None:
            kind = request.headers.get("Content-Type", "application/json")
            found = self._api.request(
                request.command, request.path, content=body, headers={"Content-Type": kind}
            )
            status, headers, content = found.status_code, {}, found.content
        else:
            status, headers = refusal
            content = (
                f'{{"kind":"Status","reason":"{_KINDS[status]}","message":"{_KINDS[status]}",'
                f'"code":{status}}}'
            ).encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json"}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
