"""The accounts of the chart rollout-roles."""

from pathlib import Path

import pytest
import yaml
from cluster.fixtures import Namespace
from cluster.roles import MODEL, QA, As, account_of

from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform


@pytest.fixture
def acting_as(
    namespace: Namespace, helm_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> As:
    """The platform with the rights of one purpose; "admin" has all."""
    namespace.create("serviceaccounts", {"metadata": {"name": QA}})
    images = ["vllm/vllm-openai:", "vllm/vllm-openai@"]
    values = {
        "qa": {"enabled": True, "subjects": [{"kind": "ServiceAccount", "name": QA}]},
        "seesNodes": True,
        "models": [MODEL],
        "admission": {"enabled": True, "images": images, "signed": ["staging"]},
    }
    file = tmp_path / "roles.yaml"
    file.write_text(yaml.safe_dump(values))
    namespace.install(helm_binary, "roles", "rollout-roles", "--values", str(file))

    def acting_as(purpose: str) -> KubernetesPlatform:
        kubeconfig = namespace.kubeconfig
        if purpose != "admin":
            kubeconfig = namespace.cluster.control_plane.kubeconfig(
                f"{namespace.name}-{purpose}",
                token=namespace.token(account_of(purpose)),
                namespace=namespace.name,
            )
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        return namespace.platform(
            helm_binary, service_url="http://{model}-{environment}.{namespace}.svc:8000"
        )

    return acting_as
