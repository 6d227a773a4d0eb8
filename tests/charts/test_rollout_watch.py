"""The chart of the standing watch as the real Helm lints and renders it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.required import each_helm

from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.policy import load_policy
from vllm_rollout.resources import CHARTS

CHART = CHARTS / "rollout-watch"
VALUES: dict[str, Any] = {
    "model": "llama-2-7b",
    "image": "registry/vllm-rollout-watch@sha256:" + "5" * 64,
    "apiKeySecret": {"name": "llama-api", "key": "api-key"},
    "policy": {"triggers": {"health": {"consecutive": 5}}, "api_key_env": "OUR_KEY"},
}


def rendered(helm_binary: str, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump({**VALUES, **changes}))
    helm = Helm(helm_binary)
    assert "0 chart(s) failed" in helm.lint(CHART, values=[values])
    objects = helm.template("watch", CHART, namespace="models", values=[values])
    return {each["kind"]: each for each in objects}


@each_helm
def test_one_pod_watches_with_little_rights_and_the_key_from_a_secret(
    helm_binary: str, tmp_path: Path
) -> None:
    objects = rendered(helm_binary, tmp_path)

    deployment = objects["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["replicas"] == 1
    assert container["command"] == ["vllm-rollout", "watch", "llama-2-7b"]
    assert "--namespace=models" in container["args"]
    assert container["env"][-1] == {
        "name": "OUR_KEY",
        "valueFrom": {"secretKeyRef": {"name": "llama-api", "key": "api-key"}},
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["serviceAccountName"] == "vllm-rollout-watch"
    # One that makes no observations is begun again.
    (file,) = [each for each in container["args"] if each.startswith("--heartbeat=")]
    assert file.removeprefix("--heartbeat=") in container["livenessProbe"]["exec"]["command"][-1]
    # A rollback that was begun is not cut off.
    allowed = load_policy(None).deploy_timeout.total_seconds()
    assert pod["terminationGracePeriodSeconds"] > allowed


def test_nobody_reaches_the_watch_and_its_own_rules_say_whom_it_reaches(
    helm_binary: str, tmp_path: Path
) -> None:
    objects = rendered(helm_binary, tmp_path)
    spec = objects["NetworkPolicy"]["spec"]
    labels = objects["Deployment"]["spec"]["selector"]
    assert spec == {"podSelector": labels, "policyTypes": ["Ingress"], "ingress": []}
    rule = {"ports": [{"protocol": "TCP", "port": 6443}]}
    own = {"enabled": True, "egress": [rule]}
    spec = rendered(helm_binary, tmp_path, networkPolicy=own)["NetworkPolicy"]["spec"]
    assert (spec["policyTypes"], spec["egress"]) == (["Ingress", "Egress"], [rule])
    assert "NetworkPolicy" not in rendered(helm_binary, tmp_path, networkPolicy={"enabled": False})


def test_the_policy_is_one_that_the_suite_reads_and_its_change_makes_a_new_pod(
    helm_binary: str, tmp_path: Path
) -> None:
    first = rendered(helm_binary, tmp_path)
    second = rendered(helm_binary, tmp_path, policy={})

    written = tmp_path / "rollout.yaml"
    written.write_text(first["ConfigMap"]["data"]["rollout.yaml"])
    assert load_policy(written).triggers.health.consecutive == 5
    template = [each["Deployment"]["spec"]["template"]["metadata"] for each in (first, second)]
    assert template[0]["annotations"] != template[1]["annotations"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": ""}, "model is needed"), ({"image": ""}, "image is needed"), ({"x": 1}, "x")],
)
def test_what_is_missing_or_mistyped_is_named(
    helm_binary: str, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        rendered(helm_binary, tmp_path, **changes)
