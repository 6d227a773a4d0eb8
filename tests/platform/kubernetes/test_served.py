"""The served part of rendered objects: what counts, what is normalised, what may be added."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.build import Builds, check_same
from vllm_rollout.platform.kubernetes.chart import make_build
from vllm_rollout.platform.kubernetes.composition import Rollout
from vllm_rollout.platform.kubernetes.helm import Capabilities, Helm
from vllm_rollout.platform.kubernetes.live_edits import unlike
from vllm_rollout.platform.kubernetes.served import (
    OWNED_BY_ENVIRONMENT,
    check_owned,
    differing,
    names_of_any,
    normalised,
    served,
    unlike_build,
    value_at,
)
from vllm_rollout.platform.kubernetes.value_files import ValueFiles
from vllm_rollout.policy import load_policy
from vllm_rollout.resources import CHARTS

MODEL = "llama-2-7b"
STAGING, PRODUCTION = Deployment(MODEL, "staging"), Deployment(MODEL, "production")
CHART = CHARTS / "vllm-deployment"


def server(name: str = "a", *, kind: str = "Deployment", **spec: Any) -> dict[str, Any]:
    container = {"name": "vllm", "image": "v:1", "args": ["--model", "x"]} | spec.pop("own", {})
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [container], **spec},
            },
        },
    }


def paths(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> list[str]:
    owned = OWNED_BY_ENVIRONMENT
    return [path for _, path in differing(served(left, owned), served(right, owned))]


def test_the_policys_default_is_the_platforms() -> None:
    assert load_policy(None).kubernetes.environment_owns == OWNED_BY_ENVIRONMENT


@pytest.mark.parametrize(
    "owned",
    [
        *("spec", "*", "spec.containers", "spec.*[*].args", "s*.con*[vl*]", "spec.containers[0]"),
        *("spec.containers[vllm]", "spec.containers[vllm].image", "spec.initContainers[a].command"),
        *("spec.containers[vllm].args[0]", "spec.containers[*].args[1]", "spec.containers[*].*"),
        *("spec.ephemeralContainers", "spec.containers[vllm].livenessProbe.exec.command"),
        *("spec.containers[*].lifecycle", "InferenceService", "InferenceService.spec.*.args"),
    ],
)
def test_no_policy_gives_image_or_command_to_an_environment(owned: str) -> None:
    with pytest.raises(UsageError, match="environment_owns"):
        check_owned([owned])


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"own": {"image": "v:2"}}, "spec.containers[vllm].image"),
        ({"own": {"args": ["--model", "y"]}}, "spec.containers[vllm].args[1]"),
        ({"own": {"env": [{"name": "A", "value": "1"}]}}, "spec.containers[vllm].env[A].name"),
        (
            {"own": {"resources": {"limits": {"gpu": 2}}}},
            "spec.containers[vllm].resources.limits.gpu",
        ),
        ({"initContainers": [{"name": "load"}]}, "spec.initContainers[load].name"),
        ({"volumes": [{"name": "w", "hostPath": {"path": "/w"}}]}, "spec.volumes[w].hostPath.path"),
        ({"hostNetwork": True}, "spec.hostNetwork"),
    ],
)
def test_what_is_computed_counts(changed: dict[str, Any], path: str) -> None:
    assert path in paths([server()], [server(**changed)])


def test_metadata_that_a_container_reads_counts() -> None:
    def reading(model: str, **spec: Any) -> list[dict[str, Any]]:
        each = server(**spec)
        each["spec"]["template"]["metadata"] = {"annotations": {"model": model, "team": model}}
        return [each]

    ref = {"fieldRef": {"fieldPath": "metadata.annotations['model']"}}
    volume = {"name": "d", "downwardAPI": {"items": [{"path": "p", **ref}]}}
    by_variable = {"own": {"env": [{"name": "M", "valueFrom": ref}]}}
    for spec in (by_variable, {"volumes": [volume]}):
        assert paths(reading("a", **spec), reading("b", **spec)) == [
            "fieldRef[\"metadata.annotations['model']\"]"
        ]
    assert paths(reading("a"), reading("b")) == []
    each = server(serviceAccountName="a", own={"env": [{"name": "M", "valueFrom": ref}]})
    each["spec"]["template"]["spec"]["volumes"] = [{"fieldRef": {"fieldPath": "spec.nodeName"}}]
    assert served([each], OWNED_BY_ENVIRONMENT)["Deployment a"] != {}


def test_a_command_of_a_probe_counts_and_its_times_do_not() -> None:
    def probed(**probe: Any) -> list[dict[str, Any]]:
        return [server(own={"livenessProbe": probe})]

    assert paths(probed(periodSeconds=1), probed(httpGet={"port": 1}, periodSeconds=2)) == []
    assert "spec.containers[vllm].livenessProbe.exec.command[0]" in paths(
        probed(), probed(exec={"command": ["curl"]})
    )


@pytest.mark.parametrize(
    ("api", "kind", "body", "path"),
    [
        ("v1", "ConfigMap", {"data": {"c": "{}"}}, "ConfigMap.data.c"),
        ("v1", "PersistentVolume", {"spec": {"nfs": {"path": "{}"}}}, "PersistentVolume.nfs.path"),
        ("v1", "Service", {"spec": {"selector": {"app": "{}"}}}, "Service.selector.app"),
        ("v1", "Service", {"spec": {"externalName": "{}"}}, "Service.externalName"),
        ("v1", "PodTemplate", {"template": {"spec": {"containers": ["{}"]}}}, "spec.containers[0]"),
        (
            "keda.sh/v1alpha1",
            "ScaledJob",
            {"spec": {"jobTargetRef": {"template": {"spec": {"containers": ["{}"]}}}}},
            "spec.containers[0]",
        ),
        (
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            {"spec": {"rules": [{"backendRefs": [{"name": "{}"}]}]}},
            "HTTPRoute.spec.rules[0].backendRefs[{}].name",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            {"spec": {"http": [{"route": [{"destination": {"host": "{}"}}]}]}},
            "VirtualService.spec.http[0].route[0].destination.host",
        ),
    ],
)
def test_what_decides_who_answers_counts_beside_the_pods(
    api: str, kind: str, body: dict[str, Any], path: str
) -> None:
    def of(text: str) -> list[dict[str, Any]]:
        return [
            {"apiVersion": api, "kind": kind, "metadata": {"name": "n"}}
            | json.loads(json.dumps(body).replace("{}", text))
        ]

    assert path.format("a") in {p.replace("{}", "a") for p in paths(of("a"), of("b"))}


def test_hosts_of_routes_and_numbers_of_pods_are_the_environments() -> None:
    def of(text: str) -> list[dict[str, Any]]:
        about = {"metadata": {"name": "n"}}
        route = {"hostnames": [text], "rules": [{"backendRefs": [{"name": "a"}]}]}
        ingress = {"tls": [text], "rules": [{"host": text}]}
        return [
            {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": route},
            {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": ingress},
            {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": {"max": text}},
            {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": text}]}},
            about,
        ]

    assert paths(of("a"), of("b")) == []


def test_placement_probes_labels_and_replicas_are_the_environments() -> None:
    other = server(nodeSelector={"a": "b"}, tolerations=[{"operator": "Exists"}])
    other["spec"]["replicas"] = 4
    other["spec"]["template"]["metadata"]["labels"] = {"team": "x"}
    other["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = {"periodSeconds": 1}

    assert paths([server()], [other]) == []


def test_the_order_of_variables_counts() -> None:
    both = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"}]

    assert paths([server(own={"env": both})], [server(own={"env": both[::-1]})]) == [
        "spec.containers[vllm].env[]"
    ]


def test_a_config_map_of_the_chart_counts_by_content() -> None:
    def of(name: str, text: str) -> list[dict[str, Any]]:
        volumes = [{"name": "c", "configMap": {"name": name}}]
        return [
            {"kind": "ConfigMap", "metadata": {"name": name}, "data": {"run.sh": text}},
            server(volumes=volumes),
        ]

    assert paths(of("c-1", "x"), of("c-2", "x")) == []
    assert paths(of("c-1", "x"), of("c-1", "y")) == [
        'spec.volumes[c].configMap.content.data["run.sh"]'
    ]


def test_a_secret_counts_by_keys_and_where_it_is_mounted_unseen_by_content() -> None:
    def of(secret: str, **spec: Any) -> list[dict[str, Any]]:
        made = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"token": secret}}
        return [made, server(**spec)]

    key = {"secretKeyRef": {"name": "s", "key": "token"}}
    mounted: dict[str, Any] = {"volumes": [{"name": "s", "secret": {"secretName": "s"}}]}
    variable = {"own": {"env": [{"name": "T", "valueFrom": key}]}}
    digest = "spec.volumes[s].secret.content.digest"

    assert paths(of("one", **variable), of("two", **variable)) == []
    assert paths(of("one", **mounted), of("two", **mounted)) == [digest]
    part = served(of("one", **mounted), ())
    assert part["Deployment a"][digest] not in value_at(part, "Deployment a", digest)
    other = {"kind": "Secret", "metadata": {"name": "s"}, "data": {"token": "b25l"}}
    assert paths(of("one", **mounted), [other, server(**mounted)]) == []


def test_objects_of_unknown_kinds_count_whole_with_their_pods() -> None:
    def inference(uri: str, image: str) -> list[dict[str, Any]]:
        spec = {"model": {"uri": uri}, "worker": server(own={"image": image})["spec"]["template"]}
        about = {"apiVersion": "serving.kserve.io/v1", "kind": "LLMInferenceService"}
        return [{"kind": "List", "items": [{**about, "metadata": {"name": "a"}, "spec": spec}]}]

    assert paths(inference("hf://x", "v:1"), inference("hf://y", "v:2")) == [
        "spec.containers[vllm].image",
        "LLMInferenceService.spec.model.uri",
    ]


def test_a_server_without_replicas_elsewhere_is_no_part_of_the_build() -> None:
    none = server("b")
    none["spec"]["replicas"] = 0

    assert paths([server(), none], [server()]) == []
    assert paths([server(), server("b")], [server(), none]) != []


def render(deployment: Deployment, own: Callable[[str], dict[str, Any]], claim: str = "c") -> Any:
    """What a chart makes under the deployment's own names, and under those of any."""

    def of(release: str) -> Any:
        volumes = [{"name": "w", "persistentVolumeClaim": {"claimName": claim}}]
        made = [server(f"{release}-vllm", own=own(release), volumes=volumes)]
        return served(made, OWNED_BY_ENVIRONMENT)

    return normalised(of(deployment.release), of(names_of_any(deployment)[0]), deployment)


