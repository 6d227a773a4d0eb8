"""The pre-deployment checks on a real API server, real Helm and a real image registry."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.fixtures import Namespace
from cluster.registry import PASSWORD, USER, Registry, running_registry
from cluster.required import each_helm
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.preflight_checks import quota_verdict, references_verdict, room_verdict
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import read_evidence
from vllm_rollout.platform.kubernetes.change_time import too_short
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.platform.kubernetes.preflight_reader import KubernetesPreflight
from vllm_rollout.policy import load_policy
from vllm_rollout.resources import CHARTS

MODEL = "llama-2-7b"
CHART = CHARTS / "vllm-deployment"
GPU = "nvidia.com/gpu"
Check = Callable[..., KubernetesPreflight]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with running_registry(tmp_path_factory.mktemp("registry"), password=True) as registry:
        yield registry


@pytest.fixture
def pool(namespace: Namespace) -> Iterator[dict[str, str]]:
    """A node of the test's own with four GPUs; gives the selector."""
    labels = {"pool": namespace.name}
    namespace.cluster.add_node(f"node-{namespace.name}", gpus=4, labels=labels)
    yield labels
    namespace.cluster.send("DELETE", f"/api/v1/nodes/node-{namespace.name}").raise_for_status()


@pytest.fixture
def platform(namespace: Namespace, helm_binary: str) -> KubernetesPlatform:
    return namespace.platform(helm_binary, service_url="http://{model}-{environment}")


@pytest.fixture
def check(namespace: Namespace, platform: KubernetesPlatform, pool: dict[str, str]) -> Check:
    def check(capacity: int = 2, **values: Any) -> KubernetesPreflight:
        values = {"model": {"name": MODEL}, "nodeSelector": pool, **values}
        production = Deployment(MODEL, "production", namespace.name)
        return platform.preflight(production, values, capacity=capacity)

    return check


@each_helm
def test_the_suites_own_chart_is_ready_to_be_deployed(check: Check) -> None:
    preflight = check()
    assert preflight.lint() == ""
    kinds = {each["kind"] for each in preflight.rendering().objects}
    assert {"Deployment", "Service"} <= kinds
    assert preflight.values_problem() == ""
    assert preflight.namespace() == "Active"
    assert preflight.quotas() == []
    assert room_verdict(preflight.room()).passed
    assert references_verdict(preflight.references()).passed
    assert [image.reference for image in preflight.images()] == ["vllm/vllm-openai:v0.32.0"]
    assert preflight.model().path == "meta-llama/Llama-2-7b-hf"

    # A start-up probe of 20 minutes fits the default policy, and 15 minutes are too few for it.
    large = check(model={"name": MODEL, "parameters": 70}).rendering().objects
    assert too_short(large, load_policy(None).deploy_timeout) == []
    assert "set deploy_timeout to 25m" in too_short(large, timedelta(minutes=15))[0]


@each_helm
def test_wrong_values_are_told_by_lint_and_rendering(check: Check) -> None:
    wrong = check(gpu={"count": "many"})
    assert "gpu" in wrong.lint()
    assert "gpu" in wrong.rendering().complaint
    assert wrong.rendering().objects == ()
    other = check(model={"name": "other"})
    assert "'other'" in other.values_problem()


def test_an_overlay_that_sets_the_build_is_a_problem(
    namespace: Namespace, helm_binary: str, tmp_path: Path
) -> None:
    overlays = tmp_path / "overlays"
    overlays.mkdir()
    platform = namespace.platform(
        helm_binary,
        chart=Path(shutil.copytree(CHART, tmp_path / "chart")),
        overlays=overlays,
        service_url="http://x",
    )
    production = Deployment(MODEL, "production", namespace.name)
    preflight = platform.preflight(production, {"model": {"name": MODEL}}, capacity=1)
    assert "values-production.yaml" in preflight.values_problem()
    (overlays / "values-production.yaml").write_text("image: {tag: latest}\n")
    assert "belongs to the build" in preflight.values_problem()


def test_gpus_are_counted_over_what_runs_already(
    namespace: Namespace, platform: KubernetesPlatform, check: Check, pool: dict[str, str]
) -> None:
    assert room_verdict(check(capacity=4).room()).passed
    too_many = room_verdict(check(capacity=5).room())
    assert too_many.outcome is Outcome.FAIL
    assert (too_many.measured, too_many.limit) == (4, 5)
    values = {"model": {"name": MODEL}, "nodeSelector": pool}
    production = Deployment(MODEL, "production", namespace.name)
    target = Target(build=platform.build(production, values), values=values, replicas=3, capacity=3)
    platform.apply(production, target, description="one", timeout=timedelta(seconds=60))
    assert room_verdict(check(capacity=3).room()).passed
    rolling = room_verdict(check(capacity=4).room())
    assert rolling.outcome is Outcome.FAIL
    assert "own pods hold 3" in rolling.reason
    staging = platform.preflight(Deployment(MODEL, "staging", namespace.name), values, capacity=2)
    assert room_verdict(staging.room()).outcome is Outcome.FAIL


