"""How long it takes from a fault in production to the old build serving again, and where it goes.

    python benchmarks/rollback_time.py [--runs 3] [--platform local|cluster] [--json FILE]

Production serves its second build; `vllm-rollout watch` stands over it and every request begins to
fail. Measured is, in seconds of this machine,

- detect: from the fault to the trigger that fired. This is the policy's: here an observation every
  0.2 s, and a complete outage for 1 s (the defaults: every 5 s, for 30 s);
- decide: from the trigger to the platform's rollback (the lease, the journal, the decision);
- act: until the old build is the one that serves;
- verified: until its pods, its health and an answer have shown that it does.

On the local platform the model server is the simulator, in processes; on a cluster it is a real
API server and a real Helm, and the simulator answers for the pods (tests/cluster/README.md). What
a model takes to load is not in it: on Kubernetes, that is most of `act`.
"""

import argparse
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cluster.behaviour import HEALTHY
from cluster.build_tools import tool
from cluster.fixtures import namespace_of, running_cluster
from support.short_policy import short_policy

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import read_evidence
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.platform.writer import ReleaseWriter
from vllm_rollout.rollout.audit_log import PassedRevisions
from vllm_rollout.settings import load_settings

MODEL = "llama-2-7b"
REPLICAS = 2
LONG = timedelta(minutes=3)
_FAULT = {"error_rate": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds from one end to the next."""

    detect: float
    decide: float
    act: float
    verified: float

    @property
    def in_all(self) -> float:
        """From the fault to the old build shown to serve."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured: a folder with a policy, a platform, builds, and a fault."""

    folder: Path
    platform: ReleaseWriter
    production: Deployment
    values: Callable[[str], Mapping[str, Any]]
    break_it: Callable[[], None]

    def deploy(self, version: str) -> None:
        """Bring all of production to a build, as if its gates had passed."""
        values = dict(self.values(version))
        build = self.platform.build(self.production, values)
        target = Target(build=build, values=values, replicas=REPLICAS, capacity=REPLICAS)
        made = self.platform.apply(self.production, target, description=version, timeout=LONG)
        PassedRevisions(self.platform.store).passed(self.production, made, "sha256:" + "0" * 64)


def measured(place: Place, run: int) -> Times:
    """Break a new build while it is watched; the times of its rollback."""
    place.deploy(f"good-{run}")
    place.deploy(f"bad-{run}")
    broken = fired = 0.0
    said: list[str] = []
    command = [str(Path(sys.executable).parent / "vllm-rollout"), "watch", MODEL, "--for", "5m"]
    with subprocess.Popen(
        command, cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as watch:
        for line in watch.stdout or ():
            said.append(line)
            if f"watching {place.production}, revision" in line and not broken:
                place.break_it()
                broken = time.time()
            if "a trigger fired" in line:
                fired = time.time()
    if watch.returncode != ExitCode.ROLLED_BACK:
        sys.exit(f"the watch ended with {watch.returncode}\n{''.join(said)}")
    files = place.folder.glob(f"reports/{MODEL}/*/evidence.json")
    steps = read_evidence(max(files, key=lambda file: file.stat().st_mtime_ns)).steps
    began = next(step for step in steps if step.title.startswith("rolling "))
    parts = next(step.detail for step in steps if "again, verified" in step.title)
    seconds = {
        part: float(found[1])
        for part in ("decide", "act", "verify")
        if (found := re.search(rf"{part} ([0-9.]+) s", parts))
    }
    return Times(
        detect=fired - broken,
        decide=began.at.timestamp() - fired + seconds["decide"],
        act=seconds["act"],
        verified=seconds["verify"],
    )


def _policy(**changes: Any) -> dict[str, Any]:
    return {**short_policy(rate=10, seconds=2, expected=5), **changes}


@contextmanager
def local() -> Iterator[Place]:
    """Processes on this machine."""
    serve = ["{python}", "-m", "vllm_rollout.simulator", "--port", "{port}", "--model", "{model}"]
    serve += ["--ttft-seconds", "0.01", "--inter-token-seconds", "0.001"]
    production = Deployment(MODEL, "production")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rollout.yaml").write_text(yaml.safe_dump(_policy(platform="local")))
        platform = load_settings(
            policy_file=str(folder / "rollout.yaml"),
            overrides={"local.state": str(folder / ".vllm-rollout")},
        ).reader()
        assert isinstance(platform, LocalPlatform)

        def break_it() -> None:
            for replica in platform.replicas(production):
                httpx.patch(f"{replica.address}/simulator/dials", json=_FAULT)

        try:
            yield Place(
                folder,
                platform,
                production,
                lambda version: {"command": serve, "model_revision": version},
                break_it,
            )
        finally:
            platform.stop_all()


@contextmanager
def cluster() -> Iterator[Place]:
    """A real API server and a real Helm."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_cluster(Path(name)) as running,
        namespace_of(running, f"rollback-{secrets.token_hex(4)}") as namespace,
    ):
        folder = Path(name)
        url = f"{running.services.url}/{{namespace}}/{{model}}-{{environment}}"
        policy = _policy(
            namespace=namespace.name,
            service_url=url,
            deploy_timeout="3m",
            kubernetes={"helm": str(tool("helm4"))},
        )
        (folder / "rollout.yaml").write_text(yaml.safe_dump(policy))
        os.environ["KUBECONFIG"] = str(namespace.kubeconfig)
        namespace.behave(HEALTHY.serving(ttft_seconds="0.01", inter_token_seconds="0.001"))
        production = Deployment(MODEL, "production", namespace.name)
        platform = load_settings(policy_file=str(folder / "rollout.yaml")).reader()

        def break_it() -> None:
            for server in running.kubelet.serving(namespace.name, production.release):
                server.turn(**_FAULT)

        yield Place(
            folder,
            platform,
            production,
            lambda version: {"model": {"name": MODEL, "revision": version}},
            break_it,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--platform", choices=("local", "cluster"), default="local")
    parser.add_argument("--json", type=Path, help="write every run's figures there")
    asked = parser.parse_args()
    os.environ.setdefault("VLLM_ROLLOUT_API_KEY", "unused-by-this-server")
    found = []
    for run in range(asked.runs):  # what was brought back is not left again: each its own place
        with {"local": local, "cluster": cluster}[asked.platform]() as place:
            found.append(measured(place, run))
    for part in (*(field.name for field in fields(Times)), "in_all"):
        figures = sorted(getattr(each, part) for each in found)
        sys.stdout.write(
            f"{part:8}  median {statistics.median(figures):6.2f} s   "
            f"from {figures[0]:.2f} to {figures[-1]:.2f} s   ({asked.runs} runs)\n"
        )
    if asked.json:
        asked.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