def variable(value: str) -> dict[str, Any]:
    return {"env": [{"name": "V", "value": value}]}


@pytest.mark.parametrize(
    ("own", "same"),
    [
        (lambda release: variable(f"lm://{release}-cache:80"), True),
        (lambda release: {"args": ["--k8s-label-selector", f"release={release}"]}, True),
        (lambda release: {"args": [f"--k8s-label-selector=release={release}"]}, True),
        (lambda release: variable("fp8" if release.endswith("production") else "bf16"), False),
        (lambda release: variable(f"--model=/models/{release}"[:30]), False),
        (lambda release: {"image": f"registry/{release}:v1"}, False),
        (lambda release: {"args": [f"--model=/models/{release}"]}, False),
        (lambda release: {"command": ["vllm", "serve", release]}, False),
        (lambda release: {"volumeMounts": [{"name": "w", "mountPath": f"/{release}"}]}, False),
        (lambda release: {**variable(f"/models/{release}"), "args": ["--model=$(V)"]}, False),
    ],
)
def test_a_release_name_is_normalised_where_it_loads_nothing(
    own: Callable[[str], dict[str, Any]], same: bool
) -> None:
    assert (render(STAGING, own) == render(PRODUCTION, own)) is same


def test_an_environments_name_in_values_is_normalised_in_claims_alone() -> None:
    def literal(deployment: Deployment, claim: str) -> Any:
        return render(deployment, lambda _: {"args": ["x"]}, claim)

    assert literal(STAGING, "weights-staging") == literal(PRODUCTION, "weights-production")
    assert literal(STAGING, "weights-a") != literal(PRODUCTION, "weights-b")
    models = [render(d, lambda _, d=d: variable(d.release)) for d in (STAGING, PRODUCTION)]
    assert models[0] != models[1]


