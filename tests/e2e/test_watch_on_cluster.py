"""The standing watch on a real API server: with the rights of its Role it rolls back by Helm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster.behaviour import HEALTHY
from cluster.fixtures import Namespace, eventually
from support.seeded import passed
from support.short_policy import short_policy

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.policy import load_policy

pytestmark = pytest.mark.timeout(600)

MODEL = "llama-2-7b"


@pytest.fixture
def account(namespace: Namespace, helm_binary: str) -> str:
    """The watch's account, with its Role."""
    namespace.install(helm_binary, "roles", "rollout-roles")
    return "vllm-rollout-watch"


@pytest.fixture
def folder(tmp_path: Path, namespace: Namespace, helm_binary: str) -> Path:
    """Production runs its second build, and a policy says how it is watched."""
    url = f"{namespace.cluster.services.url}/{{namespace}}/{{model}}-{{environment}}"
    content = {
        **short_policy(rate=60, seconds=4, expected=45),
        "namespace": namespace.name,
        "service_url": url,
        "deploy_timeout": "120s",
        "kubernetes": {"helm": helm_binary},
    }
    file = tmp_path / "rollout.yaml"
    file.write_text(yaml.safe_dump(content))
    namespace.behave(HEALTHY.serving(ttft_seconds="0.01", inter_token_seconds="0.001"))
    policy, platform = load_policy(file), namespace.platform(helm_binary, service_url=url)
    production = Deployment(MODEL, "production", namespace.name)
    for version in ("one", "two"):
        passed(platform, policy, production, {"model": {"name": MODEL, "revision": version}})
    return tmp_path


def test_the_watch_rolls_back_with_its_own_role(
    folder: Path, namespace: Namespace, account: str
) -> None:
    token = namespace.token(account)
    kubeconfig = namespace.cluster.control_plane.kubeconfig(
        f"{namespace.name}-watch", token=token, namespace=namespace.name
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    command = [str(Path(sys.executable).parent / "vllm-rollout"), "watch", MODEL, "--for", "9m"]
    printed = []
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**kept, "KUBECONFIG": str(kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as watch:
        for line in watch.stdout or ():
            printed.append(line)
            if f"watching production/{MODEL}, revision 2" in line:
                kubelet = namespace.cluster.kubelet
                for server in kubelet.serving(namespace.name, f"{MODEL}-production"):
                    server.turn(error_rate=1.0)
        code = watch.wait(60)

    assert code == ExitCode.ROLLED_BACK, "".join(printed)
    stable = [
        deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        for deployment in namespace.list("deployments", "apis/apps/v1")
    ]
    assert "--revision=one" in str(stable)
    assert list((folder / "deployments").glob(f"{MODEL}-*.md"))


@pytest.mark.usefixtures("account")
def test_the_api_server_takes_the_charts_objects(namespace: Namespace, helm_binary: str) -> None:
    image = "registry/vllm-rollout-watch@sha256:" + "5" * 64
    chosen = ["--set", f"model={MODEL},image={image}"]
    namespace.install(helm_binary, "watch", "rollout-watch", *chosen)

    def runs() -> bool:
        pods = namespace.list("pods")
        return any(pod["metadata"]["name"].startswith("watch-") for pod in pods)

    eventually(runs)
