"""A tunnel whose API server does not keep to the protocol: the connection ends, and it is named."""

import base64
import hashlib
import re
import socket
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.hostile import ENDLESS, Script, hostile

from vllm_rollout.platform.kubernetes import port_forward
from vllm_rollout.platform.kubernetes.port_forward import PortForward

_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def endless_message(connection: socket.socket, request: bytes) -> None:
    """Open a WebSocket, and send one message that never ends."""
    found = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
    assert found
    accepted = base64.b64encode(hashlib.sha1(found[1] + _ACCEPT).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accepted
    )
    connection.sendall(b"\x82\x7f" + (1 << 62).to_bytes(8, "big"))
    while True:
        connection.sendall(bytes(1 << 16))


def api_at(address: str) -> Any:
    configuration = SimpleNamespace(auth_settings=dict, ssl_ca_cert=None)
    core = SimpleNamespace(api_client=SimpleNamespace(configuration=configuration))
    return SimpleNamespace(address=address, core=core)


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (ENDLESS["trickled headers"], "does not answer"),
        (ENDLESS["endless 1xx"], "does not answer"),
        (endless_message, "cut a connection"),
    ],
    ids=["trickled headers", "endless 1xx", "an endless message"],
)
def test_an_api_server_that_never_ends_ends_the_connection(
    script: Script, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_forward, "_CONNECT_SECONDS", 0.5)
    with hostile(script) as address:
        tunnel = PortForward(
            api_at(address), namespace="n", choose=lambda: ("pod", 8000), destination="d"
        )
        try:
            with socket.create_connection(("127.0.0.1", urlsplit(tunnel.url).port or 0)) as client:
                assert client.recv(1) == b""
            assert named in tunnel.errors.what
        finally:
            tunnel.close()