def test_a_live_template_may_have_defaults_and_other_spellings_and_nothing_else() -> None:
    def leaves(template: dict[str, Any]) -> Any:
        return served([template], ())["Deployment a"]

    rendered = server(own={"resources": {"limits": {"cpu": 2, "memory": "1024Mi"}}, "env": []})
    live = server(own={"resources": {"limits": {"cpu": "2", "memory": "1Gi"}}})
    live["spec"]["template"]["spec"]["containers"][0]["terminationMessagePolicy"] = "File"
    assert unlike(leaves(rendered), leaves(live)) == []

    live["spec"]["template"]["spec"]["containers"][0] |= {
        "image": "v:2",
        "env": [{"name": "A", "value": "1"}],
    }
    assert unlike(leaves(rendered), leaves(live)) == [
        'spec.containers[vllm].image: "v:1" was rendered, "v:2" runs',
        'spec.containers[vllm].env[A].name: nothing was rendered, "A" runs',
        'spec.containers[vllm].env[A].value: nothing was rendered, "1" runs',
        'spec.containers[vllm].env[]: nothing was rendered, ["A"] runs',
    ]


EDITED = server(
    automountServiceAccountToken=False,
    volumes=[
        {"name": "m", "persistentVolumeClaim": {"claimName": "w"}},
        {"name": "t", "emptyDir": {}},
    ],
    own={
        "env": [{"name": "A", "value": ""}, {"name": "B"}],
        "volumeMounts": [{"name": "m", "mountPath": "/m", "readOnly": False}],
        "resources": {"limits": {"gpu": 1}},
    },
)


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (lambda s, c: c["volumeMounts"][0].update(subPath="x"), "volumeMounts[m].subPath"),
        (lambda s, c: s["volumes"][1].update(emptyDir=None, hostPath={"path": "/x"}), "hostPath"),
        (
            lambda s, c: s["volumes"][1].update(
                emptyDir=None, persistentVolumeClaim={"claimName": "x"}
            ),
            "volumes[t].persistentVolumeClaim.claimName",
        ),
        (lambda s, c: c["env"][0].update(value="x"), "env[A].value"),
        (
            lambda s, c: c["env"][0].update(valueFrom={"secretKeyRef": {"name": "s"}}),
            "env[A].valueFrom.secretKeyRef.name",
        ),
        (lambda s, c: c["env"][1].update(value="fp8"), "env[B].value"),
        (lambda s, c: c.update(workingDir="/x"), "workingDir"),
        (lambda s, c: s.update(hostNetwork=True), "spec.hostNetwork"),
        (lambda s, c: s.update(runtimeClassName="x"), "runtimeClassName"),
        (lambda s, c: c.update(securityContext={"privileged": True}), "privileged"),
        (lambda s, c: c.update(lifecycle={"postStart": {"httpGet": {"path": "/x"}}}), "postStart"),
        (lambda s, c: c["resources"]["limits"].update(cpu="100m"), "resources.limits.cpu"),
        (lambda s, c: s["volumes"][0]["persistentVolumeClaim"].update(readOnly=True), "readOnly"),
        (lambda s, c: s.pop("automountServiceAccountToken"), "automountServiceAccountToken"),
        (lambda s, c: c.update(terminationMessagePath="/x"), "terminationMessagePath"),
        (lambda s, c: c.update(livenessProbe={"exec": {"command": ["x"]}}), "exec.command[0]"),
    ],
)
def test_what_the_api_server_does_not_fill_in_is_an_edit(
    edit: Callable[[dict[str, Any], dict[str, Any]], Any], path: str
) -> None:
    live = copy.deepcopy(EDITED)
    spec = live["spec"]["template"]["spec"]
    edit(spec, spec["containers"][0])
    parts = [served([each], OWNED_BY_ENVIRONMENT)["Deployment a"] for each in (EDITED, live)]

    assert unlike(parts[0], parts[0]) == []
    assert any(path in line for line in unlike(*parts))


