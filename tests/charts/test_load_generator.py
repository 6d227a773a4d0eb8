"""The chart of the load generator as the real Helm lints and renders it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.required import each_helm

from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_pods import LoadTask
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.load_values import LoadSettings, generator_values
from vllm_rollout.resources import CHARTS
from vllm_rollout.variables import LOAD_CA_FILE

CHART = CHARTS / "load-generator"
VALUES: dict[str, Any] = {
    "image": "registry.example/vllm-rollout@sha256:" + "5" * 64,
    "plan": '{"base_url": "http://llama-2-7b-staging"}',
    "workers": 3,
    "target": {"namespace": "models", "podLabels": {"app.kubernetes.io/instance": "llama"}},
    "apiKeySecret": {"name": "key-of-the-server", "key": "token"},
}

Objects = dict[tuple[str, str], dict[str, Any]]
Render = Callable[..., Objects]


@pytest.fixture
def render(helm_binary: str, tmp_path: Path) -> Render:
    def render(**changes: Any) -> Objects:
        own = tmp_path / "values.yaml"
        own.write_text(yaml.safe_dump(VALUES | changes))
        objects = Helm(helm_binary).template("load", CHART, namespace="system", values=[own])
        return {(each["kind"], each["metadata"]["name"]): each for each in objects}

    return render


@each_helm
def test_it_lints_strictly(helm_binary: str, tmp_path: Path) -> None:
    own = tmp_path / "values.yaml"
    own.write_text(yaml.safe_dump(VALUES))
    said = Helm(helm_binary).lint(CHART, values=[own])
    assert "0 chart(s) failed" in said
    assert "WARNING" not in said


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": ""}, "image is needed"),
        ({"image": "registry.example/vllm-rollout:latest"}, "image"),
        ({"plan": ""}, "plan is needed"),
        ({"target": {}}, "target is needed"),
        ({"workers": 0}, "workers"),
        ({"apiKeySecret": {"name": "without-key", "key": ""}}, "apiKeySecret"),
        ({"apiKey": "sk-in-values"}, "apiKey"),
        ({"worker": {"resources": {"limits": {"memory": None}}}}, "memory"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    render: Render, values: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        render(**values)


def test_each_pod_is_started_once_and_ends_by_itself(render: Render) -> None:
    objects = render(activeSeconds=900)
    for name, count in (("load", 1), ("load-worker", 3)):
        job = objects["Job", name]["spec"]
        assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (count, count, 0)
        assert job["activeDeadlineSeconds"] == 900
        assert job["ttlSecondsAfterFinished"] > 0
        pod = job["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        assert not pod["automountServiceAccountToken"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_the_key_reaches_workers_alone_and_from_its_secret(render: Render) -> None:
    objects = render()
    named = [
        name
        for (kind, name), each in objects.items()
        if kind == "Job" and "VLLM_ROLLOUT_API_KEY" in json.dumps(each)
    ]
    assert named == ["load-worker"]
    (container,) = objects["Job", "load-worker"]["spec"]["template"]["spec"]["containers"]
    key = next(each for each in container["env"] if each["name"] == "VLLM_ROLLOUT_API_KEY")
    assert key["valueFrom"]["secretKeyRef"] == VALUES["apiKeySecret"]


def test_the_companys_certificates_are_trusted_by_workers(render: Render) -> None:
    assert "/ca" not in json.dumps([*render().values()])
    objects = render(caCertificates="-----BEGIN CERTIFICATE-----\nMII\n")
    assert objects["ConfigMap", "load-plan"]["data"]["ca.pem"].endswith("\nMII\n")
    assert "ca.pem" not in json.dumps(objects["Job", "load"])
    pod = objects["Job", "load-worker"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {"name": LOAD_CA_FILE, "value": "/ca/ca.pem"} in container["env"]
    assert {"name": "ca", "mountPath": "/ca", "readOnly": True} in container["volumeMounts"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "ca"]
    assert volume["configMap"] == {
        "name": "load-plan",
        "items": [{"key": "ca.pem", "path": "ca.pem"}],
    }


def test_a_policys_ca_file_is_given_to_the_pods(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificates")
    task = LoadTask(plan="{}", workers=1, longest_seconds=1, base_url="https://models.example")
    settings = LoadSettings(
        namespace="load",
        image="registry.example/vllm-rollout@sha256:" + "5" * 64,
        values=None,
        start_seconds=1,
        has_key=False,
        ca_file=str(tmp_path / "ca.pem"),
    )
    api: Any = None  # an address outside the cluster is not looked up in it
    assert generator_values(api, settings, task)["caCertificates"] == "certificates"
    (tmp_path / "ca.pem").write_text("x" * 1_000_000)
    with pytest.raises(UsageError, match="the load plan and `ca_file` take 1,000,002 bytes"):
        generator_values(api, settings, task)


def test_workers_reach_target_master_and_dns_and_nobody_reaches_them(render: Render) -> None:
    objects = render()
    master, worker = (objects["NetworkPolicy", name]["spec"] for name in ("load", "load-worker"))
    assert master["policyTypes"] == worker["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in master
    assert "ingress" not in worker
    [heard] = master["ingress"]
    labels = {
        name: objects["Job", name]["spec"]["template"]["metadata"]["labels"]
        for name in ("load", "load-worker")
    }
    [peer] = heard["from"]
    assert peer["podSelector"]["matchLabels"].items() <= labels["load-worker"].items()
    assert not peer["podSelector"]["matchLabels"].items() <= labels["load"].items()
    to_master, dns, to_target = worker["egress"]
    [peer] = to_master["to"]
    assert peer["podSelector"]["matchLabels"].items() <= labels["load"].items()
    assert {port["port"] for port in dns["ports"]} == {53}
    assert to_target["to"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "models"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/instance": "llama"}},
        }
    ]
    by_port = render(target={"namespace": "", "podLabels": {}, "port": 443})
    *_, to_target = by_port["NetworkPolicy", "load-worker"]["spec"]["egress"]
    assert to_target == {"ports": [{"protocol": "TCP", "port": 443}]}
    assert not any(kind == "NetworkPolicy" for kind, _ in render(networkPolicy={"enabled": False}))


def test_the_plan_and_the_masters_name_are_found(render: Render) -> None:
    objects = render()
    assert objects["ConfigMap", "load-plan"]["data"] == {"plan.json": VALUES["plan"]}
    service = objects["Service", "load"]["spec"]
    assert service["clusterIP"] == "None"
    labels = objects["Job", "load"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    (container,) = objects["Job", "load-worker"]["spec"]["template"]["spec"]["containers"]
    args = container["args"]
    assert args[args.index("--master-host") + 1] == "load"


def test_the_schema_knows_every_default_and_the_readme_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) == {*values, "global"}
    rows = [
        line for line in (CHART / "README.md").read_text().splitlines() if line.startswith("| `")
    ]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert set(values) == documented
