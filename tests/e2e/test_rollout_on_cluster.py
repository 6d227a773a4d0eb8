"""Whole rollouts through the real command lines, on a real API server under Helm 3 and Helm 4."""

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
from cluster.fixtures import Namespace
from cluster.registry import Registry, running_registry
from support.short_policy import short_policy

from vllm_rollout.errors import ExitCode
from vllm_rollout.platform.kubernetes.helm import Helm

# Some forty processes one after the other: minutes, more of them beside other tests.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

MODEL = "llama-2-7b"
POLICY: dict[str, Any] = {
    **short_policy(rate=60, seconds=4, expected=45),
    "deploy_timeout": "60s",
}


@dataclass
class Site:
    """A folder with policy and values, a namespace, an image registry and one Helm on PATH."""

    folder: Path
    namespace: Namespace
    helm: str
    registry: Registry

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
                "KUBECONFIG": str(self.namespace.kubeconfig),
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

    def to_staging(self, revision: str) -> None:
        """Bring a build to staging by the shortest honest way."""
        values = self.folder / f"{revision}.yaml"
        build = {
            "model": {"name": MODEL, "path": "/models/llama", "revision": revision},
            "image": {"repository": f"{self.registry.host}/vllm", "tag": "v1"},
        }
        values.write_text(yaml.safe_dump(build))
        for words in (
            ("vllm-rollout", "deploy", MODEL, "--values", str(values)),
            ("gate-and-promote", MODEL, "--to", "staging"),
        ):
            code, printed = self.run(*words)
            assert code == 0, printed

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
    with running_registry(tmp_path) as registry:
        registry.push("vllm", "v1")
        yield Site(tmp_path, namespace, helm_binary, registry)


def test_promoted_in_steps_then_broken_and_rolled_back_by_helm(site: Site) -> None:
    site.to_staging("one")
    code, printed = site.run("gate-and-promote", MODEL)
    assert code == ExitCode.OK, printed
    site.to_staging("two")
    lines = []
    with site.start("gate-and-promote", MODEL) as rollout:
        for line in rollout.stdout or ():
            lines.append(line)
            if f"watching production/{MODEL} for" in line:
                kubelet = site.namespace.cluster.kubelet
                for server in kubelet.serving(site.namespace.name, f"{MODEL}-production"):
                    server.turn(error_rate=0.5)
        code = rollout.wait(60)

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