def test_pods_that_a_ramp_keeps_are_no_other_build() -> None:
    old, new = (
        served([server(n, own={"image": i})], ()) for n, i in (("a", "v:1"), ("a-canary", "v:2"))
    )
    expected = served([server("a", own={"image": "v:2"})], ())
    kept = old["Deployment a"]

    assert unlike_build(old | new, expected, kept=kept, whole=False) == []
    assert "v:1" in unlike_build(old | new, expected, whole=False)[0]
    assert "is missing" in unlike_build(old, expected, kept=kept, whole=True)[0]


@pytest.fixture
def builds(helm_binary: str, tmp_path: Path) -> Builds:
    for name in ("development", "staging", "production"):
        shutil.copy(CHART / f"values-{name}.yaml", tmp_path)
    return Builds(helm=Helm(helm_binary), chart=CHART, files=ValueFiles(overlays=tmp_path))


def test_each_shipped_overlay_makes_the_same_build(builds: Builds) -> None:
    made = {builds.make(Deployment(MODEL, name), {}).digest for name in builds.order}

    assert len(made) == 1
    assert builds.make(PRODUCTION.canary, {}).digest in made


def test_an_overlay_that_serves_another_model_is_refused_by_name(
    builds: Builds, tmp_path: Path
) -> None:
    overlay = tmp_path / "values-production.yaml"
    overlay.write_text(yaml.safe_dump({"extraArgs": ["--model", "other", "--quantization", "fp8"]}))

    with pytest.raises(UsageError, match=r"belongs to the build") as caught:
        builds.make(PRODUCTION, {})

    assert 'spec.containers[vllm].args[5] is "other" in production, nothing in staging' in str(
        caught.value
    )
    assert f"set by {overlay}: " in str(caught.value)
    assert "values-staging" not in str(caught.value)
    assert "kubernetes.environment_owns" in caught.value.remedy