def test_nodes_that_refuse_are_no_room(check: Check) -> None:
    absent = {"matchExpressions": [{"key": "pool", "operator": "DoesNotExist"}]}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    nowhere = {required: {"nodeSelectorTerms": [absent]}}
    for outcome, rules in (
        (Outcome.INCONCLUSIVE, {"nodeSelector": {"pool": "elsewhere"}}),
        (Outcome.FAIL, {"tolerations": []}),
        (Outcome.INCONCLUSIVE, {"affinity": {"nodeAffinity": nowhere}}),
    ):
        verdict = room_verdict(check(**rules).room())
        assert verdict.outcome is outcome
        assert "refuses them" in verdict.reason


def test_a_quota_is_compared_with_the_pods(namespace: Namespace, check: Check) -> None:
    namespace.create(
        "resourcequotas",
        {"metadata": {"name": "gpus"}, "spec": {"hard": {f"requests.{GPU}": "2"}}},
    )
    assert quota_verdict(check(capacity=2).demands(), check().quotas()).passed
    short = quota_verdict(check(capacity=3).demands(), check().quotas())
    assert short.outcome is Outcome.FAIL
    assert f"gpus: requests.{GPU} needs 3, 2 of 2 are left" in short.reason


def test_limits_by_default_count_in_a_quota(namespace: Namespace, check: Check) -> None:
    quota = {"hard": {"limits.cpu": "8", "count/secrets": "3"}}
    namespace.create("resourcequotas", {"metadata": {"name": "team"}, "spec": quota})

    def verdict() -> Verdict:
        return quota_verdict(check().demands(), check().quotas(), check().new_objects())

    assert "limits.cpu, and Deployment" in verdict().reason
    defaults = {"type": "Container", "default": {"cpu": "4"}, "defaultRequest": {"cpu": "1"}}
    limits = {"metadata": {"name": "usual"}, "spec": {"limits": [defaults]}}
    namespace.create("limitranges", limits)
    found = verdict()
    assert found.passed, found.reason
    assert "team: limits.cpu needs 8, 8 of 8 are left" in found.reason
    assert "count/secrets needs 3 more (1 revision and 2 of the way back)" in found.reason


def test_a_namespace_that_is_not_there_is_said(platform: KubernetesPlatform) -> None:
    nowhere = Deployment(MODEL, "production", "nowhere")
    preflight = platform.preflight(nowhere, {"model": {"name": MODEL}}, capacity=1)
    assert preflight.namespace() == ""


def test_claims_and_secrets_must_be_there(namespace: Namespace, check: Check) -> None:
    values = {
        "modelCache": {"mountPath": "/cache", "existingClaim": "cache"},
        "apiKeySecret": {"name": "api", "key": "api-key"},
    }
    missing = references_verdict(check(**values).references())
    assert missing.outcome is Outcome.FAIL
    assert "PersistentVolumeClaim cache: there is none" in missing.reason
    assert "Secret api: there is none" in missing.reason

    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": f"late-{namespace.name}",
    }
    namespace.create("persistentvolumeclaims", {"metadata": {"name": "cache"}, "spec": spec})
    namespace.create("secrets", {"metadata": {"name": "api"}, "stringData": {"other": "x"}})
    verdict = references_verdict(check(**values).references())
    assert "PersistentVolumeClaim cache: it is Pending, not Bound" in verdict.reason
    assert "Secret api: it has no key api-key" in verdict.reason

    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "metadata": {"name": f"late-{namespace.name}"},
        "provisioner": "tests.example/none",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    send = namespace.cluster.send
    send("POST", "/apis/storage.k8s.io/v1/storageclasses", storage_class).raise_for_status()
    path = f"/api/v1/namespaces/{namespace.name}/secrets/api"
    send("PATCH", path, {"stringData": {"api-key": "y"}}).raise_for_status()
    shared = references_verdict(check(**values).references())
    assert shared.outcome is Outcome.INCONCLUSIVE
    assert "cache: it is ReadWriteOnce, and up to 3 pods mount it at once" in shared.reason
    alone = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert references_verdict(check(1, strategy=alone, **values).references()).passed


def test_pods_pull_with_their_own_credentials(
    namespace: Namespace, check: Check, registry: Registry
) -> None:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    config = {"auths": {f"http://{registry.host}/v2/": {"auth": auth}, "other.example": {}}}
    secret = {
        "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json.dumps(config)},
    }
    namespace.create("secrets", secret)
    image = {"repository": f"{registry.host}/vllm", "tag": "v1", "pullSecrets": [{"name": "pull"}]}
    (found,) = check(image=image).images()
    assert found.credentials == ((USER, PASSWORD),)
    assert PASSWORD not in repr(found)
    (other,) = check(image={**image, "repository": "elsewhere.example/vllm"}).images()
    assert other.credentials == ()


