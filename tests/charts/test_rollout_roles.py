"""The chart of Roles as the real Helm lints and renders it."""

from pathlib import Path

import pytest
from cluster.required import each_helm

from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.resources import CHARTS

CHART = CHARTS / "rollout-roles"


@each_helm
def test_a_purpose_that_is_off_has_no_account_and_no_rights(
    helm_binary: str, tmp_path: Path
) -> None:
    helm = Helm(helm_binary)
    assert "0 chart(s) failed" in helm.lint(CHART)
    everything = helm.template("roles", CHART, namespace="system")
    names = {each["metadata"]["name"] for each in everything}
    assert names == {
        "vllm-rollout-gate",
        "vllm-rollout-promote",
        "vllm-rollout-watch",
        "vllm-rollout-system-sees-nodes",
    }
    values = tmp_path / "values.yaml"
    values.write_text("promote: {enabled: false, subjects: []}\nseesNodes: false\n")
    fewer = helm.template("roles", CHART, namespace="system", values=[values])
    assert {each["metadata"]["name"] for each in fewer} == {
        "vllm-rollout-gate",
        "vllm-rollout-watch",
    }


def test_a_mistyped_purpose_is_refused(helm_binary: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("promotion: {enabled: false, subjects: []}\n")
    with pytest.raises(UsageError, match="promotion"):
        Helm(helm_binary).template("roles", CHART, namespace="system", values=[values])
