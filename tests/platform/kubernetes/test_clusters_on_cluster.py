"""Where a release is: its history under Helm's storage driver, and its cluster."""

import subprocess
from datetime import timedelta

import pytest
from cluster.fixtures import Namespace
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.rollout.lost_history import ensure_history

MODEL = "llama-2-7b"
LONG = timedelta(seconds=60)
helm4 = pytest.mark.parametrize("helm_binary", ["helm4"], indirect=True)


def deploy(platform: KubernetesPlatform, deployment: Deployment, version: str) -> int:
    """Bring one replica of a version to the deployment; gives the revision."""
    values = {"model": {"name": MODEL, "revision": version}}
    target = Target(build=platform.build(deployment, values), values=values, replicas=1, capacity=1)
    return platform.apply(deployment, target, description=version, timeout=LONG).number


@helm4
def test_a_release_stays_with_its_first_driver_until_it_is_uninstalled(
    namespace: Namespace, helm_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    development = Deployment(MODEL, "development", namespace.name)
    monkeypatch.setenv("HELM_DRIVER", "configmap")
    assert deploy(namespace.platform(helm_binary), development, "one") == 1

    monkeypatch.delenv("HELM_DRIVER")
    later = namespace.platform(helm_binary)
    assert deploy(later, development, "two") == 2
    undo = later.undo_command(development, None)
    assert undo.startswith("HELM_DRIVER=configmap helm uninstall")

    by_hand = undo.replace(" helm ", f" {helm_binary} ", 1)
    subprocess.run(by_hand, shell=True, check=True, capture_output=True)
    assert later.history(development) == []
    with pytest.raises(UsageError, match="revision 1, by Helm's driver configmap"):
        ensure_history(later, development)
    options = ["--platform", "kubernetes", "-n", namespace.name]
    helm = ["--set", f"kubernetes.helm={helm_binary}"]
    uninstalled = CliRunner().invoke(
        app, ["uninstall", MODEL, "-e", "development", *options, *helm]
    )
    assert uninstalled.exit_code == 0, uninstalled.output
    again = namespace.platform(helm_binary)
    ensure_history(again, development)
    assert deploy(again, development, "one") == 1
    assert "HELM_DRIVER" not in again.undo_command(development, None)
