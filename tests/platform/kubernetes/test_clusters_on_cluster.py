"""Where a release is: its history under Helm's storage driver, and its cluster."""

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.fixtures import Namespace, namespace_of, running_cluster
from support.real_runs import POLICY
from support.scripted_observer import scripted_observer
from support.world import ScriptedGates, healthy, passed_before, scripted_tools
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.observation import Observation
from vllm_rollout.platform.writer import ReleaseWriter, writer_of
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.lost_history import ensure_history
from vllm_rollout.rollout.run import Run, SystemClock
from vllm_rollout.settings import load_settings

MODEL = "llama-2-7b"
LONG = timedelta(seconds=60)
helm4 = pytest.mark.parametrize("helm_binary", ["helm4"], indirect=True)


def deploy(platform: ReleaseWriter, deployment: Deployment, version: str) -> int:
    """Bring one replica of a version to the deployment; gives the revision."""
    image = {"digest": "sha256:" + "5" * 64}
    values = {"model": {"name": MODEL, "revision": version}, "image": image}
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


@pytest.fixture
def far(namespace: Namespace, tmp_path: Path) -> Iterator[Namespace]:
    """The namespace of the same name in another cluster."""
    with (
        running_cluster(tmp_path / "far") as cluster,
        namespace_of(cluster, namespace.name) as far,
    ):
        yield far


@helm4
def test_production_in_another_cluster_is_promoted_to(
    namespace: Namespace,
    far: Namespace,
    helm_binary: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contexts: dict[str, Any] = {"current-context": "near"}
    for name, there in (("near", namespace), ("far", far)):
        for kind, entries in yaml.safe_load(there.kubeconfig.read_text()).items():
            if isinstance(entries, list):
                place = {"cluster": name, "user": name}
                entry = place if kind == "contexts" else entries[0][kind[:-1]]
                contexts.setdefault(kind, []).append({"name": name, kind[:-1]: entry})
    (tmp_path / "both").write_text(yaml.safe_dump(contexts))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "both"))
    settings = load_settings(
        namespace=namespace.name,
        overrides={
            **POLICY,
            "environments.development.preflight": False,
            "environments.production.replicas": 1,
            "environments.production.kubernetes": {"context": "far"},
            "ramp": [{"share": "100%", "hold": "0s"}],
            "kubernetes.helm": helm_binary,
        },
    )
    platform = writer_of(settings.reader())
    development, staging, production = (
        settings.deployment(MODEL, name) for name in settings.policy.order
    )
    deploy(writer_of(settings.at_home("staging").reader()), staging, "one")
    revision = platform.history(staging)[-1]
    passed_before(writer_of(settings.at_home("staging").reader()).store, development, revision)
    known = {each["metadata"]["name"] for each in namespace.list("configmaps")}
    gates = ScriptedGates(platform, SystemClock())
    gates.policy_digest = settings.policy.digest
    run = Run(
        id="run-1",
        source=staging,
        target=production,
        policy=settings.policy,
        who="ada",
        reason="a test",
        folder=tmp_path,
    )

    def see(_observer: object, deployment: Deployment) -> Observation:
        return Observation(probes=healthy(0), replicas=platform.replicas(deployment))

    with scripted_observer(see):
        evidence = gate_and_promote(scripted_tools(run, settings, gates, clock=SystemClock()))

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert platform.history(production)[-1].build == revision.build
    deployed = {
        name: {each["metadata"]["name"] for each in there.list("deployments", "apis/apps/v1")}
        for name, there in (("near", namespace), ("far", far))
    }
    assert deployed == {"near": {staging.release}, "far": {production.release}}
    assert {each["metadata"]["name"] for each in namespace.list("configmaps")} == known
    assert "--kube-context far" in platform.undo_command(production, None)
    for environment, kept in (("production", ["rollout/llama-2-7b"]), ("staging", [])):
        assert settings.at_home(environment).reader().store.keys("rollout/") == kept
