"""A tunnel to pods: a local port, forwarded through the API server.

What `kubectl port-forward` does for one pod, with a choice for each connection. Protocol: the
WebSocket form of the pods' `portforward` subresource, `v4.channel.k8s.io`, where each message
begins with its channel: 0 for the port's data, 1 for its errors, and the first message of each
channel names the port.
"""

import asyncio
import atexit
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import aiohttp

from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError
from vllm_rollout.model.text import shown
from vllm_rollout.platform.base import PathErrors
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi

_log = logging.getLogger(__name__)

_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_CHUNK_BYTES = 1 << 16
_LARGEST_MESSAGE_BYTES = 1 << 22
"""Of the API server; it passes on what a pod sends in pieces of some 32 kB."""
_START_SECONDS = 10.0
_SLOW_SECONDS = 3.0
"""An API server that takes longer to connect to a pod is noted: its client may not wait so long."""
_CONNECT_SECONDS = 30.0
_CUT_ATTEMPTS = 100
_CUT_PAUSE_SECONDS = 0.01


Choose = Callable[[], tuple[str, int]]
"""The name and the port of the pod that the next connection goes to.

Raises:
    UnreachableError: the API server does not say.
    RolloutError: there is none; the connection is closed then.
"""


class PortForward:
    """Listens on 127.0.0.1 until `close`, or until this process ends.

    A connection for which there is no pod, or that the API server refuses, is closed at once: the
    client sees an error and never another pod's answer. `destination` is its name in messages.

    `errors` are the API server's. That no pod is ready, that the pod is gone or refuses to
    connect, is none of them: a Service would be no better off.
    """

    def __init__(
        self, api: KubernetesApi, *, namespace: str, choose: Choose, destination: str
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._choose = choose
        self._destination = destination
        self.errors = PathErrors(address=api.address)
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve(started)),
            daemon=True,
            name=f"tunnel to {destination}",
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{started.result(_START_SECONDS)}"
        atexit.register(self.close)

    def close(self) -> None:
        """End every connection and stop listening."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_START_SECONDS)
            self._loop.close()

    async def _serve(self, started: "Future[int]") -> None:
        try:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        except OSError as error:
            started.set_exception(error)
            return
        connector = aiohttp.TCPConnector(
            limit=0, ssl=_ssl_context(self._api), socket_factory=self._socket
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS[0])
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            started.set_result(server.sockets[0].getsockname()[1])
            await self._stop.wait()
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # the clients' ends are closed by the loop's next round
        await self._cut()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        self._sockets.add(made)
        return made

    async def _cut(self) -> None:
        """See closed what still waits for the API server to end its side of TLS.

        The loop ends after this, and with it what would close them.
        """
        for _ in range(_CUT_ATTEMPTS):
            waiting = [each for each in self._sockets if each.fileno() >= 0]
            if not waiting:
                return
            for each in waiting:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            await asyncio.sleep(_CUT_PAUSE_SECONDS)

    def record_error(self, what: str) -> None:
        """Record an error of the API server."""
        _log.warning("the path to %s: %s", self._destination, what)
        self.errors = PathErrors(
            count=self.errors.count + 1, what=what, address=self.errors.address
        )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with await self._open() as websocket:
                await _pass_on(reader, writer, websocket, self._api.address)
        except UnreachableError as error:
            self.record_error(f"{error}. {error.remedy}".rstrip())
        except RolloutError as error:
            _log.warning("tunnel to %s: %s", self._destination, error)
        finally:
            # Only now: who sees the end of the connection finds the error recorded.
            writer.close()

    async def _open(self) -> aiohttp.ClientWebSocketResponse:
        """A connection to the next pod.

        Raises:
            UnreachableError: the API server does not make one.
            DeployError: no pod is ready, or this one is gone.
        """
        address = self._api.address
        late = f"{address} has made no connection to a pod within {_SLOW_SECONDS:g} s"
        slow = self._loop.call_later(_SLOW_SECONDS, self.record_error, late)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                pod, port = await self._loop.run_in_executor(None, self._choose)
                headers = await self._loop.run_in_executor(None, _credentials, self._api)
                return await self._session.ws_connect(
                    f"{address}/api/v1/namespaces/{self._namespace}/pods/{pod}/portforward",
                    params={"ports": str(port)},
                    protocols=(_PROTOCOL,),
                    headers=headers,
                    max_msg_size=_LARGEST_MESSAGE_BYTES,
                )
        except aiohttp.WSServerHandshakeError as error:
            what = f"pods/portforward in namespace {self._namespace}"
            raise self._api.refusal(error.status, error.message, "create", what) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(
                f"{address} does not answer ({str(error) or type(error).__name__})", address=address
            ) from error
        finally:
            slow.cancel()


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    websocket: aiohttp.ClientWebSocketResponse,
    address: str,
) -> None:
    """Pass on what the client and the pod send, until one of them ends it. Raises: as `_receive`"""
    sending = asyncio.create_task(_send(reader, websocket))
    receiving = asyncio.create_task(_receive(websocket, writer, address))
    tasks = (sending, receiving)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done() or not sending.result():
            await receiving
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send(reader: asyncio.StreamReader, websocket: aiohttp.ClientWebSocketResponse) -> bool:
    """Pass on what the client sends until it sends no more (True), or nobody takes it (False)."""
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK_BYTES):
            try:
                await websocket.send_bytes(bytes([_DATA]) + data)
            except (aiohttp.ClientError, ConnectionError):
                return False
    return True


async def _receive(
    websocket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter, address: str
) -> None:
    """Pass on what the pod sends until it, or the client, ends the connection.

    Raises:
        DeployError: the kubelet says what went wrong.
        UnreachableError: the connection ended, and neither of them had ended it.
    """
    opened = set()
    while True:
        message = await websocket.receive()
        if message.type is aiohttp.WSMsgType.CLOSE:
            return
        if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
            raise UnreachableError(f"{address} cut a connection to a pod", address=address)
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel not in opened:
            opened.add(channel)
        elif channel == _ERROR:
            raise DeployError(f"port-forward: {shown(data.decode(errors='replace'))}")
        else:
            try:
                writer.write(data)
                await writer.drain()
            except ConnectionError:
                return  # the client has gone


def _credentials(api: KubernetesApi) -> dict[str, str]:
    """The headers that identify this client; a token that expires is read again."""
    wanted = api.core.api_client.configuration.auth_settings().values()
    return {each["key"]: each["value"] for each in wanted if each["in"] == "header"}


def _ssl_context(api: KubernetesApi) -> Any:
    """Return the kubeconfig's TLS settings; True is the system's default, for plain HTTP too."""
    configuration = api.core.api_client.configuration
    if not api.address.startswith("https"):
        return True
    # The kubeconfig alone says whom to trust, as for the client beside it.
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)  # noqa: TID251
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context
