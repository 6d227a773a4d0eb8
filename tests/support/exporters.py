"""Pages of metrics as a test makes them up, over HTTP, and what exporters say of pods.

The names and labels are those that DCGM's exporter, cAdvisor and kube-state-metrics document.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

NAMESPACE = "system"


@dataclass
class Page:
    """A page at `/metrics`: one body for each scrape, and the last again."""

    bodies: list[bytes | Callable[[], bytes]]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    url: str = ""

    def next(self) -> bytes:
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        return body if isinstance(body, bytes) else body()


@contextmanager
def exposed(*pages: Page) -> Iterator[None]:
    """Serve each page on a free port; its `url` says where."""
    servers = [_server(page) for page in pages]
    for server in servers:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _server(page: Page) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.next()
            with suppress(OSError):  # a client that wants no more
                self.answer(body)

        def answer(self, body: bytes) -> None:
            self.send_response(page.status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    page.url = f"http://127.0.0.1:{server.server_address[1]}"
    return server


def dcgm(*pods: str) -> bytes:
    """One GPU for each pod: 25% in use, 60 of 80 GiB used."""
    lines = []
    for index, pod in enumerate(pods):
        labels = (
            f'gpu="{index}",UUID="GPU-{index}",device="nvidia{index}",modelName="NVIDIA H100",'
            f'Hostname="node-a",container="vllm",namespace="{NAMESPACE}",pod="{pod}"'
        )
        lines += [
            f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} 25",
            f"DCGM_FI_DEV_FB_USED{{{labels}}} {60 * 1024}",
            f"DCGM_FI_DEV_FB_FREE{{{labels}}} {20 * 1024}",
        ]
    return _text(lines)


def cadvisor(*pods: str) -> bytes:
    """Each pod uses half a core, 3 GiB, and 1,000 bytes a second in, 200 out, on two interfaces.

    The pod's own sum and its pause container are there, too. Samples have times of their own.
    """
    now = time.time_ns() // 1_000_000
    seconds, lines = now / 1000, []
    for pod in pods:
        for container, image, share in (
            ("", "", 1.0),
            ("POD", "pause:3.9", 0.0),
            ("vllm", "vllm:1", 0.8),
            ("proxy", "envoy:1", 0.2),
        ):
            labels = (
                f'container="{container}",id="/kubepods/{pod}/{container}",image="{image}",'
                f'name="{container}",namespace="{NAMESPACE}",pod="{pod}"'
            )
            cpu, memory = 0.5 * share * seconds, 3 * share * 2**30
            lines += [
                f'container_cpu_usage_seconds_total{{cpu="total",{labels}}} {cpu:.6f} {now}',
                f"container_memory_working_set_bytes{{{labels}}} {memory:.0f} {now}",
            ]
        for interface in ("eth0", "net1"):
            labels = (
                f'id="/kubepods/{pod}",image="",interface="{interface}",name="",'
                f'namespace="{NAMESPACE}",pod="{pod}"'
            )
            lines += [
                f"container_network_receive_bytes_total{{{labels}}} {500 * seconds:.3f} {now}",
                f"container_network_transmit_bytes_total{{{labels}}} {100 * seconds:.3f} {now}",
            ]
    return _text(lines)


def kube_state(*pods: str) -> bytes:
    """All pods are ready, each restarted twice, with limits for the server's container alone."""
    lines = []
    for pod in pods:
        labels = f'namespace="{NAMESPACE}",pod="{pod}",uid="u-{pod}"'
        lines += [
            f'kube_pod_status_ready{{{labels},condition="true"}} 1',
            f'kube_pod_status_ready{{{labels},condition="false"}} 0',
            f'kube_pod_container_status_restarts_total{{{labels},container="vllm"}} 2',
            f'kube_pod_container_status_restarts_total{{{labels},container="proxy"}} 0',
        ]
        lines += [
            f"kube_pod_container_resource_limits{{{labels},"
            f'container="{container}",resource="memory",unit="byte",node="node-a"}} {2**33}'
            for container in ("vllm", "proxy")
        ]
    return _text(lines)


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