def test_what_an_environment_owns_is_the_policys_to_say(builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "values-production.yaml").write_text("extraEnv: [{name: HOST, value: p}]\n")
    for name in ("development", "staging"):
        (tmp_path / f"values-{name}.yaml").write_text("extraEnv: [{name: HOST, value: s}]\n")
    owned = (*OWNED_BY_ENVIRONMENT, "spec.containers[*].env[HOST]")

    with pytest.raises(UsageError, match=r"values-production.yaml and .*values-staging.yaml"):
        builds.make(PRODUCTION, {})
    files = ValueFiles(overlays=tmp_path)
    more = Builds(helm=builds.helm, chart=CHART, files=files, owned=owned)
    assert more.make(PRODUCTION, {}) == more.make(STAGING, {})


def test_without_other_overlays_the_values_alone_are_the_build(
    builds: Builds, tmp_path: Path
) -> None:
    for name in ("development", "staging"):
        (tmp_path / f"values-{name}.yaml").unlink()
    (tmp_path / "values-production.yaml").write_text("extraArgs: [--quantization=fp8]\n")

    with pytest.raises(UsageError, match="nothing without that file"):
        builds.make(PRODUCTION, {})


def test_a_build_of_the_former_scheme_asks_to_gate_again(builds: Builds) -> None:
    former, now = make_build(CHART, STAGING, {}), builds.make(STAGING, {})

    assert former.of_earlier_version
    with pytest.raises(DeployError, match="gated by an earlier version") as caught:
        check_same(former, now)
    assert "gate again" in str(caught.value)


def own_chart(folder: Path, *, arg: str, name: str = "chart") -> Path:
    chart = folder / name
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: own\nversion: 1.0.0\n")
    made = yaml.safe_dump(server(own={"args": ["ARG"]}))
    (chart / "templates/all.yaml").write_text(made.replace("ARG", f"'{arg}'"))
    return chart


@pytest.mark.parametrize(
    ("arg", "flags"),
    [
        ("{{ .Release.IsUpgrade }}", ["--is-upgrade"]),
        ("{{ .Capabilities.KubeVersion.Minor }}", ["--kube-version", "1.37.2"]),
        (
            '{{ .Capabilities.APIVersions.Has "a.example/v1/B" }}',
            ["--api-versions", "a.example/v1/B"],
        ),
    ],
)
def test_a_chart_that_asks_the_cluster_is_rendered_as_there(
    builds: Builds, tmp_path: Path, helm_binary: str, arg: str, flags: list[str]
) -> None:
    chart = own_chart(tmp_path, arg=arg)
    able = Capabilities(version="v1.37.2", apis=("a.example/v1/B",))
    own = replace(builds, chart=chart, cluster=lambda: able)
    (tmp_path / "values-staging.yaml").write_text("{}")
    build = own.make(STAGING, {})
    text = subprocess.check_output([helm_binary, "template", "r", str(chart), *flags], text=True)
    rollout = Rollout(build=build, digest="", values_json="{}", replicas=1, capacity=1)

    assert own.unlike_applied(STAGING, rollout, list(yaml.safe_load_all(text))) == []


def test_a_chart_that_reads_its_revision_is_told_so(
    builds: Builds, tmp_path: Path, helm_binary: str
) -> None:
    own = replace(builds, chart=own_chart(tmp_path, arg="{{ .Release.Revision }}"))
    rollout = Rollout(
        build=own.make(STAGING, {}), digest="", values_json="{}", replicas=1, capacity=1
    )

    found = own.unlike_applied(STAGING, rollout, [server(own={"args": ["2"]})])
    assert "read .Release.Revision" in found[-1]


@pytest.mark.parametrize("arg", ["{{ randNumeric 9 }}", "{{ now | date `05.000000000` }}"])
def test_a_chart_that_is_another_each_time_is_named_as_such(
    builds: Builds, tmp_path: Path, arg: str
) -> None:
    own = replace(builds, chart=own_chart(tmp_path, arg=arg))

    with pytest.raises(UsageError, match=r"not deterministic: Deployment a: .*args\[0\] differs"):
        own.make(PRODUCTION, {})
