"""The chart as the real Helm lints and renders it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.required import each_helm

from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.policy import load_policy
from vllm_rollout.resources import CHARTS

CHART = CHARTS / "vllm-deployment"
ENVIRONMENTS = ["development", "staging", "production"]
DIGEST = "sha256:" + "5" * 64

Objects = dict[tuple[str, str], dict[str, Any]]
Render = Callable[..., Objects]


@pytest.fixture
def render(helm_binary: str, tmp_path: Path) -> Render:
    """Render the chart: the environment's values, and over them the ones given."""

    def render(values: dict[str, Any] | None = None, environment: str = "production") -> Objects:
        own = tmp_path / "values.yaml"
        own.write_text(yaml.safe_dump(values or {}))
        objects = Helm(helm_binary).template(
            f"llama-2-7b-{environment}",
            CHART,
            namespace="system",
            values=[CHART / f"values-{environment}.yaml", own],
        )
        return {(each["kind"], each["metadata"]["name"]): each for each in objects}

    return render


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return only


@each_helm
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_environment_lints_strictly(helm_binary: str, environment: str) -> None:
    said = Helm(helm_binary).lint(CHART, values=[CHART / f"values-{environment}.yaml"])

    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert "WARNING" not in said


@each_helm
@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"modl": {"name": "x"}}, "modl"),
        ({"image": {"tag": "", "digest": ""}}, "image"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"replicaCount": -1}, "replicaCount"),
        ({"model": {"parameters": 0}}, "parameters"),
        ({"extraArgs": ["--api-key=sk-secret"]}, "extraArgs"),
        ({"apiKeySecret": {"name": "without-key"}}, "apiKeySecret"),
        ({"startupProbe": {"failureTreshold": 3}}, "failureTreshold"),
    ],
)
def test_the_schema_refuses_what_cannot_be_meant(
    render: Render, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        render(values)


def test_a_model_beyond_the_table_needs_its_own_threshold(render: Render) -> None:
    with pytest.raises(UsageError, match=r"startupProbe\.failureThreshold"):
        render({"model": {"parameters": 405}})

    objects = render({"model": {"parameters": 405}, "startupProbe": {"failureThreshold": 90}})
    served = container(objects["Deployment", "llama-2-7b-production"])
    assert served["startupProbe"]["failureThreshold"] == 90


@pytest.mark.parametrize(
    ("billions", "minutes"), [(0.5, 10), (7, 10), (13, 10), (34, 20), (70, 20)]
)
def test_the_startup_probe_waits_as_long_as_the_model_needs(
    render: Render, billions: float, minutes: int
) -> None:
    deployment = render({"model": {"parameters": billions}})["Deployment", "llama-2-7b-production"]
    probe = container(deployment)["startupProbe"]

    assert probe["httpGet"] == {"path": "/health", "port": "http"}
    assert probe["failureThreshold"] * probe["periodSeconds"] == minutes * 60
    assert deployment["spec"]["progressDeadlineSeconds"] > minutes * 60
    # The chart stands alone and so repeats the policy's numbers: they must stay the same.
    assert probe["failureThreshold"] == load_policy().startup_failure_threshold(billions)


@each_helm
def test_production_serves_what_the_workflow_asks_for(render: Render) -> None:
    objects = render({"image": {"digest": DIGEST}, "model": {"revision": "0a1b"}})

    deployment = objects["Deployment", "llama-2-7b-production"]
    server = container(deployment)
    assert deployment["spec"]["replicas"] == 4
    assert server["image"] == f"vllm/vllm-openai@{DIGEST}"
    assert server["args"][:2] == ["meta-llama/Llama-2-7b-hf", "--served-model-name=llama-2-7b"]
    assert "--revision=0a1b" in server["args"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server["resources"]["requests"]["nvidia.com/gpu"] == 1
    for probe in ("readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] == "/health"
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True

    service = objects["Service", "llama-2-7b-production"]
    assert service["spec"]["ports"][0]["port"] == 8000
    pod_labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pod_labels.items()
    assert pod_labels["app.kubernetes.io/instance"] == "llama-2-7b-production"

    kinds = {kind for kind, _ in objects}
    assert {"ServiceAccount", "PodDisruptionBudget"} <= kinds
    assert not {"HorizontalPodAutoscaler", "ServiceMonitor"} & kinds


def test_optional_objects_appear_when_asked_for(render: Render) -> None:
    objects = render({"autoscaling": {"enabled": True}, "serviceMonitor": {"enabled": True}})

    assert ("HorizontalPodAutoscaler", "llama-2-7b-production") in objects
    assert ("ServiceMonitor", "llama-2-7b-production") in objects


def test_a_network_policy_admits_whom_it_names(render: Render) -> None:
    name = ("NetworkPolicy", "llama-2-7b-production")
    assert name not in render()
    spec = render({"networkPolicy": {"enabled": True}})[name]["spec"]
    pods = {"app.kubernetes.io/instance": "llama-2-7b-production"}
    assert pods.items() <= spec["podSelector"]["matchLabels"].items()
    port = [{"protocol": "TCP", "port": "http"}]
    assert spec["ingress"] == [{"from": [{"podSelector": {}}], "ports": port}]
    assert spec["policyTypes"] == ["Ingress"]
    gateway = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}
    dns = {"ports": [{"protocol": "UDP", "port": 53}]}
    own = {"enabled": True, "from": [gateway], "egress": [dns]}
    spec = render({"networkPolicy": own})[name]["spec"]
    assert spec["ingress"] == [{"from": [gateway], "ports": port}]
    assert (spec["policyTypes"], spec["egress"]) == (["Ingress", "Egress"], [dns])


@pytest.mark.parametrize("scaled", [{"enabled": True, "maxReplicas": 8}, {"external": True}])
def test_the_number_of_scaled_pods_is_never_rendered(render: Render, scaled: Any) -> None:
    ramp = {"replicaCount": 5, "canary": {"replicaCount": 2, "handover": True}}
    for values in ({}, ramp):
        objects = render({"autoscaling": scaled, **values})
        assert "replicas" not in objects["Deployment", "llama-2-7b-production"]["spec"]
        scaler = objects.get(("HorizontalPodAutoscaler", "llama-2-7b-production"))
        assert (scaler is not None) == ("enabled" in scaled)
        if scaler:  # in a ramp it takes no pod away, and counts the canary's
            bounds = scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]
            assert bounds == ((5, 6) if values else (1, 8))


def test_secrets_are_referred_to_and_never_rendered(render: Render) -> None:
    objects = render(
        {
            "apiKeySecret": {"name": "llama-api", "key": "api-key"},
            "model": {"tokenSecret": {"name": "hugging-face", "key": "token"}},
        }
    )

    server = container(objects["Deployment", "llama-2-7b-production"])
    environment = {entry["name"]: entry for entry in server["env"]}
    assert environment["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "llama-api",
        "key": "api-key",
    }
    assert environment["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "hugging-face"
    assert not any(kind == "Secret" for kind, _ in objects)
    assert not any("key" in argument for argument in server["args"])
    test_pod = objects["Pod", "llama-2-7b-production-test"]
    assert test_pod["spec"]["containers"][0]["env"][-1]["name"] == "VLLM_API_KEY"


def test_a_canary_runs_beside_stable_pods_that_do_not_change(render: Render) -> None:
    old = render({"image": {"tag": "v0.31.0"}, "nodeSelector": {"pool": "a"}})
    template = old["Deployment", "llama-2-7b-production"]["spec"]["template"]

    new = render(
        {
            "image": {"digest": DIGEST},
            "replicaCount": 3,
            "canary": {"replicaCount": 1, "stablePodTemplate": template},
        }
    )

    stable = new["Deployment", "llama-2-7b-production"]
    canary = new["Deployment", "llama-2-7b-production-canary"]
    assert stable["spec"]["template"] == template
    assert (stable["spec"]["replicas"], canary["spec"]["replicas"]) == (3, 1)
    assert container(canary)["image"].endswith(DIGEST)
    assert "nodeSelector" not in canary["spec"]["template"]["spec"]
    selector = new["Service", "llama-2-7b-production"]["spec"]["selector"]
    for deployment, track in ((stable, "stable"), (canary, "canary")):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels["vllm-rollout/track"] == track


def test_in_a_handover_both_tracks_run_the_new_build(render: Render) -> None:
    objects = render(
        {
            "image": {"digest": DIGEST},
            "replicaCount": 2,
            "canary": {"replicaCount": 2, "handover": True},
        }
    )
    after = render({"image": {"digest": DIGEST}})

    stable = objects["Deployment", "llama-2-7b-production"]
    assert container(stable)["image"].endswith(DIGEST)
    # The pods that came in the handover are not restarted at its end.
    whole = after["Deployment", "llama-2-7b-production"]
    assert stable["spec"]["template"] == whole["spec"]["template"]
    assert ("Deployment", "llama-2-7b-production-canary") in objects


def test_a_canary_without_the_stable_template_is_refused(render: Render) -> None:
    with pytest.raises(UsageError, match="stablePodTemplate"):
        render({"canary": {"replicaCount": 1}})


def test_the_test_pod_asks_for_a_completion_and_gets_no_traffic(render: Render) -> None:
    objects = render()
    pod = objects["Pod", "llama-2-7b-production-test"]

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    environment = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    assert json.loads(environment["BODY"])["model"] == "llama-2-7b"
    selector = objects["Service", "llama-2-7b-production"]["spec"]["selector"]
    assert not selector.items() <= pod["metadata"]["labels"].items()


def test_the_schema_knows_every_default_and_the_readme_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    assert set(schema["properties"]) == {*values, "global"}
    documented = set(re.findall(r"^\| `(\w+)", (CHART / "README.md").read_text(), re.MULTILINE))
    assert set(values) <= documented