def test_the_models_token_is_the_pods_own(namespace: Namespace, check: Check) -> None:
    secret = {"metadata": {"name": "hf"}, "stringData": {"token": "hf_of_the_pods"}}
    namespace.create("secrets", secret)
    model = {
        "name": MODEL,
        "path": "org/model",
        "revision": "v1",
        "tokenSecret": {"name": "hf", "key": "token"},
    }
    source = check(model=model, extraEnv=[{"name": "HF_HUB_OFFLINE", "value": "1"}]).model()
    assert (source.path, source.revision, source.token) == ("org/model", "v1", "hf_of_the_pods")
    assert source.offline
    assert "hf_of_the_pods" not in repr(source)


def test_a_release_that_renders_nothing_is_no_demand(check: Check) -> None:
    with pytest.raises(Exception, match="what the pods need is unknown"):
        check(gpu={"count": "many"}).demands()


@pytest.fixture
def preflight(
    namespace: Namespace,
    helm_binary: str,
    registry: Registry,
    pool: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str]]:
    """`vllm-rollout preflight` in a folder of its own: exit code, and what it prints."""
    monkeypatch.chdir(tmp_path)
    digest = registry.push("vllm", "v1")
    auths = {registry.host: {"username": USER, "password": PASSWORD}}
    secret = {
        "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json.dumps({"auths": auths})},
    }
    namespace.create("secrets", secret)

    def preflight(*words: str, **image: Any) -> tuple[int, str]:
        values = {
            "model": {"name": MODEL, "path": "/models/llama"},
            "nodeSelector": pool,
            "image": {
                "repository": f"{registry.host}/vllm",
                "digest": digest,
                "pullSecrets": [{"name": "pull"}],
                **image,
            },
        }
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        command = ["preflight", MODEL, "--values", "values.yaml", "-n", namespace.name, *words]
        command += ["--set", f"kubernetes.helm={helm_binary}"]
        done = CliRunner().invoke(app, command)
        return done.exit_code, done.output

    return preflight


def test_the_command_makes_every_check_and_leaves_a_report(
    preflight: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, printed = preflight()
    assert code == 0, printed
    (file,) = tmp_path.glob(f"reports/{MODEL}/*/evidence.json")
    (run,) = read_evidence(file).runs
    checks = ("chart", "templates", "values", "namespace", "gpus", "quota", "admission", "image")
    assert {gate.gate for gate in run.gates} == {
        f"preflight-{c}" for c in (*checks, "model", "volumes")
    }
    assert run.missing == ()
    assert run.build is not None
    assert run.build.image_digest in str(next(g for g in run.gates if "image" in g.gate).verdicts)
    assert PASSWORD not in file.read_text()
    assert (file.parent / "report.html").is_file()


def test_what_is_missing_is_exit_1_and_what_is_unknown_is_not_a_pass(
    preflight: Callable[..., tuple[int, str]],
) -> None:
    code, printed = preflight(digest=f"sha256:{'0' * 64}")
    assert code == ExitCode.GATE_FAILED
    assert "preflight-image (fail)" in printed
    code, printed = preflight(repository="127.0.0.1:9/vllm")
    assert code == ExitCode.UNREACHABLE
    assert "127.0.0.1:9" in printed
    off = "environments.development.preflight.image=off"
    assert preflight("--set", off, repository="127.0.0.1:9/vllm")[0] == ExitCode.OK


def test_a_ramp_by_traffic_needs_room_for_a_whole_canary_beside_what_serves(
    preflight: Callable[..., tuple[int, str]],
    namespace: Namespace,
    platform: KubernetesPlatform,
    pool: dict[str, str],
) -> None:
    by_replicas = ("-e", "production", "--set", "environments.production.replicas=3")
    by_traffic = (*by_replicas, "--set", "canary={by: traffic, latency: off, error_rate: off}")
    code, printed = preflight(*by_traffic)  # nothing serves yet
    assert code == ExitCode.OK, printed
    values = {"model": {"name": MODEL}, "nodeSelector": pool}
    production = Deployment(MODEL, "production", namespace.name)
    target = Target(build=platform.build(production, values), values=values, replicas=3, capacity=3)
    platform.apply(production, target, description="one", timeout=timedelta(seconds=60))

    assert preflight(*by_replicas)[0] == ExitCode.OK
    code, printed = preflight(*by_traffic)
    assert code == ExitCode.GATE_FAILED, printed
    assert "preflight-gpus (fail)" in printed


def test_what_is_rendered_is_what_helm_would_deploy(check: Check) -> None:
    (deployment,) = (o for o in check(capacity=3).rendering().objects if o["kind"] == "Deployment")
    assert deployment["spec"]["replicas"] == 3
    assert yaml.safe_dump(deployment).count("vllm/vllm-openai") == 1
