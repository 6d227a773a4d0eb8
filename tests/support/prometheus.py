"""A real Prometheus on loopback that scrapes what a test names."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from cluster.control_plane import wait_until_ok
from cluster.required import debian_tool

from vllm_rollout.load.process_group import ProcessGroup
from vllm_rollout.ports import free_port

SCRAPE_INTERVAL = "250ms"


def until(holds: Callable[[], bool], *, what: str, seconds: float = 150) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Scrape the base URLs of `targets`, each with its labels; gives Prometheus' own URL."""
    port = free_port()
    config = {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": SCRAPE_INTERVAL},
        "scrape_configs": [
            {
                "job_name": "vllm",
                "static_configs": [
                    {"targets": [url.removeprefix("http://")], "labels": dict(labels)}
                    for url, labels in targets.items()
                ],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        debian_tool("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    with (
        ProcessGroup(command, env={}, cwd=folder, log=folder / "prometheus.log"),
        httpx.Client(base_url=url) as client,
    ):
        wait_until_ok(client, "/-/ready")
        yield url
