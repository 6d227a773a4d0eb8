"""A door in front of the API server that refuses some requests; the others go through."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

from cluster.fixtures import Cluster

Refusal = tuple[int, dict[str, str]]
"""Status, and headers to send with it."""

_KINDS = {
    401: "Unauthorized",
    403: "Forbidden",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
}


class FaultyDoor:
    """Forwards over plain HTTP on loopback what `refuse(method, path)` gives None for.

    Answers are passed on as they come, those of watches and tunnels too. Who shows no token comes
    in as the administrator.
    """

    def __init__(self, cluster: Cluster, refuse: Callable[[str, str], Refusal | None]) -> None:
        self._cluster, self._refuse = cluster, refuse
        self.seen: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.url = ""

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(started)), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{started.result()}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, started: "Future[int]") -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        # One that was accepted just now begins meanwhile.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request; the connection ends with its answer."""
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.split(" ", 2)
                self.seen.append(f"{method} {path}")
                refusal = self._refuse(method, path)
                if refusal is None:
                    await self._forward(head, reader, writer)
                else:
                    writer.write(_refused(*refusal))
                    await writer.drain()
        finally:
            writer.close()

    async def _forward(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lines = head.rstrip("\r\n").split("\r\n")
        names = {line.partition(":")[0].lower() for line in lines[1:]}
        if "upgrade" not in names:
            lines = [line for line in lines if not line.lower().startswith("connection:")]
            lines.append("Connection: close")
        anonymous = "authorization" not in names
        if anonymous and (token := self._cluster.api.headers.get("Authorization")):
            lines.append(f"Authorization: {token}")
        server = urlsplit(self._cluster.control_plane.url)
        context = self._cluster.control_plane.tls("admin" if anonymous else "")
        answers, requests = await asyncio.open_connection(server.hostname, server.port, ssl=context)
        requests.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        both = [
            asyncio.create_task(_pass_on(reader, requests)),
            asyncio.create_task(_pass_on(answers, writer)),
        ]
        try:  # a watch whose client has gone would go on for ever
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            # Not `close`: that waits for the other side's end of TLS, and the loop may end before.
            requests.transport.abort()
            await asyncio.gather(*both, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


def _refused(status: int, headers: dict[str, str]) -> bytes:
    kind = _KINDS[status]
    content = f'{{"kind":"Status","reason":"{kind}","message":"{kind}","code":{status}}}'
    lines = [f"HTTP/1.1 {status} {kind}", "Content-Type: application/json", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", content]).encode()
