"""The chart of Roles as the real Helm lints and renders it."""

from pathlib import Path

import pytest
from cluster.required import each_helm

from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.store import object_name
from vllm_rollout.resources import CHARTS

CHART = CHARTS / "rollout-roles"


@each_helm
def test_a_purpose_that_is_off_has_no_account_and_no_rights(
    helm_binary: str, tmp_path: Path
) -> None:
    helm = Helm(helm_binary)
    assert "0 chart(s) failed" in helm.lint(CHART)
    everything = helm.template("roles", CHART, namespace="system")
    assert {each["metadata"]["name"] for each in everything} == {
        "vllm-rollout-gate",
        "vllm-rollout-promote",
        "vllm-rollout-watch",
        "vllm-rollout-qa",
        "vllm-rollout-system-objects",
        "vllm-rollout-system-documents",
    }
    values = tmp_path / "values.yaml"
    off = "{enabled: false, subjects: []}"
    values.write_text(
        f"promote: {off}\nqa: {off}\nadmission: {{enabled: false}}\nseesNodes: true\n"
    )
    fewer = helm.template("roles", CHART, namespace="system", values=[values])
    assert {each["metadata"]["name"] for each in fewer} == {
        "vllm-rollout-gate",
        "vllm-rollout-watch",
        "vllm-rollout-system-sees-nodes",
    }


def test_roles_and_policies_go_by_models_and_subjects(helm_binary: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        """
models: [a.b]
environments: [staging]
qa: {enabled: true, subjects: [{kind: Group, name: qa}, {kind: User, name: ada}]}
watch: {enabled: true, subjects: [{kind: ServiceAccount, name: w, namespace: other}]}
"""
    )
    made = Helm(helm_binary).template("roles", CHART, namespace="system", values=[values])
    watch, qa = (
        next(r for r in made if r["kind"] == "Role" and r["metadata"]["name"].endswith(purpose))
        for purpose in ("watch", "qa")
    )
    for rule in watch["rules"]:
        held = {"update", "patch", "delete"} & set(rule["verbs"])
        if "deployments" in rule["resources"] and held:
            assert rule["resourceNames"] == ["a.b-staging", "a.b-staging-canary"]
        if "leases" in rule["resources"] and held:
            assert rule["resourceNames"] == [object_name("a.b"), object_name("watch/a.b-staging")]
    assert {"apiGroups": ["vllm-rollout"], "resources": ["sign-offs"]}.items() <= qa["rules"][
        -1
    ].items()
    accounts = {r["metadata"]["name"] for r in made if r["kind"] == "ServiceAccount"}
    assert "vllm-rollout-qa" not in accounts  # whoever starts pods would have its token
    policy = next(r for r in made if r["kind"] == "ValidatingAdmissionPolicy")
    (condition,) = policy["spec"]["matchConditions"]
    for who in ("system:serviceaccount:other:w", '"ada"', '["qa"]'):
        assert who in condition["expression"]
    assert "(a[.]b)-(staging)(-canary)?" in str(policy["spec"]["validations"])


def test_a_mistyped_purpose_is_refused(helm_binary: str, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("promotion: {enabled: false, subjects: []}\n")
    with pytest.raises(UsageError, match="promotion"):
        Helm(helm_binary).template("roles", CHART, namespace="system", values=[values])
