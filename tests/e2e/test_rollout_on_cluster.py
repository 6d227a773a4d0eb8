"""Whole rollouts through the real command lines, on a real API server under Helm 3 and Helm 4.

The first test goes all the way by command lines alone; the others begin with builds in place
(`support.seeded`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.behaviour import HEALTHY
from cluster.faulty import FaultyDoor, Refusal
from cluster.fixtures import Namespace
from cluster.registry import Registry, running_registry
from support.seeded import deployed, staged
from support.short_policy import short_policy

from vllm_rollout.model.errors import ExitCode
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.store import object_name
from vllm_rollout.settings import Settings, load_settings

# Some forty processes one after the other: minutes, more of them beside other tests.
pytestmark = pytest.mark.timeout(1800)

MODEL = "llama-2-7b"
ACCOUNT = "vllm-rollout-promote"
POLICY: dict[str, Any] = {
    **short_policy(rate=60, seconds=4, expected=45),
    "deploy_timeout": "60s",
}
# What a machine that is busy with other tests is slow at is not what is tested here.
POLICY["environments"]["staging"]["gates"]["latency"] = {"limit": "20s"}
POLICY["environments"]["development"]["gates"]["response_time"] |= {"limit": "30s"}
# Time for the API server to go and come back, and for the SLO to be judged after that.
LONG_WATCH = ("--set", "watch.duration=25s", "--set", "watch.slo.within=24s")


@dataclass
class Site:
    """A folder with policy and values, a namespace, an image registry and one Helm on PATH.

    Everything is done with the rights of the Role `promote` of the chart rollout-roles.
    """

    folder: Path
    namespace: Namespace
    helm: str
    registry: Registry
    kubeconfig: Path = Path()

    def log_in(self, server: str = "") -> None:
        """Have a token of the Role's account; `server` is by what the cluster is reached."""
        self.kubeconfig = self.namespace.cluster.control_plane.kubeconfig(
            f"{self.namespace.name}-promote",
            server=server,
            token=self.namespace.token(ACCOUNT),
            namespace=self.namespace.name,
        )

    def start(self, *words: str) -> "subprocess.Popen[str]":
        tools = self.folder / "bin"
        tools.mkdir(exist_ok=True)
        if not (tools / "helm").exists():
            (tools / "helm").symlink_to(self.helm)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
        return subprocess.Popen(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=self.folder,
            env={
                **kept,
                "PATH": f"{tools}:{kept['PATH']}",
                "KUBECONFIG": str(self.kubeconfig),
                "VLLM_ROLLOUT_API_KEY": "unused-by-this-server",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        with self.start(*words) as process:
            printed, _ = process.communicate(timeout=600)
        return process.returncode, printed

    def values(self, revision: str) -> dict[str, Any]:
        return {
            "model": {"name": MODEL, "path": "/models/llama", "revision": revision},
            "image": {"repository": f"{self.registry.host}/vllm", "tag": "v1"},
        }

    @property
    def settings(self) -> Settings:
        """By which builds are put in place: an administrator's, and nothing is checked before."""
        return load_settings(
            policy_file=str(self.folder / "rollout.yaml"),
            overrides={
                "kubernetes.helm": self.helm,
                "environments.development.preflight": False,
            },
        )

    def in_development(self, revision: str) -> None:
        """Have a build in development."""
        settings = self.settings
        deployed(
            settings.reader(),
            settings.policy,
            settings.deployment(MODEL, "development"),
            self.values(revision),
        )

    def to_staging(self, revision: str) -> None:
        """Have a build in staging that has passed development's gates."""
        staged(self.settings, MODEL, self.values(revision), self.folder)

    def helm_history(self) -> list[dict[str, Any]]:
        listed = subprocess.run(
            [self.helm, "history", f"{MODEL}-production", "-n", self.namespace.name, "-o", "json"],
            env={**os.environ, "KUBECONFIG": str(self.namespace.kubeconfig)},
            capture_output=True,
            text=True,
            check=True,
        )
        entries: list[dict[str, Any]] = json.loads(listed.stdout)
        return entries

    @property
    def helm_major(self) -> int:
        return Helm(self.helm).version.major


@pytest.fixture
def site(tmp_path: Path, namespace: Namespace, helm_binary: str) -> Iterator[Site]:
    policy = POLICY | {"namespace": namespace.name}
    if Helm(helm_binary).version.major == 3:
        # Services are reached directly; under Helm 4 their names mean nothing: by a tunnel.
        url = f"{namespace.cluster.services.url}/{{namespace}}/{{model}}-{{environment}}"
        policy["service_url"] = url
    (tmp_path / "rollout.yaml").write_text(yaml.safe_dump(policy))
    namespace.behave(HEALTHY.serving(ttft_seconds="0.01", inter_token_seconds="0.001"))
    namespace.install(helm_binary, "roles", "rollout-roles", "--set", "seesNodes=true")
    with running_registry(tmp_path) as registry:
        registry.push("vllm", "v1")
        site = Site(tmp_path, namespace, helm_binary, registry)
        site.log_in()
        yield site


def test_promoted_in_steps_then_broken_and_rolled_back_by_helm(site: Site) -> None:
    (site.folder / "one.yaml").write_text(yaml.safe_dump(site.values("one")))
    for words in (
        ("vllm-rollout", "deploy", MODEL, "--values", "one.yaml"),
        ("gate-and-promote", MODEL, "--to", "staging"),
    ):
        code, printed = site.run(*words)
        assert code == ExitCode.OK, printed
    code, printed = promoted_while_the_api_server_goes_and_comes_back(site)
    assert code == ExitCode.OK, printed
    site.to_staging("two")
    lines = []
    with site.start("gate-and-promote", MODEL, *LONG_WATCH) as rollout:
        for line in rollout.stdout or ():
            lines.append(line)
            if f"watching production/{MODEL} for" in line:
                kubelet = site.namespace.cluster.kubelet
                for server in kubelet.serving(site.namespace.name, f"{MODEL}-production"):
                    server.turn(error_rate=0.5)
        code = rollout.wait(300)

    assert code == ExitCode.ROLLED_BACK, "".join(lines)
    reached = "by a tunnel" if site.helm_major == 4 else site.namespace.cluster.services.url
    assert any(reached in line for line in lines)
    history = site.helm_history()
    assert {entry["status"] for entry in history[:-1]} == {"superseded"}
    assert history[-1]["status"] == "deployed"
    described = [entry["description"] for entry in history]
    steps = ["1 of 2 replicas" if "1 of 2 replicas" in text else "all" for text in described[:-1]]
    # The first rollout found nothing to keep; in the second each step takes its moves.
    assert steps == ["1 of 2 replicas", "all", *["1 of 2 replicas"] * 2, *["all"] * 3]
    if site.helm_major == 4:  # Helm 3 words a rollback itself
        assert "error rate" in described[-1]
    else:
        assert described[-1] == "Rollback to 2"
    stable = [
        deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        for deployment in site.namespace.list("deployments", "apis/apps/v1")
        if deployment["metadata"]["name"] == f"{MODEL}-production"
    ]
    assert "one" in str(stable)


def promoted_while_the_api_server_goes_and_comes_back(site: Site) -> tuple[int, str]:
    """In the watch: what is not seen meanwhile is said, and takes nothing back."""
    control_plane = site.namespace.cluster.control_plane
    lines = []
    with control_plane.back_in_the_end():
        with site.start("gate-and-promote", MODEL, *LONG_WATCH) as rollout:
            for line in rollout.stdout or ():
                lines.append(line)
                if f"watching production/{MODEL} for" in line:
                    control_plane.stop_api_server()
                if "the watch is blind" in line:
                    control_plane.start_api_server()
        code = rollout.wait(300)
    return code, "".join(lines)


@pytest.mark.parametrize("helm_binary", ["helm4"], indirect=True)
def test_a_cluster_that_goes_away_is_exit_4_and_nothing_is_promoted(site: Site) -> None:
    site.in_development("one")
    control_plane = site.namespace.cluster.control_plane
    lines: list[str] = []
    with control_plane.back_in_the_end():
        with site.start("gate-and-promote", MODEL, "--to", "staging") as rollout:
            for line in rollout.stdout or ():
                lines.append(line)
                if "development gates of" in line:
                    control_plane.stop_api_server()
        code = rollout.wait(300)
    assert code == ExitCode.UNREACHABLE, "".join(lines)
    assert control_plane.url in "".join(lines)
    deployments = site.namespace.list("deployments", "apis/apps/v1")
    assert [each["metadata"]["name"] for each in deployments] == [f"{MODEL}-development"]


@pytest.mark.parametrize("helm_binary", ["helm4"], indirect=True)
def test_a_busy_api_server_whose_watches_expire_is_asked_again(site: Site) -> None:
    """Each request's first attempt is refused: 429, 410 of a watch, 409 of one write."""
    decided = object_name(f"decided/{MODEL}")
    refused: set[str] = set()

    def refuse(method: str, path: str) -> Refusal | None:
        what, _, query = path.partition("?")
        status = 410 if "watch=" in query else 429
        if method == "PUT" and what.endswith(decided):
            status = 409
        key = f"{status} {method} {what}"
        if key in refused or "/portforward" in what:
            return None
        refused.add(key)
        return status, {"Retry-After": "0"}

    site.to_staging("one")
    with FaultyDoor(site.namespace.cluster, refuse) as door:
        site.log_in(door.url)
        code, printed = site.run("gate-and-promote", MODEL)
    assert code == ExitCode.OK, printed
    assert {key.split()[0] for key in refused} >= {"409", "429"}


@pytest.mark.parametrize("helm_binary", ["helm3"], indirect=True)
def test_a_token_that_ends_in_the_watch_is_exit_4_and_the_next_run_goes_on(site: Site) -> None:
    site.to_staging("one")
    cluster = site.namespace.cluster
    account = f"/api/v1/namespaces/{site.namespace.name}/serviceaccounts"
    lines = []
    with site.start("gate-and-promote", MODEL, "--set", "watch.duration=30s") as rollout:
        for line in rollout.stdout or ():
            lines.append(line)
            if f"watching production/{MODEL} for" in line:
                cluster.send("DELETE", f"{account}/{ACCOUNT}").raise_for_status()
        code = rollout.wait(300)
    assert code == ExitCode.UNREACHABLE, "".join(lines)
    assert "To go on watching: gate-and-promote" in "".join(lines).replace("\n", " ")
    assert "2 of 2 replicas" in site.helm_history()[-1]["description"]

    code, printed = site.run("gate-and-promote", MODEL)
    assert code == ExitCode.UNREACHABLE, printed
    assert "log in again" in printed

    site.namespace.create("serviceaccounts", {"metadata": {"name": ACCOUNT}})
    site.log_in()
    code, printed = site.run("gate-and-promote", MODEL)
    assert code == ExitCode.OK, printed
    assert "did not finish" in printed
